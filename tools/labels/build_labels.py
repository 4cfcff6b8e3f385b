"""Build the Chinese label file of the ImageNet-1k model.

Sources, none of which is changed here:

* ``names.tsv`` beside this script: the Chinese name of each class, judged by hand one by one
  against the English lemmas and gloss of its synset.
* ``broader.tsv`` beside this script: broader terms.  Columns ``synset``, ``term``, ``parent``;
  a class gets the term of its nearest hypernym listed there, then that term's parents.  ``-`` as
  synset makes a term that only parents and overrides use; an empty parent ends the chain.
* ``overrides.tsv`` beside this script: class id and the broader term to start from, where the
  WordNet hypernyms are unhelpful or wrong for what the class shows.
* ``--wordnet DIR``: a folder with WordNet 3.0's ``data.noun`` (Debian: wordnet-base).
* ``--sources DIR``: a folder with ``imagenet_synsets.txt`` (the class order) and, for the report,
  ``imagenet_zh_chinese_clip.txt``, ``imagenet_zh_clip_benchmark.txt`` and ``wn-data-cmn.tab``.

``--report`` prints, instead of writing, every class with its English lemmas, gloss and candidate
names, the name chosen and where that name is found: ``both`` lists, ``clip`` or ``benchmark``
alone, ``wordnet`` (Chinese Open Wordnet only) or ``own``; a count of each follows.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUTPUT = HERE.parents[1] / "image/wuwan_worker/bundles/imagenet-zh/labels.tsv"
HEADER = "index\tlabel\tid\tbroader"
MAX_BROADER = 4


class LabelError(Exception):
    """The tables contradict each other or a source."""


@dataclass(frozen=True)
class Synset:
    """One noun of WordNet."""

    lemmas: tuple[str, ...]
    gloss: str
    hypernyms: tuple[str, ...]


def read_wordnet(folder: Path) -> dict[str, Synset]:
    """Read every synset of ``data.noun``, keyed like ``n02099601``."""
    synsets: dict[str, Synset] = {}
    for line in (folder / "data.noun").read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):  # the licence at the head of the file
            continue
        data, _, gloss = line.partition("|")
        fields = data.split()
        count = int(fields[3], 16)
        lemmas = tuple(fields[4 + 2 * i].replace("_", " ") for i in range(count))
        pointers = fields[5 + 2 * count :]
        hypernyms = tuple(
            "n" + pointers[i + 1]
            for i in range(0, len(pointers) - 3, 4)
            if pointers[i] in ("@", "@i")
        )
        synsets["n" + fields[0]] = Synset(lemmas, gloss.strip(), hypernyms)
    return synsets


def read_table(path: Path, header: tuple[str, ...]) -> list[list[str]]:
    """Read a tab-separated table after checking its header row and its row lengths."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    if not rows or tuple(rows[0]) != header:
        raise LabelError(f"{path.name}: the first row must be {header}")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise LabelError(f"{path.name}:{number}: {len(row)} fields, not {len(header)}")
    return rows[1:]


def read_pairs(path: Path, header: tuple[str, str]) -> dict[str, str]:
    """Read a two-column table whose first column must not repeat."""
    pairs: dict[str, str] = {}
    for key, value in read_table(path, header):
        if key in pairs:
            raise LabelError(f"{path.name}: {key} is given twice")
        pairs[key] = value
    return pairs


