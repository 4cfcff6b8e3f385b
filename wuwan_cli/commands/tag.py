"""`wuwan tag`: images in, one record a line out."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wuwan_cli import options as opts
from wuwan_cli.screen.progress import Mode
from wuwan_cli.shell.boundary import printable, say
from wuwan_runner.errors import AbsentError, ExitCode
from wuwan_runner.options import Selection, TagOptions, Timeouts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wuwan_cli.inputs import Inputs
    from wuwan_cli.shell.signals import Signals
    from wuwan_runner.inputs.survey import Survey

_DEFAULTS = TagOptions()

app = opts.application()


@app.command(
    epilog="Records go to standard output, everything else to standard error. A reader that closes "
    "the pipe early (head) ends the run quietly. Exit codes: 0 all tagged; 1 fatal; 2 usage; "
    "3 finished, some images have an error record; 4 no worker (Docker, image, GPU, model); "
    "5 another run holds the output; 6 a directory that was named is missing or gave nothing, and "
    "the output was kept; 130 or 143 after a signal."
)
def tag(
    ctx: typer.Context,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH",
            help="Images and directories; - reads a list of paths from standard input.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write to FILE, which appears when it is complete. What an interrupted run has "
            "finished stays in FILE.partial.",
        ),
    ] = None,
    top_k: Annotated[
        int, typer.Option("--top-k", metavar="N", help="Labels for each image, at most.")
    ] = _DEFAULTS.top_k,
    min_score: Annotated[
        float,
        typer.Option(
            "--min-score",
            metavar="SCORE",
            help="Leave out labels under this, 0 to 1.",
        ),
    ] = _DEFAULTS.min_score,
    level: opts.Level = _DEFAULTS.level,
    model: opts.Model = _DEFAULTS.spec.model,
    backend: opts.Backend = _DEFAULTS.spec.backend,
    runner: opts.Runner = _DEFAULTS.runner,
    gpus: opts.Gpus = _DEFAULTS.spec.gpus,
    workers: opts.Workers = None,
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size", metavar="N", help="Images in one message to a worker, 1 to 32."
        ),
    ] = _DEFAULTS.batch_size,
    ttl: opts.Ttl = _DEFAULTS.ttl,
    max_cached: opts.MaxCached = _DEFAULTS.max_cached,
    files_from: Annotated[
        str | None,
        typer.Option(
            "--files-from", metavar="FILE", help="A list of paths, one a line; - is standard input."
        ),
    ] = None,
    null: Annotated[
        bool, typer.Option("--null", "-0", help="Lists are separated by NUL, as find -print0 does.")
    ] = False,
    include: Annotated[
        list[str] | None,
        typer.Option(
            "--include",
            metavar="PATTERN",
            help="In directories, take the files that match instead of those with an image's "
            "extension. Repeatable.",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude",
            metavar="PATTERN",
            help="In directories, leave out files and directories that match. Repeatable.",
        ),
    ] = None,
    no_recursive: Annotated[
        bool, typer.Option("--no-recursive", help="Leave out directories inside of directories.")
    ] = False,
    hidden: Annotated[
        bool, typer.Option("--hidden", help="In directories, take names that begin with a dot.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with what an interrupted run with the same --output has finished.",
        ),
    ] = False,
    allow_empty: Annotated[
        bool,
        typer.Option(
            "--allow-empty",
            help="Replace --output even if a directory or list that is named is missing or empty.",
        ),
    ] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="The reference preprocessing: slower, hardly different.")
    ] = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="No labels for damaged images: each of their warnings is an error."
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
    progress: Annotated[
        Mode, typer.Option("--progress", help="A bar needs a terminal; plain writes lines.")
    ] = Mode.AUTO,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout",
            metavar="SECONDS",
            help="How long a worker may be silent while it has work, before it is replaced; and "
            "how long a file may take to be opened.",
        ),
    ] = _DEFAULTS.timeouts.batch,
    image: opts.Image = _DEFAULTS.spec.image,
    memory: opts.Memory = _DEFAULTS.spec.memory,
    channel: opts.Channel = _DEFAULTS.channel,
) -> None:
    """Tag images with Chinese labels; one JSON object a line, in the order of the input."""
    from wuwan_cli.inputs import Inputs

    options = dataclasses.replace(
        opts.worker_options(
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
        ),
        top_k=top_k,
        min_score=min_score,
        exact=exact,
        strict=strict,
        level=level,
        batch_size=batch_size,
        selection=Selection(
            recursive=not no_recursive,
            hidden=hidden,
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
        ),
        timeouts=Timeouts(batch=timeout, open=timeout),
    )
    inputs = Inputs.of(paths or (), files_from, null=null)
    code = _run(
        *(options, inputs, output, progress, ctx.obj),
        quiet=quiet,
        resume=resume,
        allow_empty=allow_empty,
    )
    raise typer.Exit(code)


def _run(
    options: TagOptions,
    inputs: Inputs,
    target: str | None,
    mode: Mode,
    signals: Signals,
    *,
    quiet: bool,
    resume: bool,
    allow_empty: bool,
) -> int:
    """Tag everything; the exit code."""
    from wuwan_cli.screen.progress import Progress, resolve
    from wuwan_runner import Tagger, resolved
    from wuwan_runner.inputs.discover import discover
    from wuwan_runner.inputs.survey import Survey
    from wuwan_runner.outputs.base import ClosedPipe
    from wuwan_runner.outputs.choose import is_stdout, opened, own_names

    def countable() -> Iterator[Any] | None:
        paths = inputs.again()
        return None if paths is None else discover(paths, options.selection)

    shown = resolve(mode, records_on_stdout=is_stdout(target))
    progress = Progress(shown, quiet=quiet, countable=countable)
    names = resolved.model(options.spec.model).names if resume else ()
    survey = Survey(own=own_names(target))
    strict = options.strict
    with opened(target, inputs.named, resume=resume, models=names, strict=strict) as sink:
        try:
            with (
                progress,
                Tagger(options, notify=progress.notify) as tagger,
                contextlib.closing(
                    tagger.tag_batches(inputs.read(survey), done=sink.take_over, survey=survey)
                ) as batches,
            ):
                for records in batches:
                    with signals.shield():
                        sink.write(records)
                    progress.update(records)
            if not allow_empty:
                _require_roots(survey, sink.replaces())
            sink.commit()
        except ClosedPipe:
            sink.abandon()
            return _code(progress.failed + sink.failed_before)
        except BaseException as error:
            fate = sink.abandon()
            if fate and (not quiet or not isinstance(error, KeyboardInterrupt)):
                say(f"{'interrupted' if isinstance(error, KeyboardInterrupt) else 'ended'}: {fate}")
            raise
    progress.warned += sink.warned_before
    progress.summarize(survey.describe_passed_over())
    if survey.missed:
        progress.notify(f"nothing to tag: {survey.describe_absent()}")
    return _code(progress.failed + sink.failed_before)


def _require_roots(survey: Survey, replaced: str) -> None:
    """Raises AbsentError if records would give way to those of a disk that is not mounted."""
    if survey.missed and replaced:
        raise AbsentError(
            printable(f"nothing to tag: {survey.describe_absent()}; {replaced} stays as it was"),
            hint="is a disk not mounted? --allow-empty replaces the file all the same",
        )


def _code(failed: int) -> int:
    return int(ExitCode.PARTIAL if failed else ExitCode.OK)
