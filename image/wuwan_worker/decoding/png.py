"""PNG: its critical chunks by Pillow. What the others hold, or how they are broken, is ignored.

Image generators write megabytes of text into a photo, and editors leave colour chunks with wrong
sums; every viewer shows these pictures.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from PIL import Image

from wuwan_worker.decoding import deep
from wuwan_worker.decoding.base import (
    DAMAGE,
    Picture,
    exif_orientation,
    frame_with_content,
    judged,
    loaded,
    may_be_short,
    uniform,
)
from wuwan_worker.decoding.errors import Flaw, ItemError
from wuwan_worker.shared.protocol import ErrorCode, WarningCode

if TYPE_CHECKING:
    from wuwan_worker.decoding.base import Request

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CRITICAL = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
_ANIMATION = {b"acTL", b"fcTL", b"fdAT"}
_KEPT = {b"PLTE", b"tRNS", b"IDAT"}
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # for each colour type
_PALETTE = 3
_MOST_CHUNKS = 2**19  # 512 MiB in pieces of a kilobyte; the rest of a longer file is left out


@dataclass(slots=True)
class _Chunks:
    """A PNG taken apart."""

    header: bytes = b""
    kept: list[tuple[bytes, bytes | memoryview]] = field(default_factory=list)
    animated: bool = False
    frames: bool = False  # besides the default image
    exif: bytes | None = None
    ended: bool = False
    wrong_sum: bool = False  # in pixel data or the palette


def read(data: bytes, request: Request) -> Picture:
    """See `Reader`."""
    chunks = _chunks(data)
    if len(chunks.header) != 13:
        raise ItemError(ErrorCode.TRUNCATED, "the image's header is cut short or damaged")
    width, height, bits, colours = struct.unpack_from("!2I2B", chunks.header)
    if not width or not height or colours not in _SAMPLES:
        raise ItemError(ErrorCode.TRUNCATED, "the image's header is damaged")
    kinds = [kind for kind, _ in chunks.kept]
    if (
        colours == _PALETTE
        and b"PLTE" not in kinds[: kinds.index(b"IDAT") if b"IDAT" in kinds else None]
    ):
        raise ItemError(ErrorCode.TRUNCATED, "the palette is missing")
    # Pillow keeps colours in 4 bytes, and has a second copy of what has alpha while it scales it.
    # An animation has frames, and what was before them.
    per_pixel = 9 if colours in (4, 6) else 8 if bits == 16 else 5 if colours == 2 else 2
    per_pixel += 12 * chunks.animated
    request.claim.need((width, height), per_pixel, 2 * len(data))
    content = _SIGNATURE + data[len(_SIGNATURE) :] if chunks.animated else _clean(chunks)

    def open_() -> Image.Image:
        return Image.open(io.BytesIO(content), formats=("PNG",))

    try:
        image, there, complaint = loaded(open_)
    except DAMAGE as error:
        if not chunks.animated:
            raise ItemError(ErrorCode.TRUNCATED, f"damaged image data: {error}") from None
        # The animation may be what is broken.
        content = _clean(chunks)
        image, there, complaint = loaded(open_)
    if not complaint and may_be_short(image) and (rows := _rows_there(chunks)) < 1:
        complaint, there = "the pixel data end early", rows
    flaw: Flaw | None = None
    if complaint:
        code = WarningCode.DAMAGED if chunks.ended else WarningCode.TRUNCATED
        flaw = judged(there, code, complaint)
    elif chunks.wrong_sum:
        flaw = Flaw(WarningCode.DAMAGED, "a checksum of the pixel data is wrong")
    if image.mode.startswith("I"):
        image = deep.grey(image)
    shown, lost = frame_with_content(image)
    if chunks.frames and shown is image and uniform(image):
        lost = lost or "the animation is damaged"
    if lost and flaw is None:
        flaw = Flaw(WarningCode.DAMAGED, f"frames cannot be read: {lost}")
    return Picture(shown, (width, height), exif_orientation(chunks.exif), flaw=flaw)


def _chunks(data: bytes) -> _Chunks:
    """Take a PNG apart.

    Raises:
        ItemError: `unsupported`, if it needs a chunk that is unknown.
    """
    found = _Chunks()
    view = memoryview(data)  # of half a gigabyte no copies
    place = len(_SIGNATURE)
    for _ in range(_MOST_CHUNKS):
        if place + 8 > len(data):
            break
        length, kind = struct.unpack_from("!I4s", data, place)
        content = view[place + 8 : place + 8 + length]
        whole = place + 12 + length <= len(data)
        if kind == b"IHDR" and not found.header:
            found.header = bytes(content)
        elif kind == b"IEND":
            found.ended = True
            break
        elif kind in _KEPT:
            # Only the last one can be cut. A part of the pixels is better than none.
            if whole and kind != b"tRNS":
                (check,) = struct.unpack_from("!I", data, place + 8 + length)
                found.wrong_sum |= check != zlib.crc32(content, zlib.crc32(kind))
            found.kept.append((kind, content))
        elif kind in _ANIMATION:
            found.animated = True
            found.frames |= kind == b"fdAT"
        elif kind == b"eXIf":
            found.exif = b"Exif\x00\x00" + bytes(content)
        elif kind[:1].isupper() and kind.isalpha() and kind not in _CRITICAL:
            name = kind.decode("ascii", "replace")
            raise ItemError(ErrorCode.UNSUPPORTED, f"PNG with a chunk {name} is not supported")
        place += 12 + length
    return found


def _clean(chunks: _Chunks) -> bytes:
    """A PNG of what matters."""
    parts: list[bytes | memoryview] = [_SIGNATURE]
    # The end is left out where it was: then a decoder does not wait for more in vain.
    end = [(b"IEND", b"")] if chunks.ended else []
    for kind, content in [(b"IHDR", chunks.header), *chunks.kept, *end]:
        check = zlib.crc32(content, zlib.crc32(kind))
        parts += [struct.pack("!I", len(content)), kind, content, struct.pack("!I", check)]
    return b"".join(parts)


def _rows_there(chunks: _Chunks) -> float:
    """The part of the pixel data that is there, 0 to 1, unpacked and thrown away."""
    width, height, bits, colours = struct.unpack_from("!2I2B", chunks.header)
    # Seven passes of an interlaced picture begin their rows each for itself: a little more.
    expected = height * (1 + (width * bits * _SAMPLES[colours] + 7) // 8)
    count = 0
    unpacker = zlib.decompressobj()
    try:
        for kind, content in chunks.kept:
            if kind != b"IDAT":
                continue
            rest = content
            while rest and not unpacker.eof and count < expected:  # or a bomb unpacks for ever
                count += len(unpacker.decompress(rest, 2**20))
                rest = unpacker.unconsumed_tail
    except zlib.error:
        pass
    return min(1.0, count / float(expected))
