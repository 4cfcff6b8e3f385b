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
    import docker

_LOG_LINES = 20
_MEMORY = 3600.0  # seconds of the past in which a container's end is looked for
_LAST_EVENT = 2.0  # seconds an end that is under way may take
_FRESH = 5.0  # seconds: a newer end is the one that is asked for


def post_mortem(client: docker.DockerClient, name: str) -> WorkerExit:
    """How a container ended; empty if the daemon does not know, or it goes on.

    A container that removes itself leaves nothing to inspect, but the daemon remembers its last
    events. Its end may be under way: it is waited for, a little.
    """
    now = time.time()
    oom, killed, code = False, False, ""
    until: Any = f"{now + _LAST_EVENT:.3f}"  # the daemon takes fractions, docker-py no floats
    events = client.api.events(
        since=int(now - _MEMORY),
        until=until,
        filters={"container": name},
        decode=True,
    )
    try:
        for event in events:
            action = str(event.get("Action", ""))
            if action == "start":  # a container of that name that came after the last one's end
                oom, killed, code = False, False, ""
            oom = oom or action == "oom"
            killed = killed or action == "kill"
            if action == "die":
                code = str(event.get("Actor", {}).get("Attributes", {}).get("exitCode", ""))
                if float(event.get("time", 0)) > now - _FRESH:
                    break
    finally:
        daemon.hang_up(events)
    if not code:
        return WorkerExit()
    if oom or (code == "137" and not killed):  # 128 + SIGKILL, and it was not the daemon's
        return WorkerExit("likely out of memory (exit code 137); see --memory")
    if killed:
        return WorkerExit(f"stopped or removed by somebody (exit code {code})", by_hand=True)
    return WorkerExit(f"exit code {code}", in_order=code == "0")


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
        self._stream = client.api.attach(
            container, stdout=True, stderr=True, stream=True, logs=True
        )
        self._thread = threading.Thread(target=self._read, name="container-log", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        pending = ""
        with contextlib.suppress(Exception):  # the stream ends with the container, or with `close`
            for chunk in self._stream:
                pending += chunk.decode(errors="replace")
                *lines, pending = pending.split("\n")
                self._lines.extend(line for line in lines if line.strip())
        if pending.strip():
            self._lines.append(pending)
        self._over.set()

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
