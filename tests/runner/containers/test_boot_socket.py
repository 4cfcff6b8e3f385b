"""How a container's worker gets the socket to listen on."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from wuwan_runner.containers import boot_socket
from wuwan_runner.containers.endings import LogTail
from wuwan_runner.errors import EndedByHandError, WorkerUnavailableError
from wuwan_runner.worker import WorkerExit
from wuwan_worker.shared import protocol
from wuwan_worker.shared.protocol import Adopt, FrameDecoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import docker

ADOPT = Adopt(token="x" * 64, shared=False)


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory for boot sockets."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """What a worker is to listen on."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"\0wuwan-test-boot-{os.urandom(6).hex()}")
        sock.listen()
        yield sock


class TestDirectory:
    """Where the socket is until the worker has it."""

    def test_the_first_safe_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """That of the session; the machine's where others could replace what is ours."""
        monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "tmp"))
        (tmp_path / "run").mkdir(mode=0o700)
        (tmp_path / "tmp").mkdir()
        (tmp_path / "tmp").chmod(0o1777)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
        assert boot_socket.base() == tmp_path / "run"
        (tmp_path / "run").chmod(0o777)
        assert boot_socket.base() == tmp_path / "tmp"
        monkeypatch.delenv("XDG_RUNTIME_DIR")
        (tmp_path / "run").chmod(0o700)
        assert boot_socket.base() == tmp_path / "tmp"
        (tmp_path / "tmp").chmod(0o777)
        with pytest.raises(WorkerUnavailableError, match="no directory for a socket") as caught:
            boot_socket.base()
        assert str(tmp_path / "tmp") in str(caught.value)
        assert "TMPDIR" in caught.value.hint

    def test_who_may_open_it(self, runtime: Path) -> None:
        """Any user of a container, and nobody else: its directory is ours alone."""
        with boot_socket.made() as (boot, path):
            assert path.parent.parent == runtime
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            assert stat.S_IMODE(path.stat().st_mode) == 0o666
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                boot.accept()[0].close()
        assert os.listdir(runtime) == []

    def test_whatever_happens_it_goes(self, runtime: Path) -> None:
        """And with it the socket; others cannot connect any more."""
        with pytest.raises(ZeroDivisionError), boot_socket.made() as (boot, _):
            raise ZeroDivisionError
        assert boot.fileno() == -1
        assert os.listdir(runtime) == []

    def test_nothing_else_is_removed(self, runtime: Path) -> None:
        """A file that is not ours keeps its directory; a link is not followed."""
        (runtime / "full").mkdir(mode=0o700)
        (runtime / "full" / "s").touch()
        (runtime / "full" / "other").touch()
        boot_socket.remove_directory(runtime / "full")
        assert os.listdir(runtime / "full") == ["other"]
        (runtime / "target").mkdir(mode=0o700)
        (runtime / "target" / "s").touch()
        (runtime / "link").symlink_to("target")
        boot_socket.remove_directory(runtime / "link")
        assert os.listdir(runtime / "target") == ["s"]
        boot_socket.remove_directory(runtime / "not there")


def hand_over(boot: socket.socket, listener: socket.socket, **settings: Any) -> None:
    """With what does not matter left out."""
    boot_socket.hand_over(
        boot,
        listener,
        ADOPT,
        settings.get("log", LogTail()),
        settings.get("timeout", 20.0),
        settings.get("cancelled", threading.Event()),
        settings.get("post_mortem", WorkerExit),
    )


@pytest.mark.usefixtures("runtime")
class TestHandOver:
    """From the client to the worker in its container."""

    def test_the_worker_has_the_socket(self, listener: socket.socket) -> None:
        """The very one: who connects to its name from now on is the worker's client."""
        adopted: list[socket.socket] = []

        def work(path: Path) -> None:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(20)
                sock.connect(str(path))
                (frame,) = FrameDecoder(protocol.CONTAINER).feed(*protocol.receive(sock))
                assert frame.message == ADOPT
                (descriptor,) = frame.descriptors
                adopted.append(socket.socket(fileno=descriptor))

        with boot_socket.made() as (boot, path):
            worker = threading.Thread(target=work, args=(path,))
            worker.start()
            hand_over(boot, listener)
            worker.join(20)
        name = listener.getsockname()
        listener.close()
        with adopted.pop() as theirs, socket.socket(socket.AF_UNIX) as client:
            theirs.settimeout(20)
            client.connect(name)
            theirs.accept()[0].close()

    def test_a_worker_that_does_not_come(self, listener: socket.socket) -> None:
        """At the deadline it is said how long that was."""
        with (
            boot_socket.made() as (boot, _),
            pytest.raises(WorkerUnavailableError, match=r"not come up within 0 s") as caught,
        ):
            hand_over(boot, listener, timeout=0.2)
        assert "share this machine's file system" in caught.value.hint

    def test_a_start_that_is_called_off(self, listener: socket.socket) -> None:
        """Takes no longer than a moment, whatever the deadline."""
        cancelled = threading.Event()
        timer = threading.Timer(0.1, cancelled.set)
        started = time.monotonic()
        timer.start()
        with (
            boot_socket.made() as (boot, _),
            pytest.raises(WorkerUnavailableError, match="was not up after 0 s"),
        ):
            hand_over(boot, listener, timeout=60.0, cancelled=cancelled)
        assert time.monotonic() - started < 10
        timer.join()

    @pytest.mark.docker
    @pytest.mark.parametrize(
        ("ending", "kind"),
        [
            (WorkerExit("exit code 3"), WorkerUnavailableError),
            (WorkerExit("stopped", by_hand=True), EndedByHandError),
        ],
    )
    def test_a_container_that_ends(
        self,
        listener: socket.socket,
        client: docker.DockerClient,
        make_container: Callable[..., str],
        ending: WorkerExit,
        kind: type,
    ) -> None:
        """How it ended, and its last words, long before the deadline."""
        name = make_container("sh", "-c", "echo last words; exit 3", start=False)
        log = LogTail()
        log.follow(client, name)
        started = time.monotonic()
        try:
            client.api.start(name)
            with boot_socket.made() as (boot, _), pytest.raises(kind) as caught:
                hand_over(boot, listener, timeout=60.0, log=log, post_mortem=lambda: ending)
        finally:
            log.close()
        assert type(caught.value) is kind
        assert f"{ending}\nlast words" in str(caught.value)
        assert time.monotonic() - started < 30
