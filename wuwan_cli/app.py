"""The verbs, each imported when it is named."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

# verb -> the module whose `app` it is.
VERBS = {
    "tag": "wuwan_cli.tag",
    "ps": "wuwan_cli.ps",
    "warm": "wuwan_cli.warm",
    "stop": "wuwan_cli.stop",
    "logs": "wuwan_cli.logs",
    "image": "wuwan_cli.image",
    "doctor": "wuwan_cli.doctor",
}


class LazyGroup(TyperGroup):
    """Imports a verb's module when the verb is run or its help is asked for."""

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
            verb: typer.Typer = importlib.import_module(VERBS[cmd_name]).app
            self.commands[cmd_name] = typer.main.get_command(verb)
        return self.commands[cmd_name]

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
