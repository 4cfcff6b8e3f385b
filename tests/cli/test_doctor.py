"""`wuwan doctor`."""

from __future__ import annotations

import errno
import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from wuwan_runner.doctor import checks
from wuwan_runner.doctor.checks import Check, Outcome
from wuwan_worker.shared import landlock
from wuwan_worker.shared.private_dir import PrivateDir

if TYPE_CHECKING:
    from pathlib import Path

NO_DAEMON = {"DOCKER_HOST": "tcp://127.0.0.1:9"}


def environment(namespace: str, **more: str) -> dict[str, str]:
    """An environment of its own for a run."""
    return {"WUWAN_NAMESPACE": namespace, "LC_ALL": "C", **more}


def test_without_docker(wuwan: Any, namespace: str) -> None:
    """The local runner works, so the exit code is 0; what fails says what to do."""
    done = wuwan("doctor", "--json", env=environment(namespace, **NO_DAEMON))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["runners"] == {"docker": False, "local": True}
    found = {check["name"]: check for check in report["checks"]}
    assert found["Docker daemon"]["outcome"] == "fail"
    assert found["Docker daemon"]["advice"]
    assert found["sockets"]["outcome"] == "ok"
    assert found["model imagenet-zh"]["outcome"] == "ok"


def test_the_table(wuwan: Any, namespace: str) -> None:
    """Plain text where standard output is no terminal, in any locale."""
    done = wuwan("doctor", env=environment(namespace, **NO_DAEMON))
    assert done.returncode == 0, done.stderr
    assert b"runners that work: local" in done.stdout
    assert b"\x1b" not in done.stdout


@pytest.mark.docker
def test_with_docker(wuwan: Any, docker_image: str) -> None:
    """Daemon and image are found."""
    done = wuwan("doctor", "--json", "--image", docker_image)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["runners"]["docker"] is True


@pytest.mark.docker
def test_an_image_that_is_not_there(wuwan: Any) -> None:
    """The advice is to build it."""
    done = wuwan("doctor", "--json", "--image", "wuwan-no-such-image")
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert found["Docker daemon"]["outcome"] == "ok"
    assert found["container image"]["advice"] == "wuwan image build"


def test_a_check_that_hangs_costs_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are not held up, and the report says which one did not answer."""
    monkeypatch.setattr(checks, "docker", lambda _: time.sleep(60))
    started = time.monotonic()
    found = {check.name: check for check in checks.run(checks.Scope(deadline=1.0))}
    assert time.monotonic() - started < 10
    assert found["Docker daemon"].outcome is Outcome.FAIL
    assert "no answer within" in found["Docker daemon"].detail
    assert found["sockets"].outcome is Outcome.OK


def test_no_runner_works() -> None:
    """Each launcher needs all of its checks; one that is missing counts as failed."""
    assert checks.usable([Check("sockets", Outcome.OK, "")]) == {"docker": False, "local": False}


def test_a_directory_that_cannot_be_written_to(tmp_path: Path) -> None:
    """The next candidate is used, with a warning; without one the check fails."""
    file = tmp_path / "file"
    file.touch()
    closed = PrivateDir(file, ("wuwan",))  # root can write to any directory
    open_ = PrivateDir(tmp_path / "a", ("b",))
    assert checks.directory("log", [open_]).outcome is Outcome.OK
    assert not (tmp_path / "a").exists()
    assert checks.directory("log", [closed, open_]).outcome is Outcome.WARN
    assert checks.directory("log", [closed]).outcome is Outcome.FAIL
    assert checks.directory("cache", [closed]).outcome is Outcome.WARN


def test_the_sandbox_of_this_kernel() -> None:
    """What local workers give up is said by version; none is a warning with a way out."""
    check = checks.sandbox()
    assert "Landlock" in check.detail
    assert (check.outcome is Outcome.OK) == ("no Landlock" not in check.detail)


def test_a_kernel_without_landlock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The local runner still works: it is no failure, and containers are the advice."""

    def none() -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(landlock, "abi", none)
    check = checks.sandbox()
    assert check.outcome is Outcome.WARN
    assert "Function not implemented" in check.detail
    assert "--runner docker" in check.advice


@pytest.mark.parametrize(
    ("info", "outcome"),
    [
        ({"Runtimes": {"nvidia": {}}}, Outcome.OK),
        ({"DiscoveredDevices": [{"ID": "nvidia.com/gpu=0"}]}, Outcome.OK),
        ({"Runtimes": {"runc": {}}}, Outcome.WARN),
    ],
)
def test_gpus_by_the_daemons_info(info: dict[str, Any], outcome: Outcome) -> None:
    """The NVIDIA runtime or CDI devices make a GPU; none is no failure."""
    assert checks.gpu(info).outcome is outcome
