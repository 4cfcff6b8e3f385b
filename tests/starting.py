"""Requests for workers as a pool makes them, for tests that start workers by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wuwan_runner.options import Timeouts, WorkerSpec
from wuwan_runner.resolved import resolve
from wuwan_runner.worker import StartRequest

if TYPE_CHECKING:
    from wuwan_runner.launchers.base import Launcher


def request_for(launcher: Launcher, spec: WorkerSpec, **changes: Any) -> StartRequest:
    """A worker of `spec`, started by `launcher`; it ends with its client unless a TTL is given."""
    wanted = resolve(spec)
    settings: dict[str, Any] = {
        "ttl": 0.0,
        "timeouts": Timeouts(),
        "notify": lambda _: None,
    } | changes
    return StartRequest(
        wanted=wanted,
        key=launcher.key(wanted),
        placement=lambda: launcher.placement(wanted, settings["timeouts"]),
        **settings,
    )
