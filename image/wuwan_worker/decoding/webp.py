"""WebP: by Pillow. Of a file that was cut, what is there is decoded over zeros."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError

from wuwan_worker.decoding import coded
from wuwan_worker.decoding.base import (
    DAMAGE,
    Picture,
    exif_orientation,
    frame_with_content,
    judged,
    said,
)
from wuwan_worker.decoding.errors import Flaw, ItemError
from wuwan_worker.shared.protocol import ErrorCode, WarningCode

if TYPE_CHECKING:
    from wuwan_worker.decoding.base import Request

# Bytes a pixel, measured on pictures of 64 megapixels: libwebp's animation decoder has a canvas
# and the frame before it, lossless pictures one more, then Pillow's copy.
_LOSSY, _LOSSLESS = 17, 18
_HEADER = 12
_MOST_CHUNKS = 10_000  # before the picture's own


def read(data: bytes, request: Request) -> Picture:
    """See `Reader`."""
    size, per_pixel = _header(data)
    request.claim.need(size, per_pixel, len(data))
    declared = 8 + int.from_bytes(data[4:8], "little")
    flaw: Flaw | None = None
    if len(data) + 1 < declared:  # a last byte of padding is often forgotten
        present = max(0, len(data) - _HEADER) / (declared - _HEADER)
        flaw = judged(present, WarningCode.TRUNCATED, "the file ends early")
        # Zeros for the rest: what was there is decoded, and then comes something even.
        data += bytes(min(declared, 2 * len(data)) - len(data))
    try:
        image = Image.open(io.BytesIO(data), formats=("WEBP",))
        image.load()
    except (UnidentifiedImageError, *DAMAGE) as error:
        text = "the header is damaged" if isinstance(error, UnidentifiedImageError) else said(error)
        raise ItemError(ErrorCode.TRUNCATED, f"damaged image data: {text}") from None
    shown, lost = frame_with_content(image)
    if flaw is None and lost:
        flaw = Flaw(WarningCode.DAMAGED, f"frames cannot be read: {lost}")
    if flaw is None and (part := _sound(data, size)) < 1:
        flaw = judged(part, WarningCode.DAMAGED, "the pixel data have a hole")
    exif = image.info.get("exif")
    if exif and not exif.startswith(b"Exif"):
        exif = b"Exif\x00\x00" + exif
    return Picture(shown, image.size, exif_orientation(exif), flaw=flaw)


def _sound(data: bytes, size: tuple[int, int]) -> float:
    """The part of the picture's data in front of a hole, 0 to 1."""
    place = _HEADER
    end = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    for _ in range(_MOST_CHUNKS):
        if place + 8 > end:
            break
        kind, length = struct.unpack_from("<4sI", data, place)
        if kind in (b"VP8 ", b"VP8L"):
            return coded.sound(data[place + 8 : place + 8 + length], size[0] * size[1])
        place += 8 + length + length % 2
    return 1.0


def _header(data: bytes) -> tuple[tuple[int, int], int]:
    """Width and height, and what a pixel takes, bytes.

    Raises:
        ItemError: `truncated`, if it cannot be told.
    """
    kind = data[12:16]
    if kind == b"VP8X" and len(data) >= 30:
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
        return (width, height), _LOSSLESS
    if kind == b"VP8 " and len(data) >= 30 and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<2H", data, 26)
        return (width & 0x3FFF, height & 0x3FFF), _LOSSY
    if kind == b"VP8L" and len(data) >= 25 and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1), _LOSSLESS
    raise ItemError(ErrorCode.TRUNCATED, "the image's header is cut short or damaged")
