"""HEIC and AVIF, which share a container: by libheif (pillow-heif) and libavif (Pillow).

What is inside is told by the list of brands, not by the first one, which may be as general as
"mif1"; and where that decoder cannot read it, the other one tries.
"""

from __future__ import annotations

import functools
import io
import itertools
import struct
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError

from wuwan_worker.decoding import boxes, coded, deep
from wuwan_worker.decoding.base import (
    DAMAGE,
    LEAST_THERE,
    Picture,
    exif_orientation,
    frame_with_content,
    judged,
    said,
)
from wuwan_worker.decoding.errors import Flaw, ItemError
from wuwan_worker.decoding.identify import ftyp_brands
from wuwan_worker.shared.protocol import ErrorCode, WarningCode

if TYPE_CHECKING:
    from wuwan_worker.decoding.base import Request
    from wuwan_worker.decoding.boxes import Meta

_AVIF_BRANDS = {b"avif", b"avis"}
_HEVC_ITEMS = {b"hvc1", b"lhv1"}
_AV1_ITEMS = {b"av01"}
# Bytes a pixel: planes, their copy as colours, Pillow's copy (measured on 48 megapixels).
_PER_PIXEL = 14


@functools.cache
def _register() -> None:
    """Load the decoders: 30 ms, which most starts need not spend."""
    import pillow_heif
    from PIL import AvifImagePlugin  # noqa: F401  # registers its format

    pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)


def read(data: bytes, request: Request) -> Picture:
    """See `Reader`."""
    _register()
    meta = boxes.meta(data)
    avif_first = _is_avif(data, meta)
    there = _there(data, meta)
    contents = [data]
    if there >= LEAST_THERE and _end(meta) > len(data):
        # Something for the rest, without which libavif and libheif give nothing of what is there.
        # Not zeros: dav1d looks for a last bit that is set.
        data += b"\x80" * (min(_end(meta), 2 * len(data)) - len(data))
        contents.append(data)
        # An alpha channel comes last, and where it is not there colours alone are better.
        contents.append(data.replace(b"auxl", b"free", 1))
    # What the first decoder said, as text: an exception would hold the file in memory.
    complaint, unread = "", False
    readers = (_avif, _heic) if avif_first else (_heic, _avif)
    for content, read_as in itertools.product(contents, readers):
        try:
            picture = read_as(content, meta, request)
        except ItemError:
            raise
        except Exception as error:  # both libraries raise whatever their parsers stumble on
            if not complaint:
                complaint = said(error)
                unread = isinstance(error, UnidentifiedImageError) or "nsupported" in complaint
            continue
        flaw: Flaw | None = None
        if there < 1 or content is not contents[0]:
            flaw = judged(there, WarningCode.TRUNCATED, "the file ends early")
        elif (whole := _sound(data, meta, picture.size)) < 1:
            flaw = judged(whole, WarningCode.DAMAGED, "the pixel data are damaged")
        elif picture.flaw:
            flaw = picture.flaw
        return Picture(picture.image, picture.size, picture.orientation, flaw=flaw)
    if unread:
        if there == 1 and meta is not None and _coding(meta) not in _HEVC_ITEMS | _AV1_ITEMS:
            name = _coding(meta).decode("ascii", "replace").strip() or "this coding"
            raise ItemError(ErrorCode.UNSUPPORTED, f"HEIF with {name} is not supported") from None
        raise ItemError(ErrorCode.TRUNCATED, "the image's header is cut short or damaged") from None
    raise ItemError(ErrorCode.TRUNCATED, f"damaged image data: {complaint}") from None


def _is_avif(data: bytes, meta: Meta | None) -> bool:
    """What the primary item is coded in decides; then the brands."""
    coding = _coding(meta) if meta is not None else b""
    if coding in _AV1_ITEMS | _HEVC_ITEMS:
        return coding in _AV1_ITEMS
    return not _AVIF_BRANDS.isdisjoint(ftyp_brands(data))


def _coding(meta: Meta) -> bytes:
    """How the primary item is coded; for a grid, how its tiles are."""
    parts = meta.made_of.get(meta.primary, ())
    numbers = [*parts[:1], meta.primary] if parts else [meta.primary]
    return meta.items[numbers[0]].kind if numbers[0] in meta.items else b""


