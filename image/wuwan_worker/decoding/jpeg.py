"""JPEG, and MPO, which is several of them: by libjpeg-turbo, which says what it had to repair.

Pillow decodes with the same library and keeps its warnings to itself: a photo with half of its data
zeroed looks like a whole one. simplejpeg gives the same pixels, and the warnings.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import simplejpeg
from PIL import Image

from wuwan_worker.decoding.base import Picture, exif_orientation, judged
from wuwan_worker.decoding.errors import Flaw, ItemError
from wuwan_worker.shared.protocol import ErrorCode, WarningCode

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wuwan_worker.decoding.base import Request
    from wuwan_worker.shared.bundle import InputSpec

_COLOURS = {1: ("GRAY", "L", "L"), 3: ("RGB", "RGB", "RGB"), 4: ("CMYK", "CMYK", "CMYK;I")}
_SCALES = (8, 4, 2, 1)  # libjpeg skips most of the inverse DCT at these
_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # frame headers (ITU T.81, table B.1)
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_LOSSLESS = {0xC3, 0xC7, 0xCB, 0xCF}
_SOS, _EOI, _APP0, _APP1, _APP14 = 0xDA, 0xD9, 0xE0, 0xE1, 0xEE
_TABLES = _SOF | {0xC4, 0xCC, 0xDB, 0xDD}  # frames, and tables for coding, quantising, restarts
_JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01" + bytes(7)  # says that colours are YCbCr
_MOST_SEGMENTS = 100_000  # a header of more is no photo's
# Each scan is a pass over all coefficients: 500 of them took 12 s for 268 megapixels, in a file of
# 700 KB. Photos have 10 as jpegtran writes them, and hardly 20 with any optimiser. libjpeg-turbo's
# authors advise a limit ("Two Issues with the JPEG Standard"; `-maxscans`), and their fuzzers have
# 500. Above it no photo is: it is refused, since a part of the scans would be another picture.
MOST_SCANS = 100
_CHUNK = 65536
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
    tables: bytes  # the segments that decoding needs, in order


def header(data: bytes) -> Header:
    """Read the segments, forgiving those that say nothing of the pixels.

    Raises:
        ItemError: `truncated`, if there is no frame header or no scan; `unsupported`, if there are
            more than `MOST_SCANS`.
    """
    frame, exif, marker = None, None, 0
    tables: list[bytes] = []
    place = 2
    for _ in range(_MOST_SEGMENTS):
        place = data.find(b"\xff", place)
        place = _behind(data, place) - 1 if place >= 0 else len(data)
        if place + 4 > len(data):
            raise ItemError(ErrorCode.TRUNCATED, "the image's header is cut short or damaged")
        marker = data[place + 1]
        if marker == 0 or marker in _STANDALONE:  # garbage between segments
            place += 1
            continue
        if marker in (_SOS, _EOI):
            break
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        content = data[place + 4 : place + 2 + length]
        if marker in _SOF and frame is None and len(content) >= 6:
            frame = (marker, *struct.unpack_from("!BHHB", content))
        # An Adobe segment says how colours are coded, in the three ways that there are.
        adobe = marker == _APP14 and content.startswith(b"Adobe") and content[11:12] <= b"\x02"
        if marker in _TABLES or adobe:
            tables.append(data[place : place + 2 + length])
        elif marker == _APP0 and content.startswith(b"JFIF\x00"):
            tables.append(_JFIF)
        elif marker == _APP1 and exif is None and content.startswith(b"Exif\x00"):
            exif = content
        place += 2 + max(2, length)
    if frame is None or marker != _SOS:
        raise ItemError(ErrorCode.TRUNCATED, "the image has no frame or no scan")
    kind, precision, height, width, components = frame
    # A decoder ends with the first scan if that has all components, as in most photos: counting
    # would cost them 0.2 ms, a tenth of what they cost in all.
    only = kind not in _PROGRESSIVE and data[place + 4 : place + 5] == bytes((components,))
    if not only and (scans := _scans(data, place)) > MOST_SCANS:
        raise ItemError(
            ErrorCode.UNSUPPORTED, f"a JPEG of {scans} scans is not supported (up to {MOST_SCANS})"
        )
    return Header(
        (width, height),
        components,
        precision,
        kind in _PROGRESSIVE,
        kind in _LOSSLESS,
        exif_orientation(exif),
        place,
        b"".join(tables),
    )


def _scans(data: bytes, first: int) -> int:
    """How many there are up to the end of the picture.

    Coded data have no marker in them, so to count is enough. Who hides an end in a comment has less
    counted than there are, and the time limit against him.
    """
    end = data.find(_END, first)
    return data.count(b"\xff\xda", first, end if end >= 0 else len(data))


def _behind(data: bytes, place: int) -> int:
    """Where a run of 0xFF ends: segments may be filled up with any number of them."""
    while chunk := data[place : place + _CHUNK]:
        rest = chunk.lstrip(b"\xff")
        place += len(chunk) - len(rest)
        if rest:
            break
    return place


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
    request.claim.need(head.size, 8 / scale**2 + coefficients, len(data))
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
    harmless = any(text in complaint for text in HARMLESS)
    data = b"\xff\xd8" + head.tables + data[head.scan :]
    if harmless or "before marker" in complaint:
        # It may be between the segments, and that says nothing of the pixels: once more without.
        try:
            pixels = _pixels(data, head, scale, strict=True)
            return pixels, None if harmless else Flaw(WarningCode.DAMAGED, complaint)
        except ValueError as error:
            complaint = str(error)
    if (hole := data.find(_HOLE, len(head.tables))) >= 0:
        data = data[:hole] + _END
    try:
        pixels = _pixels(data, head, scale, strict=False)
    except ValueError as error:
        # What it cannot decode at all, as opposed to what it had to repair.
        complaint = str(error)
        odd = unsupported(complaint)
        refusal = ErrorCode.UNSUPPORTED if odd else ErrorCode.TRUNCATED
        raise ItemError(refusal, complaint) from None
    rows = pixels.reshape(len(pixels), -1)
    there = 1 - float((rows == _GREY).all(axis=1).mean())
    ended = "Premature end" in complaint and "segment" not in complaint
    code = WarningCode.TRUNCATED if ended or hole >= 0 else WarningCode.DAMAGED
    return pixels, judged(there, code, complaint)


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
