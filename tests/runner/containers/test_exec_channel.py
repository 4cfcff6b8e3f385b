"""The exec channel: Docker's multiplexed stream, and the container at its end.

What the daemon writes into the stream is played here; containers are real.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.starting import request_for
from wuwan_runner.containers import exec_channel
from wuwan_runner.containers.exec_channel import (
    Attachment,
    Bridge,
    ExecTransport,
    NoContainerError,
)
from wuwan_runner.errors import WorkerUnavailableError
from wuwan_runner.launchers.docker import DockerLauncher
from wuwan_runner.options import Timeouts, WorkerSpec
from wuwan_runner.wire.control import GoneError, NoAnswerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import docker

    from wuwan_runner.worker import StartRequest

STDOUT, STDERR = 1, 2
FRAMES = st.lists(st.tuples(st.sampled_from([STDOUT, STDERR]), st.binary(max_size=300)))


def multiplexed(*frames: tuple[int, bytes]) -> bytes:
    """As Docker's API describes it: kind, three zeros, length, content."""
    return b"".join(struct.pack(">B3xI", kind, len(data)) + data for kind, data in frames)


@contextlib.contextmanager
def bridge() -> Iterator[tuple[Bridge, socket.socket]]:
    """A bridge, and the daemon's end of its connection."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    theirs.settimeout(20)
    made = Bridge(ours)
    with theirs:
        yield made, theirs
        made.close()


def read_all(made: Bridge) -> list[bytes]:
    """What it gives until its end."""
    return list(iter(made.read, b""))


class TestBridge:
    """Both directions of the stream."""

    @settings(deadline=None)
    @given(frames=FRAMES, cuts=st.lists(st.integers(1, 20), min_size=1, max_size=20))
    def test_split_anywhere(self, frames: list[tuple[int, bytes]], cuts: list[int]) -> None:
        """Standard output comes whole and in order, and none of it is standard error."""
        data = multiplexed(*frames)

        def write(peer: socket.socket) -> None:
            start, number = 0, 0
            while start < len(data):
                size = cuts[number % len(cuts)]
                peer.sendall(data[start : start + size])
                start, number = start + size, number + 1
            peer.shutdown(socket.SHUT_WR)

        with bridge() as (made, peer):
            writer = threading.Thread(target=write, args=(peer,))
            writer.start()
            pieces = read_all(made)
            writer.join(20)
            assert pieces == [part for kind, part in frames if kind == STDOUT and part]
            said = b"".join(part for kind, part in frames if kind == STDERR)
            assert made.errors == said.decode(errors="replace").strip()

    def test_the_last_of_its_errors(self) -> None:
        """A bridge that goes on complaining takes no memory."""
        with bridge() as (made, peer):
            for number in range(1000):
                peer.sendall(multiplexed((STDERR, f"error {number:06}\n".encode())))
                peer.sendall(multiplexed((STDOUT, b"x")))
                assert made.read() == b"x"
            assert len(made.errors) <= 4000
            assert made.errors.endswith("error 000998\nerror 000999")

    def test_an_empty_frame_is_no_end(self) -> None:
        """The end of the stream is: `read` gives nothing only then."""
        with bridge() as (made, peer):
            peer.sendall(multiplexed((STDOUT, b""), (STDOUT, b"more")))
            peer.shutdown(socket.SHUT_WR)
            assert read_all(made) == [b"more"]

    @pytest.mark.parametrize("kind", [STDOUT, STDERR])
    def test_cut_in_the_middle(self, kind: int) -> None:
        """Half a frame is nothing, wherever it is cut: what is missing is seen by the trailer."""
        frame = multiplexed((kind, b"content"))
        for end in range(1, len(frame)):
            with bridge() as (made, peer):
                peer.sendall(multiplexed((STDOUT, b"whole")) + frame[:end])
                peer.shutdown(socket.SHUT_WR)
                assert read_all(made) == [b"whole"]

    def test_what_is_written(self) -> None:
        """Goes out as it is; its end is told apart from that of the other direction."""
        with bridge() as (made, peer):
            made.write(b"to the worker")
            made.finish()
            assert peer.recv(100) == b"to the worker"
            assert peer.recv(100) == b""
            peer.sendall(multiplexed((STDOUT, b"answer")))
            assert made.read() == b"answer"

    def test_to_hang_up(self) -> None:
        """Ends the wait of whoever reads."""
        with bridge() as (made, _):
            reader = threading.Thread(target=made.read)
            reader.start()
            made.hang_up()
            reader.join(20)
            assert not reader.is_alive()


@pytest.fixture
def request_here(docker_image: str) -> StartRequest:
    """For a worker in a container of the test image."""
    return request_for(DockerLauncher(), WorkerSpec(image=docker_image, gpus="none"))


@pytest.mark.docker
@pytest.mark.usefixtures("descriptors")
class TestAttachment:
    """The container of a name, as it is found."""

    def open(
        self, client: docker.DockerClient, name: str, *request: StartRequest, **timeouts: Any
    ) -> str:
        """Find or start it, and end the bridge again; what that has said."""
        attachment = Attachment(name, Timeouts(**timeouts), *request)
        made = attachment.open(client, threading.Event())
        made.finish()
        made.hang_up()
        made.close()
        if attachment.log is not None:
            attachment.log.close()
        return "started" if attachment.log is not None else "found"

    def test_no_container(self, client: docker.DockerClient) -> None:
        """Without a request none is started, and that is known at once."""
        started = time.monotonic()
        with pytest.raises(NoContainerError, match="there is no container wuwan-test-none"):
            self.open(client, "wuwan-test-none")
        assert time.monotonic() - started < 10

    def test_one_that_runs(
        self,
        client: docker.DockerClient,
        make_container: Callable[..., str],
        request_here: StartRequest,
    ) -> None:
        """It is joined, whether one might be started or not."""
        name = make_container("sleep", "60")
        assert self.open(client, name) == "found"
        assert self.open(client, name, request_here) == "found"

    def test_one_that_was_not_started(
        self,
        client: docker.DockerClient,
        make_container: Callable[..., str],
        request_here: StartRequest,
    ) -> None:
        """Its creator may be dead, so everybody starts it who may start one."""
        name = make_container("sleep", "60", start=False)
        with pytest.raises(WorkerUnavailableError, match="did not come up within 0 s"):
            self.open(client, name, start=0.3)
        assert client.api.inspect_container(name)["State"]["Status"] == "created"
        assert self.open(client, name, request_here) == "found"
        assert client.api.inspect_container(name)["State"]["Running"]

    def test_one_that_has_ended(
        self,
        client: docker.DockerClient,
        make_container: Callable[..., str],
        request_here: StartRequest,
    ) -> None:
        """One that does not remove itself makes room for a new one."""
        name = make_container(
            "false", host_config=client.api.create_host_config(network_mode="none")
        )
        client.api.wait(name, timeout=30)
        old = client.api.inspect_container(name)["Id"]
        assert self.open(client, name, request_here) == "started"
        assert client.api.inspect_container(name)["Id"] != old

    def test_one_that_is_paused(
        self, client: docker.DockerClient, make_container: Callable[..., str]
    ) -> None:
        """It is waited for, since `docker commit` pauses, too; but not for ever."""
        name = make_container("sleep", "60")
        client.api.pause(name)
        with pytest.raises(WorkerUnavailableError, match="did not come up within 0 s"):
            self.open(client, name, start=0.3)
        timer = threading.Timer(0.3, client.api.unpause, (name,))
        timer.start()
        assert self.open(client, name) == "found"
        timer.join()

    def test_a_worker_that_ends_at_once(
        self, client: docker.DockerClient, namespace: str, request_here: StartRequest
    ) -> None:
        """How, and with what words; the container is gone, and no other one is started."""
        # There is no such model in the image.
        missing = dataclasses.replace(request_here.wanted.model, name="missing")
        request = dataclasses.replace(
            request_here, wanted=dataclasses.replace(request_here.wanted, model=missing)
        )
        attachment = Attachment(f"{namespace}-bad", Timeouts(), request)

        def open_until_it_fails() -> None:
            while True:  # the bridge may come before the worker's end
                attachment.open(client, threading.Event()).close()

        with pytest.raises(WorkerUnavailableError, match="ended before its worker was up") as no:
            open_until_it_fails()
        assert "no model named 'missing'" in str(no.value)
        assert attachment.log is not None
        attachment.log.close()

    def test_nobody_waits_any_more(
        self, client: docker.DockerClient, namespace: str, request_here: StartRequest
    ) -> None:
        """Nothing is begun."""
        closing = threading.Event()
        closing.set()
        attachment = Attachment(f"{namespace}-off", Timeouts(), request_here)
        with pytest.raises(WorkerUnavailableError):
            attachment.open(client, closing)
        assert attachment.log is None
        assert not client.api.containers(all=True, filters={"name": f"{namespace}-off"})


@pytest.mark.docker
@pytest.mark.usefixtures("descriptors")
class TestControl:
    """Questions to a worker in a container."""

    def test_no_container(self) -> None:
        """The worker has ended, so nobody needs to hear of it."""
        with pytest.raises(GoneError), exec_channel.control_of("wuwan-test-none", Timeouts()):
            pass

    def test_no_worker_in_it(self, make_container: Callable[..., str]) -> None:
        """A container that says nothing is no worker that is gone."""
        name = make_container("sleep", "60")
        with (
            pytest.raises(NoAnswerError) as caught,
            exec_channel.control_of(name, Timeouts(control=1.0)),
        ):
            pass
        assert not isinstance(caught.value, GoneError)

    def test_no_daemon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whether the worker is gone nobody knows: the daemon's error is told."""
        monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
        with (
            pytest.raises(NoAnswerError, match="no Docker daemon answers") as caught,
            exec_channel.control_of("wuwan-test-none", Timeouts()),
        ):
            pass
        assert not isinstance(caught.value, GoneError)

    def test_a_transport_ends_with_its_connection(self, make_container: Callable[..., str]) -> None:
        """Its threads, too, within moments; the container lives on."""
        name = make_container("sleep", "60")
        before = threading.active_count()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        transport = ExecTransport(theirs, Attachment(name, Timeouts()), Timeouts())
        ours.close()
        transport.release()
        assert threading.active_count() == before
        assert transport.error is None
