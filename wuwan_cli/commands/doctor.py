"""`wuwan doctor`: what works here, and what to do about what does not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from wuwan_cli import options as opts
from wuwan_runner.containers import boot_socket
from wuwan_runner.errors import ExitCode
from wuwan_worker.shared import dirs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wuwan_cli.screen.tables import Cell
    from wuwan_runner.doctor.checks import Check, Scope

app = opts.application()

_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    clean: Annotated[
        bool, typer.Option("--clean", help="First remove what dead runs have left behind.")
    ] = False,
    image: Annotated[
        str,
        typer.Option(
            "--image", metavar="NAME", help="The container image.  [default: this version's own]"
        ),
    ] = "",
) -> None:
    """Say what works here. Exit code 0 if at least one runner works, else 4."""
    from wuwan_cli.shell import boundary
    from wuwan_runner.doctor import checks

    scope = checks.Scope(
        image=image,
        directories={
            "runtime": boot_socket.bases(),
            "cache": [dirs.cache()],
            "state": [dirs.state()],
            "log": boundary.log_directories(),
        },
    )
    if clean:
        _clean(scope)
    found = checks.run(scope)
    runners = checks.usable(found)
    if as_json:
        typer.echo(_json(found, runners))
    else:
        _print(found, runners)
    raise typer.Exit(int(ExitCode.OK if any(runners.values()) else ExitCode.UNAVAILABLE))


def _clean(scope: Scope) -> None:
    from wuwan_cli.shell.boundary import say
    from wuwan_runner.doctor import checks, orphans

    for orphan in checks.all_orphans(scope.timeouts):
        orphans.remove(orphan, scope.timeouts)
        say(f"removed {orphan.kind} {orphan.name}")


def _json(found: list[Check], runners: dict[str, bool]) -> str:
    content = {
        "v": 1,
        "ok": any(runners.values()),
        "runners": runners,
        "checks": [
            {
                "name": check.name,
                "outcome": str(check.outcome),
                "detail": check.detail,
                "advice": check.advice,
            }
            for check in found
        ],
    }
    return json.dumps(content, ensure_ascii=False)


def _print(found: list[Check], runners: dict[str, bool]) -> None:
    from wuwan_cli.screen.tables import Column, show

    columns = (Column("check", whole=True), Column("", whole=True), Column("found"))
    show(columns, map(_row, found))
    works = [name for name, good in runners.items() if good]
    typer.echo(f"runners that work: {', '.join(works) or 'none'}")


def _row(check: Check) -> Sequence[Cell]:
    advice = f"\n→ {check.advice}" if check.advice else ""
    outcome = ((check.outcome, _STYLES[check.outcome]),)
    return (check.name, outcome, ((check.detail, ""), (advice, "bold")))
