"""PNG sub-kinds of the picture."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tests.worker.decoding.kinds.base import (
    HEIGHT,
    WIDTH,
    Kind,
    alpha,
    faded,
    faded_grey,
    grey,
    over_white,
    palette,
    rgb,
    saved,
    turned,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
           (0, 1, 1, 2))  # fmt: skip


def chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk, with its sum."""
    check = zlib.crc32(kind + content)
    return struct.pack("!I", len(content)) + kind + content + struct.pack("!I", check)


def _lines(values: NDArray[np.generic], bits: int) -> bytes:
    """Rows behind their filter's number, 0."""
    if not values.size:
        return b""
    if bits == 16:
        flat = values.astype(">u2").reshape(len(values), -1).view(np.uint8)
    elif bits < 8:
        wide = np.unpackbits(values.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :]
        flat = np.packbits(wide.reshape(len(values), -1), axis=1)
    else:
        flat = values.astype(np.uint8).reshape(len(values), -1)
    return np.pad(flat, ((0, 0), (1, 0))).tobytes()


def built(
    values: NDArray[np.generic],
    bits: int,
    colours: int,
    *,
    interlaced: bool = False,
    before: bytes = b"",
    after: bytes = b"",
    pieces: int = 1,
) -> bytes:
    """A file; values are (height, width) or (height, width, samples)."""
    height, width = values.shape[:2]
    if interlaced:
        raw = b"".join(
            _lines(values[top::down, left::across], bits) for left, top, across, down in _PASSES
        )
    else:
        raw = _lines(values, bits)
    packed = zlib.compress(raw, 6)
    step = -(-len(packed) // pieces)
    data = b"".join(chunk(b"IDAT", packed[at : at + step]) for at in range(0, len(packed), step))
    header = struct.pack("!2I5B", width, height, bits, colours, 0, 0, int(interlaced))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + data + after + chunk(b"IEND", b"")
    )


def kinds() -> Iterator[Kind]:
    """All of them."""
    for interlaced in (False, True):
        mark = "-interlaced" if interlaced else ""
        for bits in (1, 2, 4, 8, 16):
            top = 2 ** min(bits, 8) - 1
            few = grey() >> (8 - min(bits, 8))
            values = grey().astype("u2") * np.uint16(257) if bits == 16 else few
            shown = np.repeat((few * (255 // top)).astype(np.uint8)[..., None], 3, axis=2)
            yield Kind(
                f"png-grey-{bits}{mark}", built(values, bits, 0, interlaced=interlaced), shown
            )
            # One value is transparent: that of the first pixel.
            key = int(values[0, 0])
            yield Kind(
                f"png-grey-{bits}-trns{mark}",
                built(
                    values,
                    bits,
                    0,
                    interlaced=interlaced,
                    before=chunk(b"tRNS", struct.pack("!H", key)),
                ),
                np.where((values == key)[..., None], 255, shown).astype(np.uint8),
            )
            if bits < 16:
                indices, table, shown = palette(2**bits)
                plte = chunk(b"PLTE", table.tobytes())
                yield Kind(
                    f"png-palette-{bits}{mark}",
                    built(indices, bits, 3, interlaced=interlaced, before=plte),
                    shown,
                )
                part = np.linspace(0, 255, 2**bits).round().astype(np.uint8)
                for count in {1, 2**bits}:
                    trns = chunk(b"tRNS", part[:count].tobytes())
                    seen = np.concatenate([part[:count], np.full(2**bits - count, 255, np.uint8)])
                    yield Kind(
                        f"png-palette-{bits}-trns-{count}{mark}",
                        built(indices, bits, 3, interlaced=interlaced, before=plte + trns),
                        over_white(shown, seen[indices]),
                    )
        for bits, scale in ((8, 1), (16, 257)):
            wide = rgb().astype("u4") * scale
            key = wide[0, 0]
            trns = chunk(b"tRNS", struct.pack("!3H", *map(int, key)))
            hit = (wide == key).all(axis=2)[..., None]
            for name, values, colours, before, shown in (
                ("rgb", wide, 2, b"", rgb()),
                ("rgb-trns", wide, 2, trns, np.where(hit, 255, rgb()).astype(np.uint8)),
                (
                    "grey-alpha",
                    np.dstack([grey(), alpha()]).astype("u4") * scale,
                    4,
                    b"",
                    faded_grey(),
                ),
                ("rgba", np.dstack([rgb(), alpha()]).astype("u4") * scale, 6, b"", faded()),
            ):
                yield Kind(
                    f"png-{name}-{bits}{mark}",
                    built(values, bits, colours, interlaced=interlaced, before=before),
                    shown,
                )
    plain = built(rgb(), 8, 2)
    yield Kind("png-many-idat", built(rgb(), 8, 2, pieces=50), rgb())
    yield Kind("png-rgb-with-palette", built(rgb(), 8, 2, before=chunk(b"PLTE", bytes(30))), rgb())
    indices, table, shown = palette(256)
    yield Kind(
        "png-palette-too-short",  # indices beyond it are black
        built(indices, 8, 3, before=chunk(b"PLTE", table[:250].tobytes())),
        np.where((indices < 250)[..., None], shown, 0).astype(np.uint8),
    )
    yield Kind("png-data-behind-its-end", plain + bytes(5000), rgb())
    yield Kind("png-text-after", built(rgb(), 8, 2, after=chunk(b"tEXt", b"a\0b")), rgb())
    for kind in (
        b"sRGB",
        b"gAMA",
        b"cHRM",
        b"pHYs",
        b"iCCP",
        b"sBIT",
        b"bKGD",
        b"tIME",
        b"zTXt",
        b"cICP",
    ):
        yield Kind(
            f"png-odd-{kind.decode()}", built(rgb(), 8, 2, before=chunk(kind, b"\xff\xfe")), rgb()
        )
    for orientation in (3, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
        shown = turned(rgb(), orientation)
        yield Kind(f"png-exif-{orientation}-before", built(rgb(), 8, 2, before=content), shown)
        yield Kind(f"png-exif-{orientation}-after", built(rgb(), 8, 2, after=content), shown)
    clear = Image.new("RGBA", (WIDTH, HEIGHT))
    whole = Image.fromarray(rgb())
    black = Image.new("RGB", (WIDTH, HEIGHT))
    yield Kind("png-animated", saved(whole, "PNG", save_all=True, append_images=[black]), rgb())
    yield Kind(
        "png-animated-empty-first",
        saved(clear, "PNG", save_all=True, append_images=[whole.convert("RGBA")]),
        rgb(),
    )
    yield Kind(
        "png-animated-default-image",  # what is shown where animations are not known
        saved(black, "PNG", save_all=True, append_images=[whole], default_image=True),
        rgb(),
    )
    apple = plain[:8] + chunk(b"CgBI", bytes(4)) + plain[8:]
    yield Kind("png-cgbi", apple, "CgBI")
