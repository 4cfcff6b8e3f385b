"""`wuwan warm`: start workers ahead of a run."""

from __future__ import annotations

import typer

from wuwan_cli import options as opts
from wuwan_runner.options import TagOptions

_DEFAULTS = TagOptions()

app = opts.application()


@app.command()
def warm(
    model: opts.Model = _DEFAULTS.spec.model,
    backend: opts.Backend = _DEFAULTS.spec.backend,
    runner: opts.Runner = _DEFAULTS.runner,
    gpus: opts.Gpus = _DEFAULTS.spec.gpus,
    workers: opts.Workers = None,
    ttl: opts.Ttl = _DEFAULTS.ttl,
    max_cached: opts.MaxCached = _DEFAULTS.max_cached,
    image: opts.Image = _DEFAULTS.spec.image,
    memory: opts.Memory = _DEFAULTS.spec.memory,
    channel: opts.Channel = _DEFAULTS.channel,
) -> None:
    """Start what `wuwan tag` with the same options would, and return when it is ready."""
    from wuwan_cli.shell.boundary import say
    from wuwan_runner import Tagger

    options = opts.worker_options(
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
