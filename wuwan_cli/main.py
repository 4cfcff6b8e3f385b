"""The console entry point. Nothing heavy is imported before the error boundary stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wuwan_cli.shell import boundary

if TYPE_CHECKING:
    from wuwan_cli.shell.signals import Signals


def run() -> None:
    """Run `wuwan` with the process's arguments and end the process."""
    boundary.run(_main)


def _main(signals: Signals) -> None:
    from wuwan_cli.app import app

    app(prog_name="wuwan", obj=signals)
