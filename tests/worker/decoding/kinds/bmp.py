"""BMP sub-kinds of the picture."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from tests.worker.decoding.kinds.base import HEIGHT, WIDTH, Kind, alpha, faded, palette, rgb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_HEADERS = {12: "core", 40: "info", 52: "v2", 56: "v3", 64: "os2", 108: "v4", 124: "v5"}


def built(
    rows: bytes,
    bits: int,
    *,
    header: int = 40,
    compression: int = 0,
    colours: bytes = b"",
    masks: tuple[int, ...] = (),
    down: bool = False,
    gap: int = 0,
    colours_used: int = 0,
    size: int | None = None,
) -> bytes:
    """A file of rows that are ready."""
    height = -HEIGHT if down else HEIGHT
    if header == 12:
        head = struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, bits)
    else:
        length = len(rows) if size is None else size
        head = struct.pack("<IiiHHII", header, WIDTH, height, 1, bits, compression, length)
        head += struct.pack("<iiII", 2835, 2835, colours_used, 0)
        if header > 40 and header != 64:
            four = (*masks, 0, 0, 0, 0)[:4]
            head += struct.pack("<4I", *four)[: min(16, header - 40)]
            if header >= 108:
                head += b"sRGB"[::-1]
        head = head.ljust(header, b"\0")
    outside = struct.pack(f"<{len(masks)}I", *masks) if masks and header == 40 else b""
    start = 14 + len(head) + len(outside) + len(colours) + gap
    whole = start + len(rows)
    return (
        struct.pack("<2sIHHI", b"BM", whole, 0, 0, start)
        + head + outside + colours + bytes(gap) + rows
    )  # fmt: skip


def _rows(values: NDArray[np.generic], *, down: bool = False) -> bytes:
    """Rows of whole groups of 4 bytes, the last one first."""
    flat = np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint8)
    flat = np.pad(flat, ((0, 0), (0, -flat.shape[1] % 4)))
    return (flat if down else flat[::-1]).tobytes()


def _packed(indices: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    wide = np.unpackbits(indices[..., None], axis=2)[..., 8 - bits :]
    return np.packbits(wide.reshape(len(indices), -1), axis=1)


def rle8(indices: NDArray[np.uint8]) -> bytes:
    """Runs, and stretches that are written out."""
    out = bytearray()
    for row in indices[::-1]:
        at = 0
        while at < len(row):
            run = 1
            while at + run < len(row) and run < 255 and row[at + run] == row[at]:
                run += 1
            if run > 2 or len(row) - at < 3:
                out += bytes((run, row[at]))
            else:
                run = min(len(row) - at, 20)
                out += bytes((0, run)) + row[at : at + run].tobytes() + bytes(run % 2)
            at += run
        out += b"\0\0"
    return bytes(out + b"\0\1")


def _rle4(indices: NDArray[np.uint8]) -> bytes:
    out = bytearray()
    for row in indices[::-1]:
        for at in range(0, len(row), 2):
            out += bytes((2, row[at] << 4 | row[at + 1]))
        out += b"\0\0"
    return bytes(out + b"\0\1")


def _bits(values: NDArray[np.uint8], widths: tuple[int, ...]) -> NDArray[np.generic]:
    """Red, green, blue and perhaps alpha in one number, the last one lowest."""
    kind = np.uint16 if sum(widths) <= 16 else np.uint32
    found = np.zeros(values.shape[:2], kind)
    for number, width in enumerate(widths):
        found = found << kind(width) | (values[..., number].astype(kind) >> kind(8 - width))
    return found


def _masks(*widths: int) -> tuple[int, ...]:
    found, place = [], sum(widths)
    for width in widths:
        place -= width
        found.append((2**width - 1) << place)
    return tuple(found)


def kinds() -> Iterator[Kind]:
    """All of them."""
    for bits in (1, 4, 8):
        indices, table, truth = palette(2**bits)
        rows = _rows(_packed(indices, bits) if bits < 8 else indices)
        four = np.pad(table[:, ::-1], ((0, 0), (0, 1))).tobytes()
        for header, name in _HEADERS.items():
            colours = table[:, ::-1].tobytes() if header == 12 else four
            yield Kind(
                f"bmp-{bits}-{name}", built(rows, bits, header=header, colours=colours), truth
            )
        down = _rows(_packed(indices, bits) if bits < 8 else indices, down=True)
        yield Kind(f"bmp-{bits}-top-down", built(down, bits, colours=four, down=True), truth)
        yield Kind(f"bmp-{bits}-gap", built(rows, bits, colours=four, gap=40), truth)
        yield Kind(
            f"bmp-{bits}-size-zero",
            built(rows, bits, colours=four, size=0, colours_used=2**bits),
            truth,
        )
    indices, table, truth = palette(100)
    four = np.pad(table[:, ::-1], ((0, 0), (0, 1))).tobytes()
    yield Kind("bmp-8-100-colours", built(_rows(indices), 8, colours=four, colours_used=100), truth)
    yield Kind(
        "bmp-rle8", built(rle8(indices), 8, compression=1, colours=four, colours_used=100), truth
    )
    indices, table, truth = palette(16)
    four = np.pad(table[:, ::-1], ((0, 0), (0, 1))).tobytes()
    yield Kind("bmp-rle4", built(_rle4(indices), 4, compression=2, colours=four), truth)
    yield from _direct()


def _direct() -> Iterator[Kind]:
    mirrored = rgb()[..., ::-1]
    for header, name in _HEADERS.items():
        yield Kind(f"bmp-24-{name}", built(_rows(mirrored), 24, header=header), rgb())
    yield Kind("bmp-24-top-down", built(_rows(mirrored, down=True), 24, down=True), rgb())
    for name, band, truth in (
        ("alpha-void", np.zeros_like(alpha()), rgb()),
        ("alpha-opaque", np.full_like(alpha(), 255), rgb()),
    ):
        values = np.dstack([mirrored, band])
        for header in (40, 56, 108, 124):
            label = _HEADERS[header]
            masks = (
                (0xFF0000, 0xFF00, 0xFF) if header == 40 else (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
            )
            yield Kind(f"bmp-32-{name}-{label}", built(_rows(values), 32, header=header), truth)
            yield Kind(
                f"bmp-32-{name}-{label}-bitfields",
                built(_rows(values), 32, header=header, compression=3, masks=masks),
                truth,
            )
    # A fourth byte without a mask is none; with one it is alpha.
    values = np.dstack([mirrored, alpha()])
    yield Kind("bmp-32-fourth-byte-info", built(_rows(values), 32), rgb())
    yield Kind(
        "bmp-32-faded-v5",
        built(
            _rows(values), 32, header=124, compression=3,
            masks=(0xFF0000, 0xFF00, 0xFF, 0xFF000000),
        ),
        faded(),
    )  # fmt: skip
    swapped = np.dstack([rgb(), alpha()])
    yield Kind(
        "bmp-32-faded-rgba-v4",
        built(
            _rows(swapped), 32, header=108, compression=3,
            masks=(0xFF, 0xFF00, 0xFF0000, 0xFF000000),
        ),
        faded(),
    )  # fmt: skip
    shifted = np.dstack([alpha(), mirrored])
    yield Kind(
        "bmp-32-xbgr",
        built(_rows(shifted), 32, compression=3, masks=(0xFF000000, 0xFF0000, 0xFF00)),
        rgb(),
    )
    yield Kind(
        "bmp-32-ten-bits",
        built(
            _rows((rgb().astype("u4") << 2) @ np.array([1 << 20, 1 << 10, 1], "u4")), 32,
            compression=3, masks=(0x3FF00000, 0xFFC00, 0x3FF),
        ),
        rgb(),
    )  # fmt: skip
    for widths in ((5, 5, 5), (5, 6, 5), (4, 4, 4)):
        rows = _rows(_bits(rgb(), widths))
        steps = [255 / (2**width - 1) for width in widths]
        truth = np.dstack(
            [(rgb()[..., n] >> (8 - width)) * step
             for n, (width, step) in enumerate(zip(widths, steps, strict=True))]
        ).round().astype(np.uint8)  # fmt: skip
        name = "".join(map(str, widths))
        masks = _masks(*widths)
        for header in (40, 56, 124):
            yield Kind(
                f"bmp-16-{name}-{_HEADERS[header]}",
                built(rows, 16, header=header, compression=3, masks=masks),
                truth,
            )
        if widths == (5, 5, 5):
            yield Kind("bmp-16-plain", built(rows, 16), truth)
    four = _bits(np.dstack([alpha(), rgb()]), (4, 4, 4, 4))
    yield Kind(
        "bmp-16-4444-v4",
        built(_rows(four), 16, header=108, compression=3, masks=(0xF00, 0xF0, 0xF, 0xF000)),
        faded(),
        within=8,
    )
    one = _bits(np.dstack([np.full_like(alpha(), 255), rgb()]), (1, 5, 5, 5))
    yield Kind(
        "bmp-16-1555-v4",
        built(_rows(one), 16, header=108, compression=3, masks=(0x7C00, 0x3E0, 0x1F, 0x8000)),
        rgb(),
        within=5,
    )
    yield Kind(
        "bmp-jpeg-inside", built(b"\xff\xd8\xff" + bytes(200), 0, compression=4), "JPEG inside"
    )
    yield Kind("bmp-png-inside", built(b"\x89PNG" + bytes(200), 0, compression=5), "PNG inside")
    yield Kind("bmp-2-bits", built(_rows(rgb()[..., 0] >> 2), 2), "BMP of 2 bits")
