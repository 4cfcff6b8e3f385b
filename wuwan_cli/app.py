"""The verbs, each imported when it is named."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

# What each does, so that `wuwan --help` need not import it; its `app` is in `wuwan_cli.commands`.
VERBS = {
    "tag": "Tag images with Chinese labels; one JSON object a line.",
    "ps": "List the workers that are up.",
    "warm": "Start a worker ahead of a run.",
    "stop": "End workers in good order.",
    "logs": "Show a worker's last log lines.",
    "model": "List, add, verify and remove models.",
    "labels": "List and search the labels of a model.",
    "image": "Build the container image.",
    "bench": "Measure speed and memory, and the distance to the limit.",
    "doctor": "Say what works here, and what to do about the rest.",
}


class LazyGroup(TyperGroup):
    """Imports a verb's module when the verb is run."""

    # Any: the classes that typer's own signatures name are private to it.
    def list_commands(self, ctx: Any) -> list[str]:
        """The verbs in the order of `VERBS`."""
        del ctx
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, or None."""
        if cmd_name not in VERBS:
            return super().get_command(ctx, cmd_name)
        if cmd_name not in self.commands:
            verb: typer.Typer = importlib.import_module(f"wuwan_cli.commands.{cmd_name}").app
            self.commands[cmd_name] = typer.main.get_command(verb)
        return self.commands[cmd_name]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The part of `--help` that lists the verbs."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As the base class, whose "Did you mean" looks at `commands` alone."""
        if args and args[0] not in VERBS:
            for name in VERBS:
                self.get_command(ctx, name)
        return super().resolve_command(ctx, args)


# Without rich mark-up the help is plain text, and `wuwan --help` does not import rich.
app = typer.Typer(
    cls=LazyGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from wuwan_worker import __version__

        typer.echo(f"wuwan {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Tag photos with Chinese labels, in batches, by a model that runs only while there is work."""
    del version
