"""What several verbs have in common: how they are made, and which worker is wanted."""

from __future__ import annotations

from typing import Annotated

import typer

from wuwan_runner import bounds
from wuwan_runner.options import BACKENDS, CHANNELS, RUNNERS, TTL, TagOptions, WorkerSpec


def application(*, group: bool = False) -> typer.Typer:
    """A verb's Typer application; a `group` has commands of its own."""
    return typer.Typer(
        rich_markup_mode=None,
        add_completion=False,
        pretty_exceptions_enable=False,
        no_args_is_help=group,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def _models() -> list[str]:
    from wuwan_worker.shared import bundle

    return bundle.installed()


Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NAME",
        autocompletion=_models,
        help="A model's name, as `wuwan model list` shows it, or its directory.",
    ),
]
Level = Annotated[
    str,
    typer.Option(
        "--level",
        metavar="LEVEL",
        help="How detailed the labels are, for models that have levels: general-zh has coarse, mid "
        "and fine.  [default: the model's]",
    ),
]
Runner = Annotated[
    str,
    typer.Option(
        "--runner",
        metavar="|".join(RUNNERS),
        # Here, too: not every verb that has it makes a TagOptions.
        callback=lambda value: bounds.one_of("runner", value, RUNNERS),
        autocompletion=lambda: list(RUNNERS),
        help="Where the model runs.",
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        "--backend",
        metavar="|".join(BACKENDS),
        autocompletion=lambda: list(BACKENDS),
        help="What runs the network: auto is torch on a GPU, openvino on a CPU.",
    ),
]
Gpus = Annotated[
    str,
    typer.Option(
        "--gpus",
        metavar="auto|all|none|0,1",
        help="One worker for each of these GPUs; auto: one GPU if it can be used, or the CPU.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        help="How many workers.  [default: one for each chosen GPU, one on a CPU]",
    ),
]
Ttl = Annotated[
    float | None,
    typer.Option(
        "--ttl",
        metavar="SECONDS",
        help="How long a worker stays warm after its last work; 0: it leaves with its last "
        f"client.  [default: {TTL:.0f}; a warm worker keeps its own]",
    ),
]
MaxCached = Annotated[
    int,
    typer.Option(
        "--max-cached",
        metavar="N",
        help="How many warm workers of all kinds are kept; the longest idle one goes first.",
    ),
]
Image = Annotated[
    str,
    typer.Option(
        "--image",
        metavar="NAME",
        help="The container image; asks for Docker.  [default: this version's own, for GPUs where "
        "one is used]",
    ),
]
Memory = Annotated[
    str,
    typer.Option("--memory", metavar="SIZE", help="A container's memory limit."),
]
Channel = Annotated[
    str,
    typer.Option(
        "--channel",
        metavar="|".join(CHANNELS),
        help="How images get into a container: a socket passes open files, exec passes bytes.",
    ),
]


def worker_options(
    *,
    model: str,
    backend: str,
    runner: str,
    gpus: str,
    workers: int | None,
    ttl: float | None,
    max_cached: int,
    image: str,
    memory: str,
    channel: str,
) -> TagOptions:
    """The options that say which workers are wanted; the others have their defaults."""
    return TagOptions(
        spec=WorkerSpec(model=model, backend=backend, gpus=gpus, image=image, memory=memory),
        runner=runner,
        channel=channel,
        workers=workers,
        ttl=ttl,
        max_cached=max_cached,
    )
