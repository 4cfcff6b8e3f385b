"""`wuwan stop`: end workers before their TTL does."""

from __future__ import annotations

from typing import Annotated

import typer

from wuwan_cli import options as opts
from wuwan_runner import bounds
from wuwan_runner.errors import UsageError
from wuwan_runner.options import MAX_TIMEOUT, Timeouts

app = opts.application()


@app.command()
def stop(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="As `wuwan ps` shows it, or its beginning.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout",
            metavar="SECONDS",
            callback=lambda value: bounds.number("timeout", value, 0, MAX_TIMEOUT, unit="seconds"),
            help="How long a worker may take to answer what it has; then it is killed.",
        ),
    ] = 30.0,
) -> None:
    """Have workers answer what they have, and end. Runs that use them go on elsewhere."""
    from wuwan_runner.pool import registry

    if (name is None) != everything:
        raise UsageError("name one worker, or --all", hint="`wuwan ps` shows their names")
    timeouts = Timeouts()
    chosen = registry.members(timeouts) if name is None else [registry.named(name, timeouts)]
    if not chosen:
        typer.echo("no worker is up")
    for member in chosen:
        gently = registry.stop(member, timeouts, timeout)
        typer.echo(f"{member.name} {'stopped' if gently else 'killed'}")
