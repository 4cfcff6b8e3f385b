"""`wuwan logs`: what a worker has to say."""

from __future__ import annotations

from typing import Annotated

import typer

from wuwan_cli import options as opts
from wuwan_runner.errors import WorkerUnavailableError
from wuwan_runner.options import Timeouts

app = opts.application()


@app.command()
def logs(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="As `wuwan ps` shows it, or its beginning.")
    ],
) -> None:
    """Print the last log lines of a worker that is up."""
    from wuwan_runner.pool import registry
    from wuwan_runner.wire.control import NoAnswerError

    timeouts = Timeouts()
    member = registry.named(name, timeouts)
    try:
        with member.control(timeouts) as connection:
            for line in connection.logs():
                typer.echo(line)
    except NoAnswerError as error:
        raise WorkerUnavailableError(
            f"worker {member.name} does not answer: {error}", hint=f"docker logs {member.name}"
        ) from None
