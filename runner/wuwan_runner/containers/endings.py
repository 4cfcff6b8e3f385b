"""What a container said, and how it ended: read while it lives, since it removes itself."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from wuwan_runner.containers import daemon
from wuwan_runner.errors import EndedByHandError, WorkerUnavailableError
from wuwan_runner.worker import WorkerExit

if TYPE_CHECKING:
    from collections.abc import Iterator

    import docker

_LOG_LINES = 20
_MEMORY = 3600.0  # seconds of the past in which a container's end is looked for
_LAST_EVENT = 2.0  # seconds an end that is under way may take
_FRESH = 5.0  # seconds: a newer end is the one that is asked for, whatever came after it
_LINE = 4000  # bytes of a line that are kept: what a container says may have no end


def post_mortem(client: docker.DockerClient, name: str) -> WorkerExit:
    """How a container ended; empty if the daemon does not know, or it goes on.

    A container that removes itself leaves nothing to inspect, but the daemon remembers its last
    events. Its end may be under way: it is waited for, a little.
    """
    now = time.time()
    story = _Story()
    for event in _events(client, name, now - _MEMORY, now):
        story.add(event)
    if not story.goes_on or story.ended_at > now - _FRESH:
        return story.ending
    for event in _events(client, name, now, now + _LAST_EVENT):
        story.add(event)
        if not story.goes_on:
            return story.ending
    return WorkerExit()


class _Story:
    """What the daemon's events tell of the containers of one name, one after the other."""

    def __init__(self) -> None:
        self.goes_on = True  # as far as is known
        self.ended_at = 0.0  # the last end, and how it was
        self.ending = WorkerExit()
        self._out_of_memory = self._killed = False

    def add(self, event: dict[str, Any]) -> None:
        """The next event."""
        match event.get("Action"):
            case "start":
                self.goes_on = True
                self._out_of_memory = self._killed = False
            case "oom":
                self._out_of_memory = True
            case "kill":
                self._killed = True
            case "die":
                self.goes_on = False
                self.ended_at = float(event.get("time", 0))
                self.ending = self._end(str(event["Actor"]["Attributes"].get("exitCode", "")))

    def _end(self, code: str) -> WorkerExit:
        # 137 is 128 + SIGKILL, and that was not the daemon's.
        if self._out_of_memory or (code == "137" and not self._killed):
            return WorkerExit("likely out of memory (exit code 137); see --memory")
        if self._killed:
            return WorkerExit(f"stopped or removed by somebody (exit code {code})", by_hand=True)
        return WorkerExit(f"exit code {code}", in_order=code == "0")


def _events(
    client: docker.DockerClient, name: str, since: float, until: float
) -> Iterator[dict[str, Any]]:
    # The daemon takes fractions, docker-py no floats.
    times: dict[str, Any] = {"since": f"{since:.3f}", "until": f"{until:.3f}"}
    events = client.api.events(filters={"container": name}, decode=True, **times)
    try:
        yield from events
    finally:
        daemon.hang_up(events)


def half_start(ending: WorkerExit) -> WorkerUnavailableError:
    """The error for a container that has ended before its worker was up."""
    if ending.by_hand:
        return EndedByHandError(f"the container was {ending}")
    return WorkerUnavailableError(
        f"the container ended before its worker was up: {ending}".removesuffix(": "),
        hint="is the image from this version? `wuwan image build` makes it anew",
    )


class LogTail:
    """The last lines of a container's output, followed from before its start.

    A container that removes itself takes its log with it, so it is read while it runs.
    """

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_LOG_LINES)
        self._over = threading.Event()
        self._stream: Any = None
        self._thread: threading.Thread | None = None

    def follow(self, client: docker.DockerClient, container: str) -> None:
        """Attach to a created container."""
        self._stream = client.api.attach(container, stdout=True, stderr=True, stream=True)
        self._thread = threading.Thread(target=self._read, name="container-log", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        pending = b""
        with contextlib.suppress(Exception):  # the stream ends with the container, or with `close`
            for chunk in self._stream:
                # Only whole lines are decoded: a chunk may end within a character.
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    self._keep(line)
                pending = pending[-_LINE:]
        self._keep(pending)
        self._over.set()

    def _keep(self, line: bytes) -> None:
        text = line[-_LINE:].decode(errors="replace")
        if text.strip():
            self._lines.append(text)

    @property
    def over(self) -> bool:
        """Whether the container has ended."""
        return self._over.is_set()

    def text(self) -> str:
        """The last lines."""
        return "\n".join(self._lines)

    def ended(self, timeout: float) -> str:
        """The last lines if the container ends within `timeout` seconds, else ""."""
        return self.text() if self._over.wait(timeout) else ""

    def close(self) -> None:
        """Stop following."""
        if self._stream is not None:
            with contextlib.suppress(Exception):
                self._stream.close()
        if self._thread is not None:
            self._thread.join(2.0)
        daemon.hang_up(self._stream)
