"""`wuwan ps`: the workers that are up."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wuwan_cli import options as opts
from wuwan_runner.options import Timeouts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wuwan_runner.pool.registry import RunningWorker

_WIDE = 200  # characters

app = opts.application()


@app.command()
def ps(
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line: seconds, bytes.")
    ] = False,
) -> None:
    """Show the workers that are up: what they run, what they do, how long they stay."""
    from wuwan_runner.pool import registry

    found = registry.members(Timeouts())
    if as_json:
        for member in found:
            typer.echo(json.dumps(_fields(member), ensure_ascii=False))
    elif found:
        _show(found)
    else:
        typer.echo("no worker is up")


def _fields(member: RunningWorker) -> dict[str, Any]:
    if member.status is None:
        return {"name": member.name, "state": "unresponsive", "problem": member.problem}
    return dataclasses.asdict(member.status)


def _show(found: list[RunningWorker]) -> None:
    from wuwan_cli.screen.tables import Column, show

    texts = ("NAME", "MODEL", "RUNNER", "DEVICE", "STATE")
    figures = ("CLIENTS", "DONE", "IDLE", "TTL", "MEMORY", "GPU")
    columns = [Column(heading, whole=True) for heading in texts]
    columns += [Column(heading, whole=True, right=True) for heading in figures]
    # Into a pipe the table goes as wide as it is.
    show(columns, map(_row, found), piped_width=_WIDE)


def _row(member: RunningWorker) -> Sequence[str]:
    status = member.status
    if status is None:
        return (member.name, "", "", "", f"unresponsive: {member.problem}")
    return (
        status.name,
        status.model,
        status.runner,
        status.device,
        status.state,
        str(status.clients),
        f"{status.images_done:,}",
        _seconds(status.idle_for),
        _seconds(status.ttl_left),
        _mebibytes(status.memory),
        _mebibytes(status.gpu_memory) if status.gpu_memory else "-",
    )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} s"


def _mebibytes(value: int) -> str:
    return f"{value / 2**20:,.0f} MiB"
