"""`wuwan labels`: what a model can say."""

from __future__ import annotations

import json
import unicodedata
from typing import TYPE_CHECKING, Annotated

import typer

from wuwan_cli import options as opts
from wuwan_runner import resolved
from wuwan_runner.errors import ModelError, WorkerUnavailableError
from wuwan_runner.options import TagOptions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from wuwan_worker.shared.labels import Label

_DEFAULTS = TagOptions()

app = opts.application()


@app.command(
    epilog="Columns, separated by tabs: label, synonyms, broader terms (nearest first), id; "
    "several in a column are separated by |. A label that has different broader terms has a line "
    "for each of these ways."
)
def labels(
    model: opts.Model = _DEFAULTS.spec.model,
    level: opts.Level = _DEFAULTS.level,
    grep: Annotated[
        str,
        typer.Option(
            "--grep",
            metavar="TEXT",
            help="Only labels with TEXT in themselves, in a synonym or in a broader term. Case and "
            "width do not matter.",
        ),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """List and search the labels of a model."""
    from wuwan_worker.shared import bundle
    from wuwan_worker.shared.labels import read_level

    wanted = resolved.model(model)
    wanted.check_level(level)
    try:
        found = wanted.required
        known = read_level(found, level or found.default_level).labels
    except (bundle.BundleError, WorkerUnavailableError) as error:
        raise ModelError(str(error), hint="`wuwan model list` shows the models") from None
    known = list(dict.fromkeys(known))  # several outputs may stand for one
    if grep:
        known = list(_matching(known, grep, found.aliases))
    line = _json if as_json else _tabs
    # Bytes: what a locale cannot encode is printed all the same.
    typer.echo("".join(map(line, known)).encode(), nl=False)


def _matching(
    labels: Iterable[Label], text: str, aliases: Mapping[str, tuple[str, ...]]
) -> Iterator[Label]:
    wanted = _folded(text)
    terms = {term for term, names in aliases.items() if any(wanted in _folded(n) for n in names)}
    for label in labels:
        names = (label.label, *label.synonyms, *label.broader)
        if not terms.isdisjoint(names) or any(wanted in _folded(name) for name in names):
            yield label


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _tabs(label: Label) -> str:
    columns = (label.label, "|".join(label.synonyms), "|".join(label.broader), label.id)
    return "\t".join(columns) + "\n"


def _json(label: Label) -> str:
    content = {
        "label": label.label,
        "synonyms": label.synonyms,
        "broader": label.broader,
        "id": label.id,
    }
    return json.dumps(content, ensure_ascii=False) + "\n"
