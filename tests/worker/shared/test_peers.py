"""Who is at the other end: real user namespaces, in which other users look alike."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import wuwan_worker
from tests.faults.stranger import REQUESTS, as_stranger, commands
from wuwan_worker.shared import peers, protocol
from wuwan_worker.shared.protocol import Adopt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Client

PACKAGES = Path(wuwan_worker.__file__).parents[1]
ASK = "import os; from wuwan_worker.shared import peers; print(peers.ambiguous(os.getuid()))"
TOKEN = "secret"  # noqa: S105  # a test's
root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")


def _unshare(*options: str) -> list[str]:
    command = ["unshare", "--user", *options]
    try:
        done = subprocess.run([*command, "true"], capture_output=True, timeout=10, check=False)
    except FileNotFoundError:
        pytest.skip("no unshare command here")
    if done.returncode:
        pytest.skip(f"no user namespace can be made here: {done.stderr.decode().strip()}")
    return command


@pytest.mark.parametrize(("options", "expected"), [((), "True"), (("--map-root-user",), "False")])
def test_a_user_that_is_not_mapped_could_be_anybody(
    options: tuple[str, ...], expected: str
) -> None:
    """One that is mapped is nobody else, whoever is not."""
    done = subprocess.run(
        [*_unshare(*options), sys.executable, "-c", ASK],
        env=os.environ | {"PYTHONPATH": str(PACKAGES)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.stdout == f"{expected}\n", done.stderr


def test_where_all_users_are_mapped_they_can_be_told_apart() -> None:
    """There `nobody` is nobody else, either."""
    if Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]:
        pytest.skip("these tests run in a user namespace of their own")
    assert not peers.ambiguous(os.getuid())
    assert not peers.ambiguous(65534)


class Remapped:
    """A worker in a user namespace in which its owner is not mapped."""

    def __init__(self, directory: Path, adopt: Adopt) -> None:
        self.name = f"\0wuwan-test-{secrets.token_hex(8)}"
        path = str(directory / "boot")
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as boot,
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener,
        ):
            listener.bind(self.name)
            listener.listen(64)
            boot.bind(path)
            boot.listen(1)
            boot.settimeout(20)
            command = [sys.executable, "-m", "wuwan_worker", "--adopt", path, "--name", "test"]
            self.process = subprocess.Popen(
                [*_unshare(), *command],
                env=os.environ | {"PYTHONPATH": str(PACKAGES)},
                stderr=subprocess.PIPE,
            )
            launcher, _ = boot.accept()
            with launcher:
                protocol.send_frame(launcher, adopt, [listener.fileno()])

    def stop(self) -> str:
        """End it; what it said."""
        self.process.kill()
        _, said = self.process.communicate(timeout=20)
        return said.decode()


@pytest.fixture
def remapped(tmp_path: Path) -> Iterator[Callable[[Adopt], Remapped]]:
    """Starts such a worker."""
    workers: list[Remapped] = []

    def make(adopt: Adopt) -> Remapped:
        workers.append(Remapped(tmp_path, adopt))
        return workers[-1]

    yield make
    for worker in workers:
        if worker.process.returncode is None:
            worker.stop()


@root
def test_a_stranger_in_the_owners_clothes(
    remapped: Callable[[Adopt], Remapped], connect: Callable[[str], Client], photos: Path
) -> None:
    """To the worker he has the owner's user id; without the token he gets nothing from it."""
    worker = remapped(Adopt(token=TOKEN))
    assert connect(worker.name).hello(token=TOKEN).readable
    photo = Path(f"/tmp/wuwan-stranger-{secrets.token_hex(4)}.png")
    photo.write_bytes((photos / "coffee.png").read_bytes())
    photo.chmod(0o644)
    try:
        said = commands(worker.name, photo)
    finally:
        photo.unlink()
    assert set(said) == {"forbidden", "protocol"}, said
    assert said.count("protocol") == len(REQUESTS)  # those without a Hello
    assert connect(worker.name).hello(token=TOKEN).readable
    assert "users cannot be told apart here" in worker.stop()


def test_without_any_token_nobody_is_served(remapped: Callable[[Adopt], Remapped]) -> None:
    """An empty one would be everybody's."""
    worker = remapped(Adopt())
    _, said = worker.process.communicate(timeout=20)
    assert worker.process.returncode == 71
    assert b"there is no token to ask them for" in said


@root
def test_a_run_of_a_user_that_is_not_mapped(
    namespace: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker is its own: it takes no other one for its user's, and lets no other user in."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    paths = sorted(photos.glob("*.[jp][pn]g"))[:3]
    photo = Path(f"/tmp/wuwan-stranger-{secrets.token_hex(4)}.png")
    photo.write_bytes(paths[0].read_bytes())
    photo.chmod(0o644)
    command = [*_unshare(), sys.executable, "-m", "wuwan_cli", "tag", "-", "--runner=local"]
    with subprocess.Popen(
        [*command, "--ttl=60"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as run:
        assert run.stdin is not None
        assert run.stdout is not None
        try:
            run.stdin.write("".join(f"{path}\n" for path in paths).encode())
            run.stdin.flush()
            assert all(b'"labels"' in run.stdout.readline() for _ in paths)
            sockets = Path("/proc/net/unix").read_text().split()
            (name,) = {word for word in sockets if word.startswith(f"@{namespace}/")}
            said = commands(f"\0{name[1:]}", photo)
            assert set(said) == {"forbidden", "protocol"}, said
            _, messages = run.communicate(timeout=20)
        finally:
            run.kill()
            photo.unlink()
    assert run.returncode == 0, messages
    assert b"the worker ends with this run" in messages


@root
def test_the_stranger_is_another_user() -> None:
    """What the tests of strangers stand on."""
    assert as_stranger(os.getuid) == 12345
    assert as_stranger(os.getgroups) == []