def _there(data: bytes, meta: Meta | None) -> float:
    """The part of the primary picture's coded data that lies within the file, 0 to 1."""
    if meta is None:
        return 1.0
    numbers = (meta.primary, *meta.made_of.get(meta.primary, ()))
    extents = [
        extent
        for number in numbers
        if number in meta.items
        for extent in meta.items[number].extents
    ]
    total = sum(length for _, length in extents)
    inside = sum(max(0, min(length, len(data) - offset)) for offset, length in extents)
    return inside / total if total else 1.0


def _end(meta: Meta | None) -> int:
    """Where the last byte of any item is, at the most."""
    items = meta.items.values() if meta else ()
    return max((offset + length for item in items for offset, length in item.extents), default=0)


def _sound(data: bytes, meta: Meta | None, size: tuple[int, int]) -> float:
    """The part of the coded data in front of the first damage that shows, 0 to 1."""
    if meta is None:
        return 1.0
    tiles = meta.made_of.get(meta.primary, ()) or (meta.primary,)
    found, total = 0.0, 0
    for number in tiles:
        item = meta.items.get(number)
        if item is None:
            continue
        content = b"".join(data[at : at + length] for at, length in item.extents)
        config = dict(item.properties).get(b"hvcC", b"")
        if item.kind == b"hvc1" and len(config) > 21:
            part = coded.sound_hevc(content, (config[21] & 3) + 1)
        elif item.kind in _AV1_ITEMS:
            part = coded.sound(content, size[0] * size[1] // len(tiles))
        else:
            part = 1.0
        found += part * len(content)
        total += len(content)
    return found / total if total else 1.0


def _avif(data: bytes, meta: Meta | None, request: Request) -> Picture:
    data = data[:8] + b"avif" + data[12:]

    def opened(content: bytes) -> Image.Image:
        return Image.open(io.BytesIO(content), formats=("AVIF",))

    try:
        image = opened(data)
    except (UnidentifiedImageError, *DAMAGE):
        # Damaged EXIF data make Pillow refuse the picture. As an item of another kind they are
        # nobody's business.
        places = [place for kind, place in meta.kinds.values() if kind == b"Exif"] if meta else []
        if not places:
            raise
        changed = bytearray(data)
        for place in places:
            changed[place : place + 4] = b"free"
        image = opened(bytes(changed))
    request.claim.need(image.size, _PER_PIXEL, len(data))
    image.load()
    orientation = exif_orientation(image.info.get("exif"))
    shown, lost = frame_with_content(image)
    cropped = _cropped(shown, meta)
    flaw = Flaw(WarningCode.DAMAGED, f"frames cannot be read: {lost}") if lost else None
    return Picture(cropped, cropped.size, orientation, flaw=flaw)


def _cropped(image: Image.Image, meta: Meta | None) -> Image.Image:
    """The clean aperture, which libavif leaves to its caller (ISO/IEC 14496-12, 12.1.4)."""
    item = meta.items.get(meta.primary) if meta else None
    for kind, content in item.properties if item else ():
        if kind == b"clap" and len(content) >= 32:
            numbers = struct.unpack_from("!4IiIiI", content)
            if 0 in numbers[1::2]:
                return image
            wide, high, right, down = (numbers[i] / numbers[i + 1] for i in (0, 2, 4, 6))
            left = (image.width - wide) / 2 + right
            top = (image.height - high) / 2 + down
            box = tuple(round(edge) for edge in (left, top, left + wide, top + high))
            if 0 <= box[0] < box[2] <= image.width and 0 <= box[1] < box[3] <= image.height:
                return image.crop(box)
    return image


def _heic(data: bytes, meta: Meta | None, request: Request) -> Picture:
    del meta
    if data[8:12] in _AVIF_BRANDS:
        data = data[:8] + b"heic" + data[12:]
    image: Image.Image = Image.open(io.BytesIO(data), formats=("HEIF",))
    request.claim.need(image.size, _PER_PIXEL, len(data))
    image.load()
    if image.mode.startswith("I"):
        image = deep.grey(image)
    # libheif has turned and cropped it, and the size is known only now.
    return Picture(image, image.size)
