"""Fault 10: a GPU is asked for and the daemon has no way to give one (nvidia-docker 1352)."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

pytestmark = pytest.mark.docker


@pytest.mark.parametrize("channel", ["socket", "exec"])
@pytest.mark.parametrize("gpus", ["all", "0"])
def test_one_line_of_cause_and_one_of_advice(
    tools: Any, wuwan: Any, docker_image: str, created: Any, channel: str, gpus: str
) -> None:
    info = json.loads(tools.docker("info", "--format", "{{json .}}"))
    if "nvidia" in (info.get("Runtimes") or {}) or info.get("DiscoveredDevices"):
        pytest.skip("this daemon offers GPUs")
    started = time.monotonic()
    done = wuwan(
        *("tag", tools.album(3).root, "--runner", "docker", "--image", docker_image),
        *("--gpus", gpus, "--channel", channel),
    )
    assert done.returncode == 4
    assert done.stdout == b""
    cause, advice = done.stderr.decode().splitlines()
    assert f"--gpus {gpus}" in cause
    assert "offers no NVIDIA GPU" in cause
    assert advice.startswith("  hint: ")
    assert "NVIDIA Container Toolkit" in advice
    assert "--gpus none" in advice
    assert time.monotonic() - started < 10
    assert not created.names()
