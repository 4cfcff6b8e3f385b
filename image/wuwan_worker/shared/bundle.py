"""Model bundles: a directory with `bundle.toml`, weights and labels (`wuwan_worker.shared.labels`).

Reading a bundle's description needs the standard library alone, so the CLI can list and check
bundles without loading a model library.
"""

from __future__ import annotations

import hashlib
import math
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wuwan_worker.shared import dirs

MANIFEST = "bundle.toml"
EMBEDDED = Path(__file__).parents[1] / "bundles"
# What weights may be for: the names in `wuwan_worker.backends.REGISTRY`.
BACKENDS = ("openvino", "torch")
# A name is part of paths, of an image's label and of what people type.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class BundleError(Exception):
    """A bundle is missing or not as its manifest says; the message names it and the cure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """How an image becomes the network's input."""

    name: str
    size: int  # pixels, square
    resize: int  # pixels of the shorter side before the centre crop
    interpolation: str  # "bilinear" or "bicubic"
    mean: tuple[float, float, float]  # of RGB in 0..1
    std: tuple[float, float, float]

    @property
    def crop_fraction(self) -> float:
        """The side of the square crop as a fraction of the image's shorter side."""
        return self.size / self.resize


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle's manifest."""

    root: Path
    name: str
    version: str
    description: str
    architecture: str
    license: str
    source: str
    backends: dict[str, str]  # backend name -> weights file
    input: InputSpec
    output_name: str
    classes: int
    activation: str  # still to be applied to the output: "none", "softmax" or "sigmoid"
    levels: tuple[str, ...]  # of its labels, broadest first; one level without a name: ("",)
    default_level: str
    aliases: dict[str, tuple[str, ...]]  # other names of terms, for a search: 犬 -> (狗,)
    files: dict[str, str]  # file name -> sha256
    fingerprint: str  # sha256 of the manifest, which holds the sha256 of all other files

    def weights(self, backend: str) -> Path:
        """The weights file for that backend.

        Raises:
            BundleError: if the bundle has none.
        """
        if backend not in self.backends:
            known = ", ".join(self.backends) or "none"
            raise BundleError(
                f"bundle {self.name} has no weights for backend {backend} (has: {known})"
            )
        return self.root / self.backends[backend]

    def backend_on(self, device: str) -> str:
        """The backend for "cpu" or "cuda" where none is named: torch on a GPU.

        On a CPU it is openvino, where the bundle has weights for it.
        """
        return "openvino" if device == "cpu" and "openvino" in self.backends else "torch"

    def verify(self) -> None:
        """Compare every file with its sha256.

        Raises:
            BundleError: naming the first file that is missing or differs.
        """
        for name, expected in self.files.items():
            try:
                with (self.root / name).open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except (OSError, ValueError) as error:  # ValueError: a NUL in the name
                reason = error.strerror if isinstance(error, OSError) else str(error)
                raise BundleError(f"bundle {self.name}: {name!r}: {reason}") from None
            if found != expected:
                raise BundleError(
                    f"bundle {self.name}: {name} has sha256 {found[:12]}…, its manifest says "
                    f"{expected[:12]}…; install the bundle again"
                )


def load(root: Path) -> Bundle:
    """Read the manifest in `root`.

    Raises:
        BundleError: if there is none, or a field is missing or of the wrong kind.
    """
    manifest = root / MANIFEST
    try:
        raw = manifest.read_bytes()
    except OSError as error:
        raise BundleError(f"no model bundle at {root}: {error.strerror}") from None
    try:
        content = tomllib.loads(raw.decode())
        return _parse(root, content, hashlib.sha256(raw).hexdigest())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{manifest} is not valid TOML: {error}") from None
    except KeyError as error:
        raise BundleError(f"{manifest} lacks {error}") from None
    except (OverflowError, RecursionError, TypeError, ValueError) as error:
        raise BundleError(f"{manifest}: {error}") from None


def _parse(root: Path, content: dict[str, Any], fingerprint: str) -> Bundle:
    for table in ("backends", "input", "output", "files"):
        if not isinstance(content[table], dict):
            raise TypeError(f"[{table}] must be a table")
    shape, output = content["input"], content["output"]
    mean, std = (tuple(map(float, shape[key])) for key in ("mean", "std"))
    if len(mean) != 3 or len(std) != 3:
        raise ValueError("input.mean and input.std need three numbers each")
    size, resize, classes = int(shape["size"]), int(shape["resize"]), int(output["classes"])
    if not 0 < size <= resize:
        raise ValueError("input.size must be over 0 and not over input.resize")
    if classes < 1:
        raise ValueError("output.classes must be over 0")
    if not all(map(math.isfinite, mean)) or not all(0 < value < math.inf for value in std):
        raise ValueError("input.mean must be finite and input.std over 0")
    if shape["interpolation"] not in ("bilinear", "bicubic"):
        raise ValueError(f"input.interpolation {shape['interpolation']!r} is not known")
    if output["activation"] not in ("none", "softmax", "sigmoid"):
        raise ValueError(f"output.activation {output['activation']!r} is not known")
    levels, default_level, aliases = _labels(content.get("labels", {}))
    return Bundle(
        root=root,
        name=str(content["name"]),
        version=str(content["version"]),
        description=str(content["description"]),
        architecture=str(content["architecture"]),
        license=str(content["license"]),
        source=str(content["source"]),
        backends={str(key): str(value) for key, value in content["backends"].items()},
        input=InputSpec(
            name=str(shape["name"]),
            size=size,
            resize=resize,
            interpolation=str(shape["interpolation"]),
            mean=mean,
            std=std,
        ),
        output_name=str(output["name"]),
        classes=classes,
        activation=str(output["activation"]),
        levels=levels,
        default_level=default_level,
        aliases=aliases,
        files={str(key): str(value) for key, value in content["files"].items()},
        fingerprint=fingerprint,
    )


def _labels(
    table: dict[str, Any],
) -> tuple[tuple[str, ...], str, dict[str, tuple[str, ...]]]:
    aliases = {
        str(term): tuple(map(str, names)) for term, names in dict(table.get("aliases", {})).items()
    }
    if "levels" not in table:
        return ("",), "", aliases
    levels, default = tuple(map(str, table["levels"])), str(table["default"])
    if not levels or len(set(levels)) < len(levels) or "" in levels:
        raise ValueError("labels.levels must be different names")
    if default not in levels:
        raise ValueError(f"labels.default {default!r} is not in labels.levels")
    return levels, default, aliases


def find(name: str) -> Path:
    """The directory of the bundle of that name, or `name` itself where it is a path.

    Raises:
        BundleError: if there is no such bundle.
    """
    if "/" in name:
        return Path(name).resolve()
    if NAME.fullmatch(name):
        for root in (EMBEDDED / name, user_directory() / name):
            if (root / MANIFEST).is_file():
                return root
    raise BundleError(f"no model named {name!r}; there is: {', '.join(installed())}")


def user_directory() -> Path:
    """Where the user's own bundles are."""
    return (dirs.data() / "models").path


def embedded() -> list[str]:
    """The names of the bundles that come with this installation."""
    return sorted(path.parent.name for path in EMBEDDED.glob(f"*/{MANIFEST}"))


def installed() -> list[str]:
    """The names of all bundles: those that come with this installation, then the user's."""
    try:
        found = sorted(path.parent.name for path in user_directory().glob(f"*/{MANIFEST}"))
    except OSError:  # a directory that we may not read
        found = []
    own = embedded()
    return own + [name for name in found if NAME.fullmatch(name) and name not in own]
