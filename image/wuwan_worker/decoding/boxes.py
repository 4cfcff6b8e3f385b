"""The boxes of an ISO base media file (ISO/IEC 14496-12) as far as HEIC and AVIF need them.

Bounded: no box is looked at twice, and what does not add up ends the search.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST = 4096  # boxes, items, extents in one list


@dataclass(frozen=True, slots=True)
class Item:
    """One item of the file."""

    kind: bytes = b""
    extents: tuple[tuple[int, int], ...] = ()  # where in the file, and how many bytes
    properties: tuple[tuple[bytes, bytes], ...] = ()  # type and content, in order


@dataclass(slots=True)
class Meta:
    """What the meta box says."""

    primary: int = 0
    items: dict[int, Item] = field(default_factory=dict)
    kinds: dict[int, tuple[bytes, int]] = field(default_factory=dict)  # and where that is written
    made_of: dict[int, tuple[int, ...]] = field(default_factory=dict)  # tiles of a grid


def walk(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Type, and where the content begins and ends, of each box."""
    for _ in range(_MOST):
        if start + 8 > end:
            return
        size, kind = struct.unpack_from("!I4s", data, start)
        head = 8
        if size == 1 and start + 16 <= end:
            (size,) = struct.unpack_from("!Q", data, start + 8)
            head = 16
        elif size == 0:
            size = end - start
        if size < head:
            return
        yield kind, start + head, min(start + size, end)
        start += size


def meta(data: bytes) -> Meta | None:
    """The file's meta box; None where there is none, or it makes no sense."""
    try:
        for kind, start, end in walk(data, 0, len(data)):
            if kind == b"meta":
                return _meta(data, start + 4, end)
    except (struct.error, IndexError, ValueError):
        pass
    return None


def _meta(data: bytes, start: int, end: int) -> Meta:
    found = Meta()
    references = _MOST  # of all grids together
    extents: dict[int, tuple[tuple[int, int], ...]] = {}
    properties: dict[int, tuple[tuple[bytes, bytes], ...]] = {}
    for kind, begin, stop in walk(data, start, end):
        if kind == b"pitm":
            wide = data[begin] > 0
            found.primary = int.from_bytes(data[begin + 4 : begin + (8 if wide else 6)], "big")
        elif kind == b"iinf":
            begin += 4 + (4 if data[begin] else 2)
            for entry, at, _ in walk(data, begin, stop):
                if entry == b"infe":
                    width = 4 if data[at] > 2 else 2
                    number = int.from_bytes(data[at + 4 : at + 4 + width], "big")
                    place = at + 6 + width
                    found.kinds[number] = (data[place : place + 4], place)
        elif kind == b"iloc":
            extents = _extents(data, begin)
        elif kind == b"iprp":
            properties = _properties(data, begin, stop)
        elif kind == b"iref":
            width = 4 if data[begin] else 2
            for reference, at, _ in walk(data, begin + 4, stop):
                if reference == b"dimg":
                    number = int.from_bytes(data[at : at + width], "big")
                    count = int.from_bytes(data[at + width : at + width + 2], "big")
                    at += width + 2
                    found.made_of[number] = tuple(
                        int.from_bytes(data[at + width * i : at + width * (i + 1)], "big")
                        for i in range(min(count, references))
                    )
                    references -= min(count, references)
    for number, (kind, _) in found.kinds.items():
        found.items[number] = Item(kind, extents.get(number, ()), properties.get(number, ()))
    return found


def _extents(data: bytes, at: int) -> dict[int, tuple[tuple[int, int], ...]]:
    version = data[at]
    offset_size, length_size = data[at + 4] >> 4, data[at + 4] & 15
    base_size, index_size = data[at + 5] >> 4, data[at + 5] & 15 if version else 0
    at += 6

    def number(size: int) -> int:
        nonlocal at
        value = int.from_bytes(data[at : at + size], "big")
        at += size
        return value

    found = {}
    left = _MOST  # extents of all items together: they may take no bytes to write
    wide = 4 if version == 2 else 2
    for _ in range(min(number(wide), _MOST)):
        item = number(wide)
        method = number(2) & 15 if version else 0
        number(2)  # the file it is in: this one
        base = number(base_size)
        places = []
        count = min(number(2), left)
        left -= count
        for _ in range(count):
            number(index_size)
            offset = number(offset_size)
            places.append((base + offset, number(length_size)))
        if method == 0:  # offsets in the file, not in a box
            found[item] = tuple(places)
    return found


def _properties(data: bytes, start: int, end: int) -> dict[int, tuple[tuple[bytes, bytes], ...]]:
    known: list[tuple[bytes, bytes]] = []
    found: dict[int, tuple[tuple[bytes, bytes], ...]] = {}
    for kind, begin, stop in walk(data, start, end):
        if kind == b"ipco":
            known = [(name, data[at:until]) for name, at, until in walk(data, begin, stop)]
        elif kind == b"ipma":
            version, flags = data[begin], data[begin + 3]
            (count,) = struct.unpack_from("!I", data, begin + 4)
            at = begin + 8
            item_width, index_width = (2 if version < 1 else 4), (2 if flags & 1 else 1)
            mask = 0x7FFF if flags & 1 else 0x7F
            for _ in range(min(count, _MOST)):
                item = int.from_bytes(data[at : at + item_width], "big")
                at += item_width
                number = data[at]
                at += 1
                indices = [
                    int.from_bytes(data[at + index_width * i : at + index_width * (i + 1)], "big")
                    & mask
                    for i in range(number)
                ]
                at += index_width * number
                found[item] = tuple(known[i - 1] for i in indices if 0 < i <= len(known))
    return found
