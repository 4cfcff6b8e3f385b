"""All workers of this user, however they are reached, by name: for `wuwan ps`, `stop`, `logs`."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wuwan_runner import launchers
from wuwan_runner.containers import container, daemon
from wuwan_runner.errors import UsageError, WorkerUnavailableError
from wuwan_runner.wire import address, control
from wuwan_runner.wire.control import Control, GoneError, NoAnswerError
from wuwan_worker.shared.protocol import Welcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wuwan_runner.options import Timeouts
    from wuwan_runner.wire.address import Address
    from wuwan_worker.shared.protocol import Status


# Each of them takes a Docker client and two threads more.
_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class RunningWorker:
    """One worker: how to reach it, and what it says, or why it says nothing."""

    name: str
    address: Address | None  # None: in a container, through the exec channel
    status: Status | None
    problem: str = ""
    welcome: Welcome | None = None  # what it has said of itself, if anything

    @property
    def known(self) -> Welcome | None:
        """Who it is, for its launcher: by what it has said, or by its container's name."""
        if self.welcome is None and self.address is None:
            return Welcome(name=self.name, runner="docker")
        return self.welcome

    @contextmanager
    def control(self, timeouts: Timeouts) -> Iterator[Control]:
        """A control connection. Raises NoAnswerError."""
        if self.address is not None:
            with control.attach(self.address, timeouts.control) as connection:
                yield connection
        else:
            from wuwan_runner.containers.exec_channel import control_of

            with control_of(self.name, timeouts) as connection:
                yield connection


def members(timeouts: Timeouts) -> list[RunningWorker]:
    """The workers that are up. One that ends meanwhile is not among them.

    Raises:
        WorkerUnavailableError: if the daemon is elsewhere and does not answer, or is not known.
    """
    found = [
        RunningWorker(
            seen.welcome.name if seen.welcome else "?",
            seen.address,
            seen.status,
            seen.problem,
            seen.welcome,
        )
        for seen in control.survey(timeouts.control)
    ]
    known = {member.name for member in found}
    if daemon.is_remote():
        distant = [name for name in _containers(timeouts) if name not in known]
        asked = control.side_by_side(lambda name: _ask(name, timeouts), distant, _AT_ONCE)
        found += [member for member in asked if member is not None]
    return found


def _ask(name: str, timeouts: Timeouts) -> RunningWorker | None:
    try:
        with RunningWorker(name, None, None).control(timeouts) as connection:
            return RunningWorker(name, None, connection.status(), welcome=connection.welcome)
    except GoneError:
        return None
    except NoAnswerError as error:
        return RunningWorker(name, None, None, str(error))


def _containers(timeouts: Timeouts) -> list[str]:
    """The names of this user's running worker containers."""
    with daemon.connected(timeouts.docker) as client:
        listed = client.api.containers(
            filters={
                "label": [
                    f"{container.LABEL_NAMESPACE}={address.namespace()}",
                    f"{container.LABEL_OWNER}={os.getuid()}",
                ]
            }
        )
    return sorted(one["Labels"][container.LABEL_WORKER] for one in listed)


def named(name: str, timeouts: Timeouts) -> RunningWorker:
    """The worker of that name (or the only one whose name begins so).

    Raises:
        UsageError: if there is none, or more than one.
    """
    everyone = members(timeouts)
    matches = [member for member in everyone if member.name == name] or [
        member for member in everyone if name and member.name.startswith(name)
    ]
    if len(matches) != 1:
        there = ", ".join(member.name for member in everyone) or "no worker is up"
        problem = "no worker" if not matches else "more than one worker"
        raise UsageError(f"{problem} is named {name!r}", hint=f"there is: {there}")
    return matches[0]


def stop(member: RunningWorker, timeouts: Timeouts, drain: float) -> bool:
    """Have a worker drain and end; if it has not after `drain` seconds, end it by force.

    By force also where it cannot be spoken to, because it hangs or speaks otherwise, as long as it
    is known who it is.

    Returns:
        Whether it ended by itself.

    Raises:
        WorkerUnavailableError: if it cannot be ended; it says how to do it by hand.
    """
    deadline = time.monotonic() + drain
    welcome: Welcome | None = None
    gone = False
    try:
        with member.control(timeouts) as connection:
            welcome = connection.welcome
            connection.stop()
            if connection.wait_for_end(max(0.0, deadline - time.monotonic())):
                return True
    except NoAnswerError as error:
        gone = isinstance(error, GoneError)
    if welcome is None:
        # A worker that drains has no address any more, so this says nothing once it has spoken.
        if gone if member.address is None else member.address not in address.listed():
            return True  # it has ended meanwhile
        welcome = member.known
    if welcome is None or welcome.runner not in launchers.REGISTRY:
        raise WorkerUnavailableError(
            f"worker {member.name} does not answer, or not with a name and a runner that are known",
            hint="`docker ps` and `ps` show it; remove it by hand",
        )
    launchers.get(welcome.runner).kill(welcome, timeouts)
    return False
