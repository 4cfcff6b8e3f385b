"""`wuwan model`: the models on this machine."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wuwan_cli import options as opts
from wuwan_cli.shell.boundary import say
from wuwan_runner import bounds
from wuwan_runner.errors import ModelError, UsageError
from wuwan_runner.models import conversion, general_zh, label_files, modelscope, store
from wuwan_runner.models.manifest import Source
from wuwan_worker.shared import bundle, dirs
from wuwan_worker.shared import labels as bundle_labels

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from wuwan_runner.models.conversion import Converter
    from wuwan_worker.shared.bundle import Bundle

ACTIVATIONS = ("softmax", "sigmoid")
_KNOWN = "`wuwan model list` shows what there is"

app = opts.application(group=True)

Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="As `wuwan model list` shows it.",
        autocompletion=lambda: bundle.installed(),
    ),
]
Image = Annotated[
    str,
    typer.Option(
        "--image", metavar="NAME", help="The GPU image, where a container reads the checkpoint."
    ),
]


@app.callback()
def model() -> None:
    """The models on this machine: bundles of weights, labels and what belongs to them."""


@app.command(name="list")
def list_(as_json: Json = False) -> None:
    """List the models that `--model` takes."""
    found = [_known(name) for name in bundle.installed()]
    if as_json:
        for fields in found:
            typer.echo(json.dumps(fields, ensure_ascii=False))
        return
    _table(found)


@app.command()
def show(name: Name, as_json: Json = False) -> None:
    """Say what is known of one model."""
    try:
        fields = _fields(bundle.load(bundle.find(name)))
    except bundle.BundleError as error:
        raise ModelError(str(error), hint=_KNOWN) from None
    if as_json:
        typer.echo(json.dumps(fields, ensure_ascii=False))
        return
    for key, value in fields.items():
        if value:
            typer.echo(f"{key:<14} {_text(value)}")


@app.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="[default: all]", show_default=False)
    ] = None,
) -> None:
    """Compare the files of models with their sha256 sums, and read their labels."""
    for name in names or bundle.installed():
        try:
            found = bundle.load(bundle.find(name))
            found.verify()
            bundle_labels.read(found)
        except bundle.BundleError as error:
            there = name in bundle.installed()
            hint = f"wuwan model remove {name}, and add it again" if there else _KNOWN
            raise ModelError(str(error), hint=hint) from None
        typer.echo(f"{name}: {len(found.files)} files are as they were, {found.classes:,} outputs")


@app.command()
def remove(name: Name) -> None:
    """Remove a model that was added. Workers that have loaded it go on."""
    store.remove(name)
    typer.echo(f"{name} is removed")


@app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What `--model` will call it.")],
    directory: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="DIRECTORY",
            help="A download of general-zh from ModelScope: pytorch_model.pt, meta_info.txt.",
        ),
    ] = None,
    arch: Annotated[
        str, typer.Option("--arch", metavar="TIMM_ARCH", help="Any classifier of timm's.")
    ] = "",
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights", metavar="FILE", help="Its checkpoint: a state dict, or safetensors."
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            metavar="FILE",
            help="One label a line, in the order of the outputs; or a bundle's labels.tsv.",
        ),
    ] = None,
    activation: Annotated[
        str,
        typer.Option(
            "--activation",
            metavar="|".join(ACTIVATIONS),
            callback=lambda value: bounds.one_of("activation", value, ACTIVATIONS),
            help="sigmoid where several labels are true of one image.",
        ),
    ] = ACTIVATIONS[0],
    runner: opts.Runner = "auto",
    image: Image = "",
) -> None:
    """Add a model from a checkpoint: general-zh --from DIRECTORY, or any classifier of timm's.

    The checkpoint is read where torch is: in a process here, or in a container from the GPU image.
    Nothing in it is executed, and every parameter must fit.
    """
    store.check_new(name)
    if directory is not None:
        if arch or weights or labels or activation != ACTIVATIONS[0]:
            raise UsageError("--from says all that --arch, --weights, --labels, --activation say")
        source = general_zh.source(name, directory, say)
    elif arch and weights and labels:
        if not weights.is_file():
            raise UsageError(f"there is no file {weights}")
        table = label_files.read(labels)
        checkpoint = conversion.Checkpoint(
            weights=weights,
            architecture=arch,
            classes=len(table.rows),
            activation=activation,
        )
        source = Source(name=name, checkpoint=checkpoint, labels=table)
    else:
        raise UsageError(
            "what is to be added?",
            hint="--from DIRECTORY, or all of --arch, --weights and --labels",
        )
    _add(source, conversion.choose(runner, image, say))


@app.command()
def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"There is: {general_zh.NAME}.")],
    endpoint: Annotated[
        str, typer.Option("--endpoint", metavar="URL", help="Another ModelScope hub.")
    ] = "",
    runner: opts.Runner = "auto",
    image: Image = "",
) -> None:
    """Download general-zh (about 600 MB) from ModelScope, and add it.

    What is interrupted goes on where it was when the command is run again.
    """
    from wuwan_cli.screen.transfer import Transfer

    if name != general_zh.NAME:
        known = general_zh.NAME
        raise UsageError(f"no model named {name!r} can be pulled", hint=f"there is: {known}")
    store.check_new(name)
    convert = conversion.choose(runner, image, say)  # what it lacks is said before the download
    directory = store.private(dirs.cache() / "downloads" / name)
    by_hand = (
        f"the same command goes on with what is in {directory}; or fetch {general_zh.WEIGHTS} and "
        f"{general_zh.LABELS} elsewhere, and `wuwan model add {name} --from DIRECTORY`"
    )
    try:
        with Transfer() as shown:
            hub = modelscope.ModelScope(
                general_zh.MODELSCOPE_ID, endpoint or modelscope.ENDPOINT, shown.update
            )
            _fetch(hub, directory)
    except ModelError as error:
        raise ModelError(str(error), hint=error.hint or by_hand) from None
    _add(general_zh.source(name, directory, say), convert)
    shutil.rmtree(directory, ignore_errors=True)


def _fetch(hub: modelscope.ModelScope, directory: Path) -> None:
    listed = hub.listing()
    for file in (general_zh.LABELS, general_zh.WEIGHTS):
        if file not in listed:
            raise ModelError(f"the hub lists no {file} for {general_zh.MODELSCOPE_ID}")
        if not listed[file].sha256:
            say(f"the hub names no sha256 for {file}; loading it will show whether it is whole")
        hub.download(listed[file], directory / file)


def _add(source: Source, convert: Converter) -> None:
    added = store.add(source, convert)
    typer.echo(
        f"{added.name} is added: {added.classes:,} outputs, for {', '.join(added.backends)}, in "
        f"{added.root}"
    )


def _known(name: str) -> dict[str, Any]:
    try:
        return _fields(bundle.load(bundle.find(name)))
    except bundle.BundleError as error:
        return {"name": name, "problem": str(error)}


def _fields(found: Bundle) -> dict[str, Any]:
    return {
        "name": found.name,
        "version": found.version,
        "description": found.description,
        "architecture": found.architecture,
        "classes": found.classes,
        "levels": [level for level in found.levels if level],
        "default_level": found.default_level,
        "backends": list(found.backends),
        "input": dataclasses.asdict(found.input),
        "activation": found.activation,
        "license": found.license,
        "source": found.source,
        "size": _size(found),
        "directory": str(found.root),
        "fingerprint": found.fingerprint,
    }


def _size(found: Bundle) -> int:
    sizes = 0
    for name in found.files:
        path = found.root / name
        sizes += path.stat().st_size if path.is_file() else 0
    return sizes


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key} {_text(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)


def _table(found: Iterable[dict[str, Any]]) -> None:
    from wuwan_cli.screen import tables

    headings = ("NAME", "ARCHITECTURE", "OUTPUTS", "LEVELS", "BACKENDS", "SIZE")
    tables.show([tables.Column(heading) for heading in headings], map(_row, found))


def _row(fields: dict[str, Any]) -> Sequence[str]:
    if "problem" in fields:
        return (fields["name"], f"unusable: {fields['problem']}")
    return (
        fields["name"],
        fields["architecture"],
        f"{fields['classes']:,}",
        _text(fields["levels"]),
        _text(fields["backends"]),
        f"{fields['size'] / 1e6:,.0f} MB",
    )
