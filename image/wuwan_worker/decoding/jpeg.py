"""JPEG, and MPO, which is several of them: by libjpeg-turbo, which says what it had to repair.

Pillow decodes with the same library and keeps its warnings to itself: a photo with half of its data
zeroed looks like a whole one. simplejpeg gives the same pixels, and the warnings.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import simplejpeg
from PIL import Image

from wuwan_worker.decoding.base import Flaw, ItemError, Picture, exif_orientation, judged
from wuwan_worker.protocol import ErrorCode, WarningCode

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wuwan_worker.bundle import InputSpec
    from wuwan_worker.decoding.base import Request

_COLOURS = {1: ("GRAY", "L", "L"), 3: ("RGB", "RGB", "RGB"), 4: ("CMYK", "CMYK", "CMYK;I")}
_SCALES = (8, 4, 2, 1)  # libjpeg skips most of the inverse DCT at these
_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # frame headers (ITU T.81, table B.1)
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_LOSSLESS = {0xC3, 0xC7, 0xCB, 0xCF}
_SOS, _EOI, _APP0, _APP1, _ADOBE, _APP15 = 0xDA, 0xD9, 0xE0, 0xE1, 0xEE, 0xEF
_STANDALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_END = b"\xff\xd9"
# libjpeg's warnings that are about metadata, not about pixels (jerror.h of libjpeg-turbo).
HARMLESS = ("unknown JFIF revision", "Adobe color transform", "bad ICC marker")
# What a file system or a broken download leaves where data should be. Entropy-coded data of a
# picture in which nothing happens may have zeros, but then libjpeg has nothing to complain of.
_HOLE = bytes(1024)
_GREY = 128  # libjpeg's pixels where no data were: coefficients of 0


@dataclass(frozen=True, slots=True)
class Header:
    """What the segments before the first scan say."""

    size: tuple[int, int]  # width and height as stored, pixels
    components: int
    precision: int  # bits
    progressive: bool
    lossless: bool
    orientation: int
    scan: int  # where the first scan begins, bytes


def header(data: bytes) -> Header:
    """Read the segments, forgiving those that say nothing of the pixels.

    Raises:
        ItemError: `truncated`, if there is no frame header or no scan.
    """
    frame, exif, marker = None, None, 0
    place = 2
    while True:
        place = data.find(b"\xff", place)
        if place < 0 or place + 4 > len(data):
            raise ItemError(ErrorCode.TRUNCATED, "the image's header is cut short or damaged")
        marker = data[place + 1]
        if marker in (0x00, 0xFF) or marker in _STANDALONE:  # filling, or garbage between segments
            place += 1
            continue
        if marker in (_SOS, _EOI):
            break
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        content = data[place + 4 : place + 2 + length]
        if marker in _SOF and frame is None and len(content) >= 6:
            frame = (marker, *struct.unpack_from("!BHHB", content))
        elif marker == _APP1 and exif is None and content.startswith(b"Exif\x00"):
            exif = content
        place += 2 + max(2, length)
    if frame is None or marker == _EOI:
        raise ItemError(ErrorCode.TRUNCATED, "the image has no frame or no scan")
    kind, precision, height, width, components = frame
    return Header(
        (width, height),
        components,
        precision,
        kind in _PROGRESSIVE,
        kind in _LOSSLESS,
        exif_orientation(exif),
        place,
    )


def read(data: bytes, request: Request) -> Picture:
    """See `Reader`."""
    head = header(data)
    width, height = head.size
    if head.precision != 8 or head.components not in _COLOURS:
        kind = f"{head.precision}-bit" if head.precision != 8 else f"{head.components}-component"
        raise ItemError(ErrorCode.UNSUPPORTED, f"{kind} JPEG is not supported")
    if not width or not height:
        raise ItemError(ErrorCode.UNSUPPORTED, f"a JPEG of {width} x {height} is not supported")
    scale = 1 if request.exact or head.lossless else reduced(head.size, request.spec)
    # The array, Pillow's copy; and a progressive one has all its coefficients in memory at once.
    coefficients = 2 * head.components if head.progressive else 0
    request.claim.need(head.size, 7 / scale**2 + coefficients, len(data))
    pixels, flaw = _decoded(data, head, scale)
    _, mode, raw = _COLOURS[head.components]
    image = Image.frombuffer(mode, pixels.shape[1::-1], pixels, "raw", raw, 0, 1)
    return Picture(image, head.size, head.orientation, flaw=flaw)


def reduced(size: tuple[int, int], spec: InputSpec) -> int:
    """The largest scale at which the shorter side keeps `spec.resize` pixels."""
    factor = spec.resize / min(size)
    least = min(side // max(1, int(side * factor)) for side in size)
    return next((scale for scale in _SCALES if scale <= least), 1)


def _decoded(data: bytes, head: Header, scale: int) -> tuple[NDArray[np.uint8], Flaw | None]:
    try:
        return _pixels(data, head, scale, strict=True), None
    except ValueError as error:
        complaint = str(error)
    if any(text in complaint for text in HARMLESS) and (bare := _bare(data, head)) != data:
        # libjpeg says what is wrong with the pixels only when that is said no more.
        return _decoded(bare, replace(head, scan=head.scan + len(bare) - len(data)), scale)
    if (hole := data.find(_HOLE, head.scan)) >= 0:
        data = data[:hole] + _END
    try:
        pixels = _pixels(data, head, scale, strict=False)
    except ValueError as error:
        # What it cannot decode at all, as opposed to what it had to repair. Rubbish between the
        # segments stops it as well, though it would find its way.
        complaint = str(error)
        if (bare := _bare(data, head)) != data:
            again = replace(head, scan=head.scan + len(bare) - len(data))
            pixels, flaw = _decoded(bare, again, scale)
            return pixels, flaw or Flaw(WarningCode.DAMAGED, complaint)
        odd = unsupported(complaint)
        refusal = ErrorCode.UNSUPPORTED if odd else ErrorCode.TRUNCATED
        raise ItemError(refusal, complaint) from None
    rows = pixels.reshape(len(pixels), -1)
    there = 1 - float((rows == _GREY).all(axis=1).mean())
    ended = "Premature end" in complaint and "segment" not in complaint
    code = WarningCode.TRUNCATED if ended or hole >= 0 else WarningCode.DAMAGED
    return pixels, judged(there, code, complaint)


def _bare(data: bytes, head: Header) -> bytes:
    """The file without the metadata before its scan. Of Adobe's segment, which says how colours
    are meant, one that makes sense is kept, and one that does not says what libjpeg assumes."""
    parts, place = [data[:2]], 2
    while place < head.scan:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if data[place] != 0xFF or marker in (0x00, 0xFF) or marker in _STANDALONE:
            place += 1
            continue
        segment = data[place : place + 2 + length]
        if marker == _ADOBE and segment[4:9] == b"Adobe" and len(segment) >= 16:
            if segment[15] > 2:
                segment = segment[:15] + bytes((1 if head.components == 3 else 2,)) + segment[16:]
            parts.append(segment)
        elif not _APP0 <= marker <= _APP15:
            parts.append(segment)
        place += 2 + max(2, length)
    return b"".join([*parts, data[head.scan :]])


def unsupported(complaint: str) -> bool:
    """Whether libjpeg says that a file may be whole, but is of a kind that it does not read."""
    return "nsupported" in complaint and "marker" not in complaint


def _pixels(data: bytes, head: Header, scale: int, *, strict: bool) -> NDArray[np.uint8]:
    """(height, width, components), or (height, width, 1) in grey.

    Raises:
        ValueError: of data that cannot be decoded; with `strict`, of data that had to be repaired.
    """
    width, height = head.size
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        data,
        _COLOURS[head.components][0],
        min_width=-(-width // scale),
        min_height=-(-height // scale),
        strict=strict,
    )
    return pixels
