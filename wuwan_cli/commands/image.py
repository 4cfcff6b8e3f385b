"""`wuwan image`: the container image."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from typing import Annotated, Self

import typer

from wuwan_cli import options as opts
from wuwan_cli.shell.boundary import printable
from wuwan_runner.bounds import one_of

app = opts.application(group=True)


def _variant(value: str) -> str:
    from wuwan_runner.containers.image_build import VARIANTS

    return one_of("variant", value, VARIANTS)


@app.callback()
def image() -> None:
    """The container image that workers run in."""


@app.command()
def build(
    tag: Annotated[
        str, typer.Option("--tag", "-t", metavar="NAME", help="[default: this version's own]")
    ] = "",
    variant: Annotated[
        str,
        typer.Option(
            "--variant",
            metavar="cpu|gpu",
            callback=_variant,
            autocompletion=lambda: ["cpu", "gpu"],
            help="gpu adds PyTorch and CUDA: 4 GB, for NVIDIA GPUs.",
        ),
    ] = "cpu",
    base: Annotated[
        str,
        typer.Option(
            "--base",
            metavar="IMAGE",
            help="A base image with Python and pip.  [default: the Dockerfile's]",
        ),
    ] = "",
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="Put a model of yours into the image, as a daemon on another machine needs it. "
            "Repeatable.",
        ),
    ] = None,
    build_arg: Annotated[
        list[str] | None,
        typer.Option(
            "--build-arg",
            metavar="NAME[=VALUE]",
            help="As docker build's: without a value, the environment's. Repeatable.",
        ),
    ] = None,
    network: Annotated[
        str | None, typer.Option("--network", metavar="MODE", help="For the build: host, none …")
    ] = None,
    pull: Annotated[bool, typer.Option("--pull/--no-pull", help="Look for a newer base.")] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Build every step anew.")] = False,
) -> None:
    """Build the container image; takes a minute where nothing is cached, for GPUs three."""
    from wuwan_runner.containers import image_build

    options = image_build.BuildOptions(
        tag=tag,
        variant=variant,
        base=base,
        models=tuple(model or ()),
        arguments=image_build.parse_arguments(build_arg or []),
        network=network,
        pull=pull,
        cache=not no_cache,
    )
    # docker-py's, of a helper that is missing; the error says it once more, with what to do.
    warnings.filterwarnings("ignore", "docker-credential-")
    with _Log() as log:
        built = image_build.build(options, log.line)
    short = built.id.removeprefix("sha256:")[:12]
    typer.echo(f"{built.reference}  {short}  {built.size / 1e6:,.0f} MB")


class _Log:
    """The builder's lines on stderr: all, or on a terminal the steps and one moving line."""

    def __init__(self) -> None:
        self._terminal = os.isatty(2) and os.environ.get("TERM") != "dumb"
        self._drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def line(self, text: str) -> None:
        """Show one line."""
        text = printable(text)
        self._clear()
        if not self._terminal or text.startswith(("Step ", "Successfully ")):
            sys.stderr.write(f"{text}\n")
        else:
            width = shutil.get_terminal_size().columns - 3
            sys.stderr.write(f"  {text[: max(0, width)]}")
            self._drawn = True
        sys.stderr.flush()

    def _clear(self) -> None:
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            self._drawn = False