def read_broader(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return the term of each listed synset and the parent ('' for none) of each term."""
    terms: dict[str, str] = {}
    parents: dict[str, str] = {}
    for synset, term, parent in read_table(path, ("synset", "term", "parent")):
        if parents.setdefault(term, parent) != parent:
            raise LabelError(f"{path.name}: {term} has two parents")
        if synset != "-" and terms.setdefault(synset, term) != term:
            raise LabelError(f"{path.name}: {synset} has two terms")
    for term in parents:
        chain(term, parents)
    return terms, parents


def chain(term: str, parents: dict[str, str]) -> list[str]:
    """Return a term and its parents, nearest first."""
    found: list[str] = []
    while term:
        if term in found:
            raise LabelError(f"{term}: the parents run in a circle")
        if term not in parents:
            raise LabelError(f"{term} is not in broader.tsv")
        found.append(term)
        term = parents[term]
    return found


def nearest_term(synset: str, wordnet: dict[str, Synset], terms: dict[str, str]) -> str:
    """Return the term of the nearest listed hypernym, '' if there is none."""
    seen = {synset}
    level = [synset]
    while level:
        above: list[str] = []
        for name in level:
            for hypernym in wordnet[name].hypernyms:
                if hypernym in terms:
                    return terms[hypernym]
                if hypernym not in seen:
                    seen.add(hypernym)
                    above.append(hypernym)
        level = above
    return ""


def build(order: list[str], wordnet: dict[str, Synset], tables: Path) -> str:
    """Return the whole label file."""
    names = read_pairs(tables / "names.tsv", ("id", "label"))
    overrides = read_pairs(tables / "overrides.tsv", ("id", "term"))
    terms, parents = read_broader(tables / "broader.tsv")
    if list(names) != order:
        raise LabelError("names.tsv: the ids are not those of the class order")
    if len(set(names.values())) != len(names):
        raise LabelError("names.tsv: a label is given twice")
    unknown = (set(overrides) - set(order)) | (set(terms) - set(wordnet))
    if unknown:
        raise LabelError(f"not a known synset: {', '.join(sorted(unknown))}")
    lines = [HEADER]
    used: set[str] = set()
    for index, synset in enumerate(order):
        label = names[synset]
        first = overrides.get(synset) or nearest_term(synset, wordnet, terms)
        broader = [term for term in chain(first, parents) if term != label] if first else []
        if label in parents and broader != chain(label, parents)[1:]:
            raise LabelError(f"{label}: its broader terms differ from those of the term {label}")
        if not 1 <= len(broader) <= MAX_BROADER:
            raise LabelError(f"{synset} {label}: {len(broader)} broader terms")
        used.update(broader)
        lines.append(f"{index}\t{label}\t{synset}\t{'|'.join(broader)}")
    if set(parents) - used:
        raise LabelError(f"terms no label uses: {', '.join(sorted(set(parents) - used))}")
    return "\n".join(lines) + "\n"


def origin(name: str, clip: str, benchmark: str, wordnet: list[str]) -> str:
    """Say in which source a name is found."""
    if name in (clip, benchmark):
        if clip == benchmark:
            return "both"
        return "clip" if name == clip else "benchmark"
    return "wordnet" if name in wordnet else "own"


def report(order: list[str], wordnet: dict[str, Synset], tables: Path, sources: Path) -> str:
    """Return one line for each class and the counts of the names' origins."""
    names = read_pairs(tables / "names.tsv", ("id", "label"))
    clip = (sources / "imagenet_zh_chinese_clip.txt").read_text(encoding="utf-8").splitlines()
    benchmark = (sources / "imagenet_zh_clip_benchmark.txt").read_text("utf-8").splitlines()
    lemmas: dict[str, list[str]] = {}
    for line in (sources / "wn-data-cmn.tab").read_text(encoding="utf-8").splitlines():
        fields = line.split("\t")
        if len(fields) == 3 and fields[0].endswith("-n") and fields[1].endswith("lemma"):
            lemmas.setdefault("n" + fields[0][:8], []).append(fields[2])
    lines: list[str] = []
    counts: Counter[str] = Counter()
    for index, synset in enumerate(order):
        known = lemmas.get(synset, [])
        where = origin(names[synset], clip[index], benchmark[index], known)
        counts[where] += 1
        entry = wordnet[synset]
        lines.append(
            f"{index}\t{synset}\t{', '.join(entry.lemmas)}\t{entry.gloss}\t{clip[index]}\t"
            f"{benchmark[index]}\t{', '.join(known)}\t{names[synset]}\t{where}"
        )
    lines.append(", ".join(f"{where} {count}" for where, count in counts.most_common()))
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Build the Chinese label file.")
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"), metavar="DIR")
    parser.add_argument("--sources", type=Path, required=True, metavar="DIR")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE")
    parser.add_argument("--report", action="store_true", help="print the choices, write nothing")
    options = parser.parse_args(argv)
    order = (options.sources / "imagenet_synsets.txt").read_text(encoding="utf-8").split()
    wordnet = read_wordnet(options.wordnet)
    try:
        if options.report:
            sys.stdout.write(report(order, wordnet, HERE, options.sources))
        else:
            text = build(order, wordnet, HERE)
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(text, encoding="utf-8", newline="\n")
    except LabelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
