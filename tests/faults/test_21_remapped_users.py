"""Fault 21: a container in which all users look alike (Docker's userns-remap).

The daemon is the test's own, and remaps users to those of an account made for it. The owner's runs
share a warm worker as on any daemon; another user of the machine gets nothing from it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults import stranger
from tests.faults.own_daemon import Daemon, running
from tests.faults.support import address_of, status_of
from wuwan_runner import WorkerSpec
from wuwan_runner.wire import proof

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wuwan_runner.wire.address import Address

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]

FIRST, COUNT = 1_500_000_000, 65536  # user ids that no machine gives to people


@contextlib.contextmanager
def _account() -> Iterator[str]:
    """An account with subordinate ids; afterwards all is as it was."""
    if os.geteuid() != 0 or shutil.which("useradd") is None:
        pytest.skip("remapping users needs an account made for it: root, and useradd")
    name = f"wuwan-remap-{secrets.token_hex(3)}"
    entry = f"{name}:{FIRST}:{COUNT}\n"
    files = {path: path.exists() for path in (Path("/etc/subuid"), Path("/etc/subgid"))}
    subprocess.run(
        ["useradd", "--system", "--no-create-home", "--user-group", "--shell=/bin/false", name],
        check=True,
        capture_output=True,
        timeout=30,
    )
    try:
        for path in files:
            with path.open("a") as file:
                file.write(entry)
        yield name
    finally:
        for path, was_there in files.items():
            kept = path.read_text().replace(entry, "")
            path.write_text(kept)
            if not (kept or was_there):
                path.unlink()
        subprocess.run(["userdel", name], check=True, capture_output=True, timeout=30)


@pytest.fixture(scope="module")
def daemon(docker_image: str) -> Iterator[Daemon]:
    """The daemon, up, with the image."""
    with _account() as name, running(f"--userns-remap={name}") as own:
        own.load(docker_image)
        yield own


@pytest.fixture
def target(
    daemon: Daemon, docker_image: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tools: Any
) -> Iterator[Address]:
    """Where the warm worker will be; the daemon is empty afterwards."""
    monkeypatch.setenv("DOCKER_HOST", daemon.unix)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    yield address_of("docker", WorkerSpec(image=docker_image))
    with contextlib.suppress(AssertionError):
        tools.eventually(lambda: not daemon.containers(), 10)
    left = daemon.containers()
    for name in left:
        daemon.command("rm", "-f", name)
    assert not left


@pytest.fixture
def photo(photos: Path) -> Iterator[Path]:
    """A photo of the stranger's own."""
    with contextlib.ExitStack() as stack:
        path = Path(f"/tmp/wuwan-stranger-{secrets.token_hex(4)}.png")
        shutil.copy(photos / "coffee.png", path)
        stack.callback(path.unlink)
        os.chown(path, stranger.UID, stranger.UID)
        yield path


def _tag(wuwan: Any, image: str, album: Any, *more: object) -> Any:
    return wuwan("tag", album.root, "--runner", "docker", "--image", image, *more)


def test_a_stranger_gets_nothing_the_owner_shares(
    tools: Any, wuwan: Any, target: Address, docker_image: str, photo: Path, daemon: Daemon
) -> None:
    album = tools.album(6)
    secret = Path(os.environ["XDG_STATE_HOME"], "wuwan", "secret")
    for _ in range(3):
        done = _tag(wuwan, docker_image, album, "--ttl", 60)
        assert (done.returncode, b"wuwan: 6 images" in done.stderr) == (0, True), done.stderr
        album.check(tools.parsed(done.stdout), tools.expected)
        assert b"with this run" not in done.stderr
        (container,) = daemon.containers()  # the second run found it warm

        said = stranger.commands(target.name, photo)
        assert set(said) == {"forbidden", "protocol"}, said
        assert said.count("protocol") == len(stranger.REQUESTS)  # those without a Hello
        # He cannot read what would help him.
        assert "Permission" in stranger.as_stranger(lambda: secret.read_bytes().hex())
        # Nor does a token for another worker.
        other = proof.token(f"{target.name}-1")
        assert set(stranger.commands(target.name, photo, (other,))) == {"forbidden", "protocol"}

    status = status_of(target)  # the owner's own questions are answered
    assert (status.name, status.images_done, status.ttl) == (container, 18, 60.0)
    assert container.encode() in wuwan("ps").stdout
    assert b"turned away: forbidden" in wuwan("logs", container).stdout
    stopped = wuwan("stop", container)
    assert stopped.returncode == 0, stopped.stderr
    tools.eventually(lambda: not daemon.containers(), 10, "the container is gone")


def test_without_a_secret_a_worker_is_its_runs_own(
    tools: Any,
    wuwan: Any,
    target: Address,
    docker_image: str,
    photo: Path,
    daemon: Daemon,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It ends with the run, whatever the TTL, and the run says so; doctor says why."""
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null/state")  # which root cannot make either
    album = tools.album(4)
    first = tools.start(
        "tag",
        "-",
        "--runner",
        "docker",
        "--image",
        docker_image,
        "--ttl",
        60,
        stdin=subprocess.PIPE,
    )
    first.process.stdin.write("".join(f"{path}\n" for path in album.paths).encode())
    first.process.stdin.flush()
    first.lines(3)
    said = stranger.commands(target.name, photo)
    assert set(said) == {"forbidden", "protocol"}, said

    second = _tag(wuwan, docker_image, album)  # it cannot use that one, and has its own
    assert second.returncode == 0, second.stderr
    album.check(tools.parsed(second.stdout), tools.expected)
    assert b"a warm worker is left alone" in second.stderr
    assert b"the worker ends with this run" in second.stderr
    assert second.stderr.count(b"\n") == 3

    code, _, messages = first.finish()
    assert code == 0, messages
    assert "the worker ends with this run" in messages
    tools.eventually(lambda: not daemon.containers(), 10, "both containers are gone")
    checks = json.loads(wuwan("doctor", "--json").stdout)["checks"]
    (state,) = (check for check in checks if check["name"] == "state directory")
    assert state["outcome"] == "warn"
    assert "/dev/null/state: Not a directory" in state["detail"]


def test_another_secret_needs_another_worker(
    tools: Any,
    wuwan: Any,
    target: Address,
    docker_image: str,
    daemon: Daemon,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A run with another state directory leaves the warm worker alone, and shares its own."""
    album = tools.album(2)
    states = [tmp_path / "state", tmp_path / "other"]
    for _ in range(2):
        for state in states:
            monkeypatch.setenv("XDG_STATE_HOME", str(state))
            done = _tag(wuwan, docker_image, album, "--ttl", 60)
            assert done.returncode == 0, done.stderr
            assert (b"left alone" in done.stderr) is (state == states[1])
    assert len(daemon.containers()) == 2
    for state in states:
        monkeypatch.setenv("XDG_STATE_HOME", str(state))
        wuwan("stop", "--all")
    tools.eventually(lambda: not daemon.containers(), 10, "both containers are gone")
