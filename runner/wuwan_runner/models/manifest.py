"""What a bundle is made from, and the `bundle.toml` that says so."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wuwan_runner.models.conversion import Checkpoint, Converted
    from wuwan_runner.models.label_files import LabelTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a bundle is made from."""

    name: str
    checkpoint: Checkpoint
    labels: LabelTable
    input: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the architecture's own, as `bundle.InputSpec`."""
    description: str = ""
    license: str = "that of the checkpoint"
    origin: str = ""


def write(source: Source, converted: Converted, sums: Mapping[str, str]) -> str:
    """The text of the manifest; `sums` are the sha256 of the other files, by name."""
    content = hashlib.sha256("".join(sorted(sums.values())).encode()).hexdigest()
    checkpoint = source.checkpoint
    tables: dict[str, Mapping[str, Any]] = {
        "": {
            "name": source.name,
            # Nobody numbers checkpoints: the content is the version.
            "version": content[:12],
            "description": source.description
            or f"{checkpoint.architecture}, {checkpoint.weights.name}",
            "architecture": checkpoint.architecture,
            "license": source.license,
            "source": source.origin or checkpoint.weights.name,
        },
        "backends": converted.files,
        "input": {**converted.input, **source.input},
        "output": {
            "name": converted.output_name,
            "classes": checkpoint.classes,
            "activation": converted.activation,
        },
        "labels": {"levels": source.labels.levels, "default": source.labels.levels[0]}
        if source.labels.levels
        else {},
        "files": sums,
    }
    lines = ["# Made by `wuwan model add`."]
    for table, values in tables.items():
        lines += ["", f"[{table}]"] if table and values else []
        lines += [f"{_key(key)} = {_toml(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def _key(key: str) -> str:
    return key if key.replace("_", "").isalnum() and key.isascii() else _toml(key)


def _toml(value: Any) -> str:
    """A TOML value. JSON's strings are TOML's; what TOML forbids inside is not printable."""
    if isinstance(value, str):
        printable = "".join(char if char.isprintable() else "?" for char in value)
        return json.dumps(printable, ensure_ascii=False)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value)
