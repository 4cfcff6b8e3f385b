"""Every kind of file against the truth and against other readers, as a table.

python -m tests.worker.decoding.kinds.table [BEGINNING-OF-NAME]
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.worker.decoding.kinds import bmp, gif, heif, jpeg, peers, png, tiff
from tests.worker.decoding.kinds.base import SPEC, distance, seen
from wuwan_worker.decoding import decode
from wuwan_worker.decoding.decode import ItemError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from tests.worker.decoding.kinds.base import Kind

FORMATS: Mapping[str, Callable[[], Iterable[Kind]]] = {
    "tiff": tiff.kinds,
    "bmp": bmp.kinds,
    "png": png.kinds,
    "gif": gif.kinds,
    "webp": gif.webps,
    "jpeg": jpeg.kinds,
    "avif": heif.avifs,
    "heic": heif.heics,
}


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one kind. Distances are None where a reader refuses it."""

    kind: Kind
    ours: float | None
    size: tuple[int, int]
    said: str  # with which code and message we refuse it, or the flaw
    flaw: bool
    libvips: float | None
    tifffile: float | None

    def __str__(self) -> str:
        marks = [
            "refused" if found is None else f"{found:7.2f}"
            for found in (self.ours, self.libvips, self.tifffile)
        ]
        if not self.kind.name.startswith("tiff"):
            marks[2] = ""
        return f"{self.kind.name:60} {' '.join(f'{mark:>8}' for mark in marks)}  {self.said}"

    @property
    def right(self) -> bool:
        """Whether we do what must be done."""
        if isinstance(self.kind.truth, str):
            return self.said.startswith("unsupported") and self.kind.truth in self.said
        height, width = self.kind.truth.shape[:2]
        return (
            self.ours is not None
            and self.ours <= self.kind.within
            and self.size == (width, height)
            and self.flaw == self.kind.flaw
        )


def row(kind: Kind) -> Row:
    """Decode one kind by all readers."""
    wanted = None if isinstance(kind.truth, str) else seen(kind.truth)
    ours, size, said, flaw = _ours(kind.content)
    return Row(
        kind,
        _distance(ours, wanted),
        size,
        said,
        flaw,
        _peer(peers.by_libvips, kind, wanted),
        _peer(peers.by_tifffile, kind, wanted) if kind.name.startswith("tiff") else None,
    )


def _ours(content: bytes) -> tuple[NDArray[np.uint8] | None, tuple[int, int], str, bool]:
    descriptor = os.memfd_create("kind", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, content)
        found = decode.decode(descriptor, SPEC)
    except ItemError as error:
        return None, (0, 0), f"{error.code}: {error}", False
    finally:
        os.close(descriptor)
    said = f"{found.flaw.code}: {found.flaw.message}" if found.flaw else ""
    return found.pixels, (found.width, found.height), said, found.flaw is not None


def _peer(
    reader: Callable[[bytes], NDArray[np.uint8]], kind: Kind, wanted: NDArray[np.uint8] | None
) -> float | None:
    try:
        return _distance(seen(reader(kind.content)), wanted)
    except Exception:  # readers raise whatever they like of what they do not read
        return None


def _distance(found: NDArray[np.uint8] | None, wanted: NDArray[np.uint8] | None) -> float | None:
    if found is None:
        return None
    return 0.0 if wanted is None else distance(found, wanted)


def rows(name: str) -> list[Row]:
    """All of a format."""
    return [row(kind) for kind in FORMATS[name]()]


def printed(found: Iterable[Row]) -> str:
    """The table."""
    head = f"{'kind':60} {'ours':>8} {'libvips':>8} {'tifffile':>8}"
    return "\n".join([head, *map(str, found)])


if __name__ == "__main__":
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    found = [
        row(kind)
        for name, kinds in FORMATS.items()
        if not wanted or wanted.startswith(name)
        for kind in kinds()
        if kind.name.startswith(wanted)
    ]
    print(printed(found))  # noqa: T201
