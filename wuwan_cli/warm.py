"""`wuwan warm`: start workers ahead of a run."""

from __future__ import annotations

import typer

from wuwan_cli import common  # noqa: TC001  # typer reads the annotations
from wuwan_runner.options import TagOptions, WorkerSpec

_DEFAULTS = TagOptions()

app = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def warm(
    model: common.Model = _DEFAULTS.spec.model,
    runner: common.Runner = _DEFAULTS.runner,
    gpus: common.Gpus = _DEFAULTS.spec.gpus,
    workers: common.Workers = None,
    ttl: common.Ttl = _DEFAULTS.ttl,
    max_cached: common.MaxCached = _DEFAULTS.max_cached,
    image: common.Image = _DEFAULTS.spec.image,
    memory: common.Memory = _DEFAULTS.spec.memory,
    channel: common.Channel = _DEFAULTS.channel,
) -> None:
    """Start what `wuwan tag` with the same options would, and return when it is ready."""
    from wuwan_cli.boundary import say
    from wuwan_runner import Tagger

    options = TagOptions(
        spec=WorkerSpec(model=model, gpus=gpus, image=image, memory=memory),
        runner=runner,
        channel=channel,
        workers=workers,
        ttl=ttl,
        max_cached=max_cached,
    )
    with Tagger(options, notify=say) as tagger:
        for worker in tagger.warm():
            typer.echo(f"{worker.name} is ready ({worker.runner}, {worker.model})")
