"""`wuwan warm`: start workers ahead of a run."""

from __future__ import annotations

import typer

from wuwan_cli import common
from wuwan_runner.options import TagOptions

_DEFAULTS = TagOptions()

app = common.application()


@app.command()
def warm(
    model: common.Model = _DEFAULTS.spec.model,
    backend: common.Backend = _DEFAULTS.spec.backend,
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

    options = common.worker_options(
        model=model,
        backend=backend,
        runner=runner,
        gpus=gpus,
        workers=workers,
        ttl=ttl,
        max_cached=max_cached,
        image=image,
        memory=memory,
        channel=channel,
    )
    with Tagger(options, notify=say) as tagger:
        for worker in tagger.warm():
            typer.echo(f"{worker.name} is ready ({worker.runner}, {worker.model})")
