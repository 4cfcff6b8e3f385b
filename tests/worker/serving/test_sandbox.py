"""What a worker gives up, where the kernel lacks a part of it, and what it costs."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import wuwan_worker
from wuwan_worker.serving import sandbox
from wuwan_worker.shared import landlock, seccomp

PACKAGES = Path(wuwan_worker.__file__).parents[1]


@pytest.fixture
def said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> pytest.LogCaptureFixture:
    """The log; nothing of it is done to this process."""
    monkeypatch.setattr(sandbox, "no_core_dumps", lambda: None)
    monkeypatch.setattr(sandbox, "_make_gpu_devices", lambda: None)
    monkeypatch.setattr(sandbox, "_prctl", lambda *_: True)
    monkeypatch.setattr(landlock, "restrict", lambda _: 7)
    monkeypatch.setattr(seccomp, "restrict", lambda **_: None)
    caplog.set_level(logging.INFO)
    return caplog


def _refuse(*_: object, **__: object) -> int:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def test_one_line_says_what_holds(said: pytest.LogCaptureFixture) -> None:
    """The version, and what that means."""
    sandbox.enter(gpu=False)
    (message,) = said.messages
    assert message.startswith("sandbox: Landlock ABI 7: no file written")
    assert "seccomp: no socket opened" in message


def test_a_gpu_keeps_its_sockets(said: pytest.LogCaptureFixture) -> None:
    """And the line promises no more than holds."""
    sandbox.enter(gpu=True)
    assert "no socket opened" not in said.text


def test_without_landlock(said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is done all the same."""
    monkeypatch.setattr(landlock, "restrict", _refuse)
    sandbox.enter(gpu=False)
    (message,) = said.messages
    assert message.startswith("sandbox: no Landlock (Function not implemented); seccomp: no")


def test_without_anything(said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker goes on, and says so."""
    monkeypatch.setattr(landlock, "restrict", _refuse)
    monkeypatch.setattr(seccomp, "restrict", _refuse)
    sandbox.enter(gpu=False)
    assert said.messages == [
        "sandbox: no Landlock (Function not implemented); no seccomp (Function not implemented)"
    ]


def test_it_costs_milliseconds() -> None:
    """At most 5 at each start: the median of 20, as long as another program is not in the way."""
    script = (
        "import time; from wuwan_worker.serving import sandbox; start = time.perf_counter();"
        "sandbox.enter(gpu=False); print(time.perf_counter() - start)"
    )
    taken = []
    for _ in range(20):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONPATH": str(PACKAGES)},
            capture_output=True,
            timeout=60,
            check=True,
        )
        taken.append(float(done.stdout))
    assert sorted(taken)[10] < 0.005
