"""GIF and WebP sub-kinds of the picture."""

from __future__ import annotations

import struct
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
    grey_rgb,
    palette,
    rgb,
    saved,
    turned,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


def _lzw(indices: bytes, bits: int) -> bytes:
    """Codes of one size: the table is cleared before it grows."""
    clear, end = 2**bits, 2**bits + 1
    out, held, count = bytearray(), 0, 0
    codes: list[int] = []
    for at in range(0, len(indices), clear - 2):
        codes += [clear, *indices[at : at + clear - 2]]
    for code in [*codes, end]:
        held |= code << count
        count += bits + 1
        while count >= 8:
            out.append(held & 255)
            held >>= 8
            count -= 8
    out.append(held & 255)
    blocks = (bytes(out[at : at + 255]) for at in range(0, len(out), 255))
    return bytes((bits,)) + b"".join(bytes((len(one),)) + one for one in blocks) + b"\0"


def frame(
    indices: NDArray[np.uint8],
    *,
    at: tuple[int, int] = (0, 0),
    colours: bytes = b"",
    interlaced: bool = False,
    clear: int | None = None,
    bits: int = 8,
) -> bytes:
    """One frame, with its control block."""
    height, width = indices.shape
    control = bytes((0x21, 0xF9, 4, 4 | (clear is not None), 10, 0, clear or 0, 0))
    flags = (0x80 | 7 if colours else 0) | (0x40 if interlaced else 0)
    if interlaced:
        order = [
            *range(0, height, 8),
            *range(4, height, 8),
            *range(2, height, 4),
            *range(1, height, 2),
        ]
        indices = indices[order]
    place = struct.pack("<B4HB", 0x2C, *at, width, height, flags)
    return control + place + colours + _lzw(indices.tobytes(), bits)


def built(
    *frames: bytes, colours: bytes = b"", version: bytes = b"GIF89a", ground: int = 0
) -> bytes:
    """A file of frames."""
    flags = 0xF7 if colours else 0x70
    head = version + struct.pack("<2H3B", WIDTH, HEIGHT, flags, ground, 0)
    return head + colours + b"".join(frames) + b"\x3b"


def kinds() -> Iterator[Kind]:
    """All of the GIFs."""
    indices, table, shown = palette(256)
    indices, table = 255 - indices, table[::-1]  # the first colour is dark
    colours = table.tobytes()
    yield Kind("gif-plain", built(frame(indices), colours=colours), shown)
    yield Kind("gif-87", built(frame(indices), colours=colours, version=b"GIF87a"), shown)
    yield Kind("gif-interlaced", built(frame(indices, interlaced=True), colours=colours), shown)
    yield Kind("gif-local-colours", built(frame(indices, colours=colours)), shown)
    wrong = bytes(768)
    yield Kind("gif-both-colours", built(frame(indices, colours=colours), colours=wrong), shown)
    key = int(indices[HEIGHT // 2, WIDTH // 2])
    holes = np.where((indices == key)[..., None], 255, shown).astype(np.uint8)
    yield Kind("gif-transparent", built(frame(indices, clear=key), colours=colours), holes)
    # The first frame is smaller than the canvas: around it nothing is, whatever the ground says.
    small = indices[40:120, 60:180]
    around = np.full_like(shown, 255)
    around[40:120, 60:180] = shown[40:120, 60:180]
    for ground in (0, 7):
        yield Kind(
            f"gif-small-frame-ground-{ground}",
            built(frame(small, at=(60, 40)), colours=colours, ground=ground),
            around,
        )
        yield Kind(
            f"gif-small-frame-clear-ground-{ground}",
            built(frame(small, at=(60, 40), clear=255), colours=colours, ground=ground),
            np.where(
                (np.pad(small, ((40, 40), (60, 60)), constant_values=255) == 255)[..., None],
                255,
                around,
            ).astype(np.uint8),
        )
    empty = np.full_like(indices, 3)
    yield Kind(
        "gif-empty-first", built(frame(empty, clear=3), frame(indices), colours=colours), shown
    )
    yield Kind("gif-even-first", built(frame(empty), frame(indices), colours=colours), shown)
    yield Kind("gif-two-frames", built(frame(indices), frame(empty), colours=colours), shown)
    comment = b"\x21\xfe\x03abc\0"
    yield Kind("gif-comment", built(comment, frame(indices), comment, colours=colours), shown)
    no_end = built(frame(indices), colours=colours)[:-1]
    yield Kind("gif-no-trailer", no_end, shown)
    image = Image.fromarray(grey())
    yield Kind("gif-pillow-grey", saved(image, "GIF"), grey_rgb())
    one = image.convert("1")
    yield Kind("gif-pillow-bilevel", saved(one, "GIF"), np.asarray(one.convert("RGB")))


def webps() -> Iterator[Kind]:
    """All of the WebPs."""
    picture = Image.fromarray(rgb())
    with_alpha = Image.fromarray(np.dstack([rgb(), alpha()]))
    grey_alpha = Image.fromarray(np.dstack([grey_rgb(), alpha()]))
    for method in (0, 6):
        yield Kind(
            f"webp-lossy-{method}", saved(picture, "WEBP", quality=95, method=method), rgb(), 4
        )
        yield Kind(
            f"webp-lossless-{method}", saved(picture, "WEBP", lossless=True, method=method), rgb()
        )
        yield Kind(
            f"webp-lossy-alpha-{method}",
            saved(with_alpha, "WEBP", quality=95, alpha_quality=100, method=method),
            faded(),
            4,
        )
        yield Kind(
            f"webp-lossless-alpha-{method}",
            saved(with_alpha, "WEBP", lossless=True, exact=True, method=method),
            faded(),
        )
    yield Kind(
        "webp-alpha-lossy-alpha",
        saved(with_alpha, "WEBP", quality=95, alpha_quality=50),
        faded(),
        8,
    )
    yield Kind("webp-grey", saved(Image.fromarray(grey()), "WEBP", lossless=True), grey_rgb())
    yield Kind(
        "webp-grey-alpha", saved(grey_alpha, "WEBP", lossless=True, exact=True), faded_grey()
    )
    indices, _, shown = palette(16)
    yield Kind("webp-few-colours", saved(Image.fromarray(shown), "WEBP", lossless=True), shown)
    del indices
    yield Kind("webp-icc", saved(picture, "WEBP", lossless=True, icc_profile=b"odd" * 50), rgb())
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield Kind(
            f"webp-exif-{orientation}",
            saved(picture, "WEBP", lossless=True, exif=exif.tobytes()),
            turned(rgb(), orientation),
        )
    clear, black = Image.new("RGBA", (WIDTH, HEIGHT)), Image.new("RGB", (WIDTH, HEIGHT))
    for lossless in (False, True):
        name, within = ("lossless", 1.5) if lossless else ("lossy", 4)
        options = {"save_all": True, "lossless": lossless, "quality": 95}
        yield Kind(
            f"webp-animated-{name}",
            saved(picture, "WEBP", append_images=[black], **options),
            rgb(),
            within,
        )
        yield Kind(
            f"webp-animated-{name}-empty-first",
            saved(clear, "WEBP", append_images=[with_alpha], **options),
            faded(),
            within,
        )
    plain = saved(picture, "WEBP", lossless=True)
    yield Kind("webp-data-behind-its-end", plain + bytes(3000), rgb())
