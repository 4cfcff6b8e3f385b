"""How a container ended, and its last words, when nothing of it is left to look at."""

from __future__ import annotations

import itertools
import subprocess
import time
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from tests.runner.containers.conftest import wait_until
from wuwan_runner.containers import endings
from wuwan_runner.containers.endings import LogTail, half_start
from wuwan_runner.errors import EndedByHandError, WorkerUnavailableError
from wuwan_runner.worker import WorkerExit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import docker

OUT_OF_MEMORY = WorkerExit("likely out of memory (exit code 137); see --memory")


@pytest.mark.docker
class TestPostMortem:
    """By the daemon's events alone: the containers have removed themselves."""

    @pytest.mark.parametrize(
        ("script", "expected"),
        [
            ("exit 0", WorkerExit("exit code 0", in_order=True)),
            ("exit 3", WorkerExit("exit code 3")),
            ("kill -SEGV $$", WorkerExit("exit code 139")),
            # Not by the daemon: so it was the kernel, which has one reason to.
            ("kill -KILL $$", OUT_OF_MEMORY),
        ],
    )
    def test_by_itself(
        self,
        client: docker.DockerClient,
        make_container: Callable[..., str],
        gone: Callable[[str], None],
        script: str,
        expected: WorkerExit,
    ) -> None:
        """Its exit code is what is known; 0 is an end in order."""
        name = make_container("sh", "-c", script)
        gone(name)
        assert endings.post_mortem(client, name) == expected

    def test_out_of_memory(
        self,
        client: docker.DockerClient,
        make_container: Callable[..., str],
        gone: Callable[[str], None],
    ) -> None:
        """Also where the kernel killed a child, and the container's own exit code is another."""
        host = client.api.create_host_config(
            network_mode="none", auto_remove=True, init=True, mem_limit="32m", memswap_limit="32m"
        )
        hungry = "python -c 'print(len(bytes(1) * 200_000_000))'"
        for script, code in ((f"exec {hungry}", 137), (f"{hungry}; exit 1", 1)):
            name = make_container("sh", "-c", script, host_config=host)
            gone(name)
            ending = endings.post_mortem(client, name)
            assert ending == OUT_OF_MEMORY, code

    @pytest.mark.parametrize(
        ("command", "code"),
        [
            (("kill",), 137),
            (("kill", "--signal", "TERM"), 143),
            (("stop",), 143),
            (("rm", "--force"), 137),
        ],
    )
    def test_by_hand(
        self,
        client: docker.DockerClient,
        make_container: Callable[..., str],
        gone: Callable[[str], None],
        command: tuple[str, ...],
        code: int,
    ) -> None:
        """Whatever somebody used for it: nobody is to blame."""
        name = make_container("sleep", "60")
        subprocess.run(["docker", *command, name], capture_output=True, timeout=30, check=True)
        gone(name)
        reason = f"stopped or removed by somebody (exit code {code})"
        assert endings.post_mortem(client, name) == WorkerExit(reason, by_hand=True)

    def test_some_time_ago(
        self,
        client: docker.DockerClient,
        make_container: Callable[..., str],
        gone: Callable[[str], None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It is known at once, until there is another container of that name."""
        monkeypatch.setattr(endings, "_FRESH", 0.0)
        name = make_container("sh", "-c", "exit 4")
        gone(name)
        started = time.monotonic()
        assert endings.post_mortem(client, name) == WorkerExit("exit code 4")
        assert time.monotonic() - started < endings._LAST_EVENT
        make_container("sleep", "60", name=name)
        assert endings.post_mortem(client, name) == WorkerExit()

    def test_the_last_of_that_name(
        self,
        client: docker.DockerClient,
        make_container: Callable[..., str],
        gone: Callable[[str], None],
    ) -> None:
        """What became of an earlier container is not its end."""
        name = make_container("sleep", "60")
        client.api.kill(name)
        gone(name)
        make_container("sh", "-c", "exit 4", name=name)
        gone(name)
        assert endings.post_mortem(client, name) == WorkerExit("exit code 4")

    def test_one_that_another_one_follows(
        self,
        client: docker.DockerClient,
        make_container: Callable[..., str],
        gone: Callable[[str], None],
    ) -> None:
        """Over the exec channel the next client takes the name at once: its worker goes on."""
        name = make_container("sh", "-c", "exit 4")
        gone(name)
        make_container("sleep", "60", name=name)
        assert endings.post_mortem(client, name) == WorkerExit("exit code 4")

    def test_one_that_goes_on(
        self, client: docker.DockerClient, make_container: Callable[..., str]
    ) -> None:
        """It has no end, nor has one that nobody has heard of; and the question takes seconds."""
        name = make_container("sleep", "60")
        started = time.monotonic()
        assert endings.post_mortem(client, name) == WorkerExit()
        assert endings.post_mortem(client, "wuwan-test-never-there") == WorkerExit()
        assert time.monotonic() - started < 15

    def test_an_end_that_is_under_way(
        self, client: docker.DockerClient, make_container: Callable[..., str]
    ) -> None:
        """It is waited for: the connection to a worker ends before its container does."""
        name = make_container("sh", "-c", "sleep 0.5; exit 6")
        assert endings.post_mortem(client, name) == WorkerExit("exit code 6")


@pytest.fixture
def tail(client: docker.DockerClient) -> Iterator[LogTail]:
    """One that follows nothing yet, and nothing any more afterwards."""
    followed = LogTail()
    yield followed
    followed.close()
    assert followed._thread is not None
    assert not followed._thread.is_alive()


@pytest.mark.docker
@pytest.mark.usefixtures("descriptors")
class TestLogTail:
    """The last lines of a container."""

    def follow(
        self,
        client: docker.DockerClient,
        tail: LogTail,
        make_container: Callable[..., str],
        *command: str,
    ) -> str:
        """Follow a new container from before its start."""
        name = make_container(*command, start=False)
        tail.follow(client, name)
        client.api.start(name)
        return name

    def test_the_last_lines(
        self, client: docker.DockerClient, tail: LogTail, make_container: Callable[..., str]
    ) -> None:
        """Twenty of them, without empty ones, the last one with no newline; of both streams."""
        self.follow(client, tail, make_container, "sh", "-c", "seq 1 50; echo; echo; printf end")
        assert tail.ended(20).split("\n") == [*map(str, range(32, 51)), "end"]
        assert tail.over
        other = LogTail()
        self.follow(client, other, make_container, "sh", "-c", "echo out; echo error >&2")
        assert sorted(other.ended(20).split("\n")) == ["error", "out"]
        other.close()

    def test_while_it_runs(
        self, client: docker.DockerClient, tail: LogTail, make_container: Callable[..., str]
    ) -> None:
        """What it has said so far; that it ends is waited for until a deadline."""
        name = self.follow(client, tail, make_container, "sh", "-c", "echo up; exec sleep 60")
        wait_until(lambda: tail.text() == "up")
        assert not tail.over
        assert tail.ended(0.0) == ""
        client.api.kill(name)
        assert tail.ended(20) == "up"

    def test_split_characters(
        self, client: docker.DockerClient, tail: LogTail, make_container: Callable[..., str]
    ) -> None:
        """Half a character is one as soon as the other half comes (fault 13 of docs/faults.md)."""
        # It waits for SIGUSR1 in the middle of a character.
        script = (
            "import os, signal\n"
            "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n"
            "os.write(1, b'ready\\n\\xe7')\n"
            "signal.sigwait([signal.SIGUSR1])\n"
            "os.write(1, b'\\x8b\\x97\\n')\n"
        )
        name = self.follow(client, tail, make_container, "python", "-c", script)
        wait_until(lambda: tail.text() == "ready")
        client.api.kill(name, "USR1")
        assert tail.ended(20) == "ready\n狗"

    def test_to_stop_following(
        self, client: docker.DockerClient, tail: LogTail, make_container: Callable[..., str]
    ) -> None:
        """Takes no time, though the container goes on."""
        name = self.follow(client, tail, make_container, "sleep", "60")
        started = time.monotonic()
        tail.close()
        assert time.monotonic() - started < 1.5
        assert client.api.inspect_container(name)["State"]["Running"]


def test_a_line_without_end() -> None:
    """Whatever a container says, a few of its last bytes are kept, and no more are held."""
    tail = LogTail()
    tail._stream = itertools.chain(itertools.repeat(b"x" * 65536, 400), [b"\nshort\nend"])
    tracemalloc.start()
    try:
        tail._read()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
    long, *others = tail.text().split("\n")
    assert others == ["short", "end"]
    assert set(long) == {"x"}


def test_to_stop_before_it_began() -> None:
    """Nothing to stop."""
    LogTail().close()


@pytest.mark.parametrize(
    ("ending", "kind", "message"),
    [
        (
            WorkerExit("exit code 1", "last words"),
            WorkerUnavailableError,
            "the container ended before its worker was up: exit code 1\nlast words",
        ),
        (
            WorkerExit(),
            WorkerUnavailableError,
            "the container ended before its worker was up",
        ),
        (
            WorkerExit("stopped or removed by somebody (exit code 137)", by_hand=True),
            EndedByHandError,
            "the container was stopped or removed by somebody (exit code 137)",
        ),
    ],
)
def test_half_a_start(ending: WorkerExit, kind: type, message: str) -> None:
    """Where somebody ended it another one may be started; otherwise the image is looked at."""
    error = half_start(ending)
    assert type(error) is kind
    assert str(error) == message
    assert ("wuwan image build" in error.hint) is not ending.by_hand
