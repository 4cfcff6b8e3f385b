"""A program in a container of its own: what goes in, what comes out, and that nothing is left."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.runner.containers.conftest import wait_until
from wuwan_runner.containers import program
from wuwan_runner.containers.program import Done, Program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import docker

pytestmark = [
    pytest.mark.docker,
    pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning"),
]

DEADLINE = 60.0
LARGE = bytes(range(256)) * 20_000  # 5 MB, more than any pipe or socket on the way takes

# Says as JSON what it may do: directories in which it can make a file, those of them in which it
# can run one, its networks, its capabilities.
PROBE = r"""
import json, os, subprocess
writable, runnable = [], []
for directory, names, _ in os.walk("/"):
    if directory == "/":
        names[:] = [name for name in names if name not in ("proc", "sys")]
    path = os.path.join(directory, "wuwan-probe")
    try:
        with open(path, "x") as file:
            file.write("#!/bin/sh\nexit 0\n")
    except OSError:
        continue
    os.chmod(path, 0o755)
    writable.append(directory)
    try:
        subprocess.run([path], check=True)
        runnable.append(directory)
    except OSError:
        pass
    os.remove(path)
status = dict(line.split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line)
print(json.dumps({
    "writable": sorted(writable),
    "runnable": runnable,
    "networks": os.listdir("/sys/class/net"),
    "uid": os.getuid(),
    "home": os.environ["HOME"],
    **{name: status[name].strip() for name in ("CapEff", "CapBnd", "NoNewPrivs")},
}))
"""


@pytest.fixture
def run(client: docker.DockerClient, docker_image: str) -> Iterator[Callable[..., Done | None]]:
    """`run(COMMAND…, deadline=…, KEYWORDS…)` in the test image; none of its containers is left."""

    def containers() -> set[str]:
        listed = client.api.containers(all=True, quiet=True, filters={"ancestor": docker_image})
        return {found["Id"] for found in listed}

    def go(*command: str, deadline: float = DEADLINE, **settings: Any) -> Done | None:
        made = Program(image=docker_image, command=command, **({"memory": "256m"} | settings))
        return program.run(client, made, deadline=deadline)

    before = containers()
    yield go
    wait_until(lambda: containers() <= before)


def test_what_goes_in_comes_out(run: Callable[..., Done | None]) -> None:
    """5 MB through `cat`, which fills every buffer on the way in both directions."""
    assert run("cat", stdin=LARGE) == Done(LARGE, b"")


def test_errors_are_kept_apart(run: Callable[..., Done | None]) -> None:
    """Also where both are written in turns, and what has no newline at its end."""
    script = "for i in 1 2 3; do echo out $i; echo err $i >&2; done; printf last; printf end >&2"
    assert run("sh", "-c", script) == Done(
        b"out 1\nout 2\nout 3\nlast", b"err 1\nerr 2\nerr 3\nend"
    )


def test_without_an_input_there_is_none(run: Callable[..., Done | None]) -> None:
    """Who reads it is at its end at once."""
    assert run("cat") == Done(b"", b"")


def test_a_program_that_does_not_read_its_input(run: Callable[..., Done | None]) -> None:
    """Its end is the end, though 5 MB are on their way to it."""
    assert run("true", stdin=LARGE) == Done(b"", b"")
    assert run("head", "-c3", stdin=LARGE) == Done(LARGE[:3], b"")


@pytest.mark.parametrize("stdin", [b"", LARGE])
def test_one_that_does_not_end(run: Callable[..., Done | None], stdin: bytes) -> None:
    """At the deadline it is removed, and what it said is no result."""
    started = time.monotonic()
    assert run("sh", "-c", "echo begun; sleep 60", deadline=1.0, stdin=stdin) is None
    assert time.monotonic() - started < 30


def test_an_image_that_is_not_there(client: docker.DockerClient) -> None:
    """The daemon's error goes to the caller, who knows what the image was for."""
    import docker.errors

    nothing = Program(image="wuwan-test:none", command=("true",), memory="64m")
    with pytest.raises(docker.errors.ImageNotFound):
        program.run(client, nothing, deadline=DEADLINE)


def test_a_command_that_is_not_there(run: Callable[..., Done | None]) -> None:
    """It says so on its standard error, as its init does."""
    done = run("wuwan-no-such-command")
    assert done is not None
    assert (done.output, b"wuwan-no-such-command" in done.errors) == (b"", True)


def test_it_may_do_nothing_but_compute(run: Callable[..., Done | None]) -> None:
    """It writes to memory only, runs nothing that it has written, and has no network, no power."""
    done = run("python", "-c", PROBE)
    assert done is not None
    assert done.errors == b""
    assert json.loads(done.output) == {
        "writable": ["/dev/shm", "/tmp"],
        "runnable": [],
        "networks": ["lo"],
        "uid": 10001,
        "home": "/tmp",
        "CapEff": "0" * 16,
        "CapBnd": "0" * 16,
        "NoNewPrivs": "1",
    }


def test_files_that_are_to_be_ours(run: Callable[..., Done | None], tmp_path: Path) -> None:
    """What it writes to its mounts belongs to this user; otherwise it may not even write."""
    from docker.types import Mount

    tmp_path.chmod(0o700)
    mounts = (Mount("/out", str(tmp_path), type="bind"),)
    done = run("sh", "-c", "echo made > /out/file", mounts=mounts, ours=True)
    assert done == Done(b"", b"")
    assert (tmp_path / "file").read_text() == "made\n"
    assert (tmp_path / "file").stat().st_uid == os.getuid()
    done = run("sh", "-c", "echo made > /out/other", mounts=mounts)
    assert done is not None
    assert b"ermission denied" in done.errors
    assert os.listdir(tmp_path) == ["file"]
