"""Checkpoints: read without running anything in them, and held against timm's architecture.

Needs torch and safetensors, which the torch backend and `wuwan_worker.conversion.convert` have.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

_NAMED = 3  # keys that an error names before it only counts
# Of torch's long message about a pickle that wants more than tensors, what it wanted.
_WANTED = re.compile(r"GLOBAL ([\w.]+)")


class CheckpointError(Exception):
    """A checkpoint is of no use for an architecture; the message says what is wrong with it."""


def offsets(path: Path) -> dict[str, tuple[list[int], int, int]]:
    """Where each tensor of a safetensors file lies: its shape, offset and length in bytes.

    The format: 8 bytes little-endian length of a JSON header, the header, the tensors.
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    first = 8 + length
    return {
        name: (entry["shape"], first + begin, end - begin)
        for name, entry in header.items()
        if name != "__metadata__"
        for begin, end in [entry["data_offsets"]]
    }


def read(path: Path) -> dict[str, Any]:
    """The tensors of a `.safetensors` file, or of a state dict that `torch.save` wrote.

    They are mapped and not read, wherever the file's format has it. A state dict may lie under
    "state_dict" and have the prefixes that DataParallel and its wrappers leave (`module.`).

    Raises:
        CheckpointError: if the file is damaged, or holds anything but tensors.
        OSError: if it cannot be read.
    """
    with path.open("rb"):  # torch and safetensors word this worse
        pass
    state = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{path.name} holds no state dict")
    strangers = [str(key) for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if strangers:
        raise CheckpointError(f"{path.name} holds what is not a tensor: {_some(strangers)}")
    renamed = {_plain(str(key)): value.detach() for key, value in state.items()}
    if len(renamed) < len(state):
        raise CheckpointError(f"{path.name} has keys that differ in `module.` alone")
    return renamed


def _plain(key: str) -> str:
    return key.removeprefix("module.").replace(".module.", ".")


def _safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path.name} is not a whole safetensors file: {error}") from None


def _pickled(path: Path) -> Any:
    # Files from before torch 1.6 are no zip archives, and cannot be mapped.
    with path.open("rb") as file:
        mapped = file.read(2) == b"PK"
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        wanted = _WANTED.search(str(error))
        if wanted is None:
            raise CheckpointError(f"{path.name} is not a checkpoint: {_first(error)}") from None
        raise CheckpointError(
            f"{path.name} is refused: it holds more than tensors; to read it would run {wanted[1]}"
        ) from None
    except Exception as error:  # whatever a damaged archive or pickle makes torch stumble on
        raise CheckpointError(f"{path.name} is not a whole checkpoint: {_first(error)}") from None


def check(state: Mapping[str, Any], expected: Any, *, architecture: str, classes: int) -> None:
    """Hold the tensors of a checkpoint against those of a `network`.

    Raises:
        CheckpointError: naming the first keys that are missing, unexpected or of another shape.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in expected.state_dict().items()}
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted]
    problems = []
    if missing:
        problems.append(f"missing: {_some(missing)}")
    if unexpected:
        problems.append(f"unexpected: {_some(unexpected)}")
    if problems:
        raise CheckpointError(f"the checkpoint is not a {architecture}: {'; '.join(problems)}")
    heads = expected.default_cfg.get("classifier") or ""
    head = f"{heads if isinstance(heads, str) else heads[0]}.weight"
    if head in wanted and (found := len(state[head])) != classes:
        raise CheckpointError(f"the checkpoint has {found} classes ({head}), not {classes}")
    shapes = [
        f"{name} is {_shape(state[name].shape)}, not {_shape(shape)}"
        for name, shape in wanted.items()
        if tuple(state[name].shape) != shape
    ]
    if shapes:
        raise CheckpointError(f"the checkpoint is not a {architecture}: {_some(shapes)}")


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "a single number"


def _some(names: list[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f", and {rest} more" if rest > 0 else "")


def _first(error: Exception) -> str:
    sentence = (str(error).strip().splitlines() or [""])[0].split(". ")[0]
    return f"{type(error).__name__}: {sentence}" if sentence else type(error).__name__
