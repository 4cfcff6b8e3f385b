"""TIFF: by Pillow and libtiff, after its directory has been put in order.

TIFF is a box of building blocks, and Pillow misreads some of what is built of them: 16 bits in
planes, white that is zero, floats of the other byte order, colour maps of 8 bits, BigTIFF of the
other byte order, a first page that is a thumbnail. So the directory of the main page is read here,
and a plain one of what matters is written behind the file's data: Pillow and libtiff see that one.
`tests/worker/decoding/test_kinds.py` compares every kind with other readers.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from wuwan_worker.decoding import deep
from wuwan_worker.decoding.base import Picture, judged, loaded
from wuwan_worker.decoding.errors import Flaw, ItemError
from wuwan_worker.decoding.jpeg import HARMLESS, unsupported
from wuwan_worker.shared.protocol import ErrorCode, WarningCode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from wuwan_worker.decoding.base import Request

# libtiff for all: Pillow's own reader of uncompressed data misreads planes of 16 bits.
TiffImagePlugin.READ_LIBTIFF = True

_MOST_PAGES = 32  # directories that are looked at for the main one
_MOST_ENTRIES = 4096
_TAGS_BYTES = 2**20
_MOST_RUNS = 2**21  # of PackBits that are looked at: a third of a second
_MOST_VALUES = 2**22  # of one tag: strips of a row each in the largest picture

# Tags (TIFF 6.0, and its supplements).
_SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION = 254, 255, 256, 257, 258, 259
_PHOTOMETRIC, _MAKE, _STRIPS, _ORIENTATION, _SAMPLES, _ROWS = 262, 271, 273, 274, 277, 278
_STRIP_COUNTS, _PLANES, _PREDICTOR, _COLOURS = 279, 284, 317, 320
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_COUNTS = 322, 323, 324, 325
_SUBDIRECTORIES, _EXTRA, _FORMAT, _LEAST, _LARGEST, _TABLES = 330, 338, 339, 340, 341, 347
_FILL_ORDER, _JPEG_FILE, _JPEG_LENGTH = 266, 513, 514
_DNG = 50706
# What decoding needs; all else is left out of the directory that Pillow sees.
_KEPT = frozenset(
    (
        *(_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, 266, _STRIPS, _SAMPLES, _ROWS),
        *(_STRIP_COUNTS, _PLANES, 292, 293, _PREDICTOR, _COLOURS, _TILE_WIDTH, _TILE_HEIGHT),
        *(_TILES, _TILE_COUNTS, 332, _EXTRA, _FORMAT, _TABLES, *range(512, 522), *range(529, 533)),
    )
)
_READ = _KEPT | {
    *(_SUBFILE, _OLD_SUBFILE, _MAKE, _ORIENTATION, _SUBDIRECTORIES, _LEAST, _LARGEST, _DNG)
}
_TYPES = {
    1: "B", 2: "B", 3: "H", 4: "I", 5: "2I", 6: "b", 7: "B", 8: "h", 9: "i", 10: "2i", 11: "f",
    12: "d", 13: "I", 16: "Q", 17: "q", 18: "Q",
}  # fmt: skip
_PIECE_MARGIN = 64  # pixels that a JPEG in a TIFF may have beyond its tile or strip
_SHORT, _LONG, _WIDE = 3, 4, {16: 4, 17: 9, 18: 13}  # the wide ones as what a classic TIFF has
_COMPRESSIONS = {1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000}
_OLD_JPEG, _JPEG, _PACKBITS = 6, 7, 32773
_OTHER_COMPRESSIONS = {
    34712: "JPEG 2000", 33003: "JPEG 2000", 33005: "JPEG 2000", 34887: "LERC", 50001: "WebP",
    34927: "WebP", 50002: "JPEG XL", 52546: "JPEG XL", 22610: "JPEG XR", 34934: "JPEG XR",
    34676: "SGI log", 34677: "SGI log", 34713: "Nikon RAW", 32767: "Sony RAW", 65535: "Pentax RAW",
    65000: "Kodak RAW", 34892: "lossy JPEG of DNG", 32809: "ThunderScan",
}  # fmt: skip
_RAW_PHOTOMETRIC = (32803, 34892)  # colour filter array, linear RAW
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _YCBCR, _CIE_LAB, _ICC_LAB = 0, 1, 2, 6, 8, 9
_COLOUR_SAMPLES = {_MIN_IS_WHITE: 1, _MIN_IS_BLACK: 1, _RGB: 3, _CIE_LAB: 3, _ICC_LAB: 3}
_UNSIGNED, _SIGNED, _FLOAT, _VOID, _COMPLEX = 1, 2, 3, 4, (5, 6)
_CHUNKY, _DIFFERENCES, _FLOAT_DIFFERENCES = 1, 2, 3
_PREMULTIPLIED, _ALPHA = 1, 2  # kinds of extra samples


@dataclass(frozen=True, slots=True)
class _Tag:
    kind: int
    count: int
    raw: bytes


@dataclass(slots=True)
class _Page:
    """One directory."""

    order: str  # "<" or ">"
    tags: dict[int, _Tag] = field(default_factory=dict)

    def values(self, tag: int) -> tuple[float, ...]:
        """A tag's numbers, a fraction as two of them; () where it is missing."""
        found = self.tags.get(tag)
        if found is None:
            return ()
        code = _TYPES[found.kind]
        count = len(found.raw) // struct.calcsize(f"={code}")
        return struct.unpack(f"{self.order}{count}{code}", found.raw)

    def value(self, tag: int, default: int = 0) -> int:
        """Its first number."""
        found = self.tags.get(tag)
        if found is None or not found.raw:
            return default
        return int(struct.unpack_from(self.order + _TYPES[found.kind], found.raw)[0])

    @property
    def reduced(self) -> bool:
        """Whether this is a thumbnail, or the mask of another page."""
        return bool(self.value(_SUBFILE) & 5) or self.value(_OLD_SUBFILE) == 2

    @property
    def raw(self) -> bool:
        """Whether this is what a camera's sensor saw."""
        return self.value(_PHOTOMETRIC) in _RAW_PHOTOMETRIC or _DNG in self.tags


def read(data: bytes, request: Request) -> Picture:
    """See `Reader`."""
    try:
        page = _main(data)
        kind = _Kind.of(page)
    except (struct.error, OverflowError, ValueError, IndexError):
        raise ItemError(ErrorCode.TRUNCATED, "the image's header is cut short or damaged") from None
    # A picture may be the corner of one large tile, which is decoded all the same.
    wide, high = _piece_size(page, kind)
    besides = 2 * len(data) + wide * high * kind.samples * kind.bits // 8
    request.claim.need(kind.size, kind.per_pixel, besides)
    orientation = page.value(_ORIENTATION, 1)
    if kind.deep:
        image, there, complaint = _deep(data, page, kind)
    else:
        changes = kind.changes(page)
        image, there, complaint = loaded(lambda: _opened(data, page, changes))
    within = _within(data, page, kind)
    if within < 1:
        there, complaint = min(there, within), complaint or "the file ends early"
    elif not complaint and kind.compression in (_OLD_JPEG, _JPEG):
        there, complaint = _jpegs(data, page, kind)
    elif not complaint and kind.compression == _PACKBITS:
        there, complaint = _packbits(data, page, kind)
    flaw: Flaw | None = None
    if complaint:
        code = WarningCode.TRUNCATED if within < 1 else WarningCode.DAMAGED
        flaw = judged(there, code, complaint)
    elif _PHOTOMETRIC not in page.tags:
        flaw = Flaw(WarningCode.DAMAGED, "it is not said what the values mean: taken for colours")
    turned = orientation if orientation in range(1, 9) else 1
    return Picture(image, kind.size, turned, flaw=flaw)


# ---------------------------------------------------------------- directories


def _main(data: bytes) -> _Page:
    """The first page that is no thumbnail.

    Raises:
        ItemError: `unsupported`, of a camera's RAW file.
        struct.error, ValueError: if there is no page.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\x00", b"\x00+")
    if data[8:10] == b"CR":
        raise ItemError(ErrorCode.UNSUPPORTED, "Canon RAW (CR2) is not supported")
    (place,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    pages: list[_Page] = []
    left = [len(data) + _TAGS_BYTES]  # of tags in all directories: they may share their bytes
    seen: set[int] = set()
    below: list[int] = []
    while place and place not in seen and len(seen) < _MOST_PAGES:
        seen.add(place)
        try:
            page, following = _directory(data, place, order, left, big=big)
        except struct.error:
            if not pages:
                raise
            break  # the chain is broken; the pages before are there
        pages.append(page)
        below += [int(number) for number in page.values(_SUBDIRECTORIES)[:_MOST_PAGES]]
        place = following
    for place in below[:_MOST_PAGES]:
        if place not in seen:
            seen.add(place)
            with contextlib.suppress(struct.error):
                pages.append(_directory(data, place, order, left, big=big)[0])
    if any(page.raw for page in pages):
        raise ItemError(ErrorCode.UNSUPPORTED, "a camera's RAW file (DNG, NEF, …) is not supported")
    usable = [page for page in pages if _WIDTH in page.tags and _HEIGHT in page.tags]
    if not usable:
        raise ValueError("no page")
    if usable[0].reduced:
        return next((page for page in usable if not page.reduced), usable[0])
    return usable[0]


def _directory(
    data: bytes, place: int, order: str, left: list[int], *, big: bool
) -> tuple[_Page, int]:
    """One directory, and where the next one is, 0 for nowhere.

    Raises:
        struct.error: if it is not within the file.
    """
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, place)
    place += 8 if big else 2
    entry = struct.Struct(order + ("HHQ8s" if big else "HHI4s"))
    page = _Page(order)
    for _ in range(min(count, _MOST_ENTRIES)):
        tag, kind, number, inline = entry.unpack_from(data, place)
        place += entry.size
        if tag not in _READ or kind not in _TYPES or number > _MOST_VALUES or tag in page.tags:
            continue
        size = number * struct.calcsize(f"={_TYPES[kind]}")
        if size > len(inline):
            (offset,) = struct.unpack(order + ("Q" if big else "I"), inline)
            left[0] -= size
            if left[0] < 0:
                raise struct.error("tags of more bytes than the file")
            raw = data[offset : offset + size]
            if len(raw) < size:
                if tag in _KEPT:
                    raise struct.error(f"tag {tag} is not within the file")
                continue
        else:
            raw = inline[:size]
        page.tags[tag] = _Tag(kind, number, raw)
    try:
        (following,) = struct.unpack_from(order + ("Q" if big else "I"), data, place)
    except struct.error:
        following = 0
    return page, following


def _plain(data: bytes, page: _Page, changes: Mapping[int, tuple[int, ...] | None]) -> bytes:
    """The file with a classic directory of this page alone, with `changes`; None leaves out."""
    order = page.order
    tags = {tag: content for tag, content in page.tags.items() if tag in _KEPT}
    for tag, values in changes.items():
        if values is None:
            tags.pop(tag, None)
        else:
            tags[tag] = _Tag(_LONG, len(values), struct.pack(f"{order}{len(values)}I", *values))
            if max(values) < 2**16:
                raw = struct.pack(f"{order}{len(values)}H", *values)
                tags[tag] = _Tag(_SHORT, len(values), raw)
    start = len(data) + len(data) % 2
    entries, outside = [], []
    place = start + 2 + 12 * len(tags) + 4
    for tag in sorted(tags):
        kind, count, raw = tags[tag].kind, tags[tag].count, tags[tag].raw
        if kind in _WIDE:
            narrow = struct.unpack(f"{order}{count}Q", raw)
            kind, raw = _WIDE[kind], struct.pack(f"{order}{count}I", *narrow)
        if len(raw) <= 4:
            inline = raw.ljust(4, b"\0")
        else:
            inline = struct.pack(f"{order}I", place)
            outside.append(raw + b"\0" * (len(raw) % 2))
            place += len(outside[-1])
        entries.append(struct.pack(f"{order}HHI", tag, kind, count) + inline)
    return b"".join(
        (
            struct.pack(f"{order}2sHI", data[:2], 42, start),
            memoryview(data)[8:],
            b"\0" * (start - len(data)),
            struct.pack(f"{order}H", len(entries)),
            *entries,
            struct.pack(f"{order}I", 0),
            *outside,
        )
    )


# ---------------------------------------------------------------- kinds


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a page is built of."""

    size: tuple[int, int]  # as stored
    bits: int
    samples: int
    format: int
    photometric: int
    compression: int
    chunky: bool
    predictor: int
    extra: tuple[int, ...]
    deep: bool  # nothing that Pillow has a mode for: read as bytes, and put together here

    @classmethod
    def of(cls, page: _Page) -> _Kind:
        """Look at the page.

        Raises:
            ItemError: `unsupported`, naming what is not read.
        """
        compression = page.value(_COMPRESSION, 1)
        if compression not in _COMPRESSIONS:
            name = _OTHER_COMPRESSIONS.get(compression, f"compression {compression}")
            raise ItemError(ErrorCode.UNSUPPORTED, f"TIFF with {name} is not supported")
        bits = page.values(_BITS) or (1,)
        formats = page.values(_FORMAT) or (_UNSIGNED,)
        samples = page.value(_SAMPLES, max(1, len(bits)))
        kind = cls(
            size=(page.value(_WIDTH), page.value(_HEIGHT)),
            bits=int(bits[0]),
            samples=samples,
            format=_UNSIGNED if formats[0] in (_VOID, 0) else int(formats[0]),
            # Required, and missing now and then: what libtiff, and so most viewers, take it for.
            photometric=page.value(_PHOTOMETRIC, _RGB if samples > 2 else _MIN_IS_BLACK),
            compression=compression,
            chunky=page.value(_PLANES, _CHUNKY) == _CHUNKY or samples == 1,
            predictor=page.value(_PREDICTOR, 1),
            extra=tuple(int(number) for number in page.values(_EXTRA)),
            deep=False,
        )
        if not min(kind.size) or not 0 < samples <= 64:
            raise ValueError("no pixels")
        deep = not kind.known
        odd = len(set(bits)) > 1 or len(set(formats)) > 1 or (deep and not kind.readable)
        if odd:
            raise kind.unsupported()
        return replace(kind, deep=deep)

    @property
    def known(self) -> bool:
        """Whether Pillow has a mode for it, and reads it right."""
        if self.format != _UNSIGNED or self.bits > 16 or self.photometric == _ICC_LAB:
            return False
        colours = _COLOUR_SAMPLES.get(self.photometric, 0)
        if colours == 1:
            return (self.samples == 1 and self.bits <= 8) or (self.samples == 2 and self.pairs)
        if self.photometric == _CIE_LAB:
            return self.bits == 8 and self.samples == 3
        # The third colour of three, or the alpha behind them. More is nobody's mode.
        return not colours or (self.bits in (8, 16) and self.samples <= colours + 1)

    @property
    def pairs(self) -> bool:
        """Whether this is grey with its alpha as Pillow has it."""
        return self.bits == 8 and self.chunky and self.extra == (_ALPHA,)

    @property
    def readable(self) -> bool:
        """Whether the bytes can be had and put together here."""
        colours = _COLOUR_SAMPLES.get(self.photometric, 0)
        if self.compression in (2, 3, 4, 6, _JPEG) or not colours or self.samples < colours:
            return False
        if self.predictor == _FLOAT_DIFFERENCES and self.format != _FLOAT:
            return False
        if self.photometric in (_CIE_LAB, _ICC_LAB):
            return self.bits in (8, 16)
        if self.bits == 12:
            return self.format == _UNSIGNED and self.predictor == 1
        widths = {_FLOAT: (16, 32, 64), _SIGNED: (8, 16, 32), _UNSIGNED: (8, 16, 32)}
        return self.bits in widths.get(self.format, ())

    @property
    def per_pixel(self) -> float:
        """Bytes that decoding takes for each pixel, at the most."""
        value = self.samples * self.bits / 8
        return 5 * value + self.samples if self.deep else 9 + value

    def changes(self, page: _Page) -> dict[int, tuple[int, ...] | None]:
        """What is to be written into the page so that Pillow sees it as it is."""
        found: dict[int, tuple[int, ...] | None] = {
            _SAMPLES: (self.samples,),
            _BITS: (self.bits,) * self.samples,
            _FORMAT: None,
            _PHOTOMETRIC: (self.photometric,),
        }
        colours = page.values(_COLOURS)
        if colours and max(colours) < 256:  # written as 8 bits: in 16 they are all black
            found[_COLOURS] = tuple(int(value) * 257 for value in colours)
        return found

    def unsupported(self) -> ItemError:
        """The error that names this kind."""
        name = {_SIGNED: "signed ", _FLOAT: "floating-point "}.get(self.format, "")
        if self.format in _COMPLEX:
            name = "complex "
        noun = "sample" if self.samples == 1 else "samples"
        return ItemError(
            ErrorCode.UNSUPPORTED,
            f"TIFF with {self.samples} {name}{noun} of {self.bits} bits "
            f"(photometric {self.photometric}) is not supported",
        )


def _opened(data: bytes, page: _Page, changes: Mapping[int, tuple[int, ...] | None]) -> Image.Image:
    """The page as Pillow sees it, not loaded.

    Raises:
        ItemError: `unsupported`, if Pillow knows nothing that is built so.
    """
    content = _plain(data, page, changes)
    try:
        return Image.open(io.BytesIO(content), formats=("TIFF",))
    except UnidentifiedImageError:
        raise _Kind.of(page).unsupported() from None


# ---------------------------------------------------------------- deep values


def _deep(data: bytes, page: _Page, kind: _Kind) -> tuple[Image.Image, float, str]:
    """A picture of deep values in 8 bits; the part that is there; the decoder's complaint."""
    colours = _COLOUR_SAMPLES[kind.photometric]
    there, complaints = 1.0, []
    planes = []
    for changes in _planes(page, kind):
        image, part, complaint = loaded(functools.partial(_opened, data, page, changes))
        there = min(there, part)
        complaints.append(complaint)
        stored = np.array(image)
        del image
        planes.append(_values(stored, page, kind))
    values = planes[0] if kind.chunky else np.concatenate(planes, axis=2)
    del planes
    complaint = next(filter(None, complaints), "")
    if colours == 3 and kind.photometric != _RGB:
        return _lab(values, kind), there, complaint
    picture = values[..., :colours]
    black, white = _range(page, kind, picture)
    if kind.photometric == _MIN_IS_WHITE:
        black, white = white, black
    shown = deep.eight_bits(picture, black, white)
    alphas = [n for n, what in enumerate(kind.extra) if what in (_PREMULTIPLIED, _ALPHA)]
    if alphas and kind.samples > colours + alphas[0]:
        at = colours + alphas[0]
        top = (
            1.0 if kind.format == _FLOAT else float(2 ** (kind.bits - (kind.format == _SIGNED)) - 1)
        )
        alpha = deep.eight_bits(values[..., at : at + 1], 0.0, top)
        shown = np.concatenate([shown, alpha], axis=2)
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[shown.shape[2]]
    if mode in ("LA", "RGBA") and kind.extra[alphas[0]] == _PREMULTIPLIED:
        mode = {"LA": "La", "RGBA": "RGBa"}[mode]
    size = kind.size
    return Image.frombytes(mode, size, np.ascontiguousarray(shown).tobytes()), there, complaint


def _range(page: _Page, kind: _Kind, picture: NDArray[np.generic]) -> tuple[float, float]:
    """The values that stand for black and white."""
    if kind.format == _UNSIGNED and kind.bits <= 16:
        return 0.0, float(2**kind.bits - 1)
    least, largest = page.values(_LEAST), page.values(_LARGEST)
    if least and largest and min(largest) > max(least):
        black, white = float(max(least)), float(min(largest))
        if math.isfinite(black) and math.isfinite(white):
            return black, white
    return deep.levels(picture)


def _lab(values: NDArray[np.generic], kind: _Kind) -> Image.Image:
    """CIE L*a*b*, whose a and b have a sign, or 128 as their zero in the ICC's way."""
    if kind.bits == 16:
        values = values.view(np.uint16) >> 8
    stored = values[..., :3].astype(np.uint8)
    if kind.photometric == _ICC_LAB:
        stored[..., 1:] ^= 0x80
    return Image.frombytes("LAB", kind.size, stored.tobytes(), "raw", "LAB")


def _planes(page: _Page, kind: _Kind) -> Iterator[dict[int, tuple[int, ...] | None]]:
    """What is to be changed so that the page is a greyscale picture of its bytes; once for each
    plane. Tiles are whole in it, and differences are left as they are."""
    in_row, columns = _row(page, kind)
    changes: dict[int, tuple[int, ...] | None] = {
        _WIDTH: (in_row * columns,),
        _PHOTOMETRIC: (_MIN_IS_BLACK,),
        _SAMPLES: (1,),
        _BITS: (8,),
        _FORMAT: None,
        _PLANES: (_CHUNKY,),
        _EXTRA: None,
        _PREDICTOR: None,
        _COLOURS: None,
    }
    if _TILES in page.tags:
        changes[_TILE_WIDTH] = (in_row,)
    if kind.chunky:
        yield changes
        return
    for plane in range(kind.samples):
        for tag in (_STRIPS, _STRIP_COUNTS, _TILES, _TILE_COUNTS):
            if values := page.values(tag):
                each = len(values) // kind.samples
                part = values[plane * each : (plane + 1) * each]
                changes[tag] = tuple(int(value) for value in part) or None
        yield dict(changes)


def _row(page: _Page, kind: _Kind) -> tuple[int, int]:
    """The bytes in a row of a strip or tile, and how many are beside each other."""
    width = kind.size[0]
    tile = page.value(_TILE_WIDTH) if _TILES in page.tags else width
    if not 0 < tile < 2**20:
        raise ItemError(ErrorCode.TRUNCATED, "the image's header is damaged")
    samples = kind.samples if kind.chunky else 1
    return -(-tile * samples * kind.bits // 8), -(-width // tile)


def _values(stored: NDArray[np.uint8], page: _Page, kind: _Kind) -> NDArray[np.generic]:
    """What bytes stand for: (height, width, samples)."""
    in_row, columns = _row(page, kind)
    height = len(stored)
    width, samples = kind.size[0], kind.samples if kind.chunky else 1
    rows = stored.reshape(height, columns, in_row)
    if kind.bits == 12:
        return _twelve(rows, samples, width)
    size = kind.bits // 8
    letter = {_FLOAT: "f", _SIGNED: "i"}.get(kind.format, "u")
    if kind.predictor == _FLOAT_DIFFERENCES:
        # Differences of bytes, all first bytes of a row before all second ones (Adobe's TIFF
        # Technical Note 3).
        pairs = rows.reshape(height, columns, -1, samples)
        np.add.accumulate(pairs, axis=2, out=pairs)
        apart = rows.reshape(height, columns, size, -1).swapaxes(2, 3)
        found = np.ascontiguousarray(apart).view(f">{letter}{size}")
    else:
        found = rows.view(f"{page.order}u{size}")
        if kind.predictor == _DIFFERENCES:
            found = found.astype(f"u{size}").reshape(height, columns, -1, samples)
            np.add.accumulate(found, axis=2, out=found)
        found = found.view(found.dtype.str.replace("u", letter))
    if not found.dtype.isnative:
        found = found.astype(found.dtype.newbyteorder("="))
    return found.reshape(height, -1, samples)[:, :width]


def _twelve(rows: NDArray[np.uint8], samples: int, width: int) -> NDArray[np.generic]:
    """Two values in three bytes."""
    height, columns, in_row = rows.shape
    rows = np.pad(rows, ((0, 0), (0, 0), (0, -in_row % 3))).astype(np.uint16)
    first, middle, last = rows[..., 0::3], rows[..., 1::3], rows[..., 2::3]
    found = np.stack([first << 4 | middle >> 4, (middle & 15) << 8 | last], axis=-1)
    each = in_row * 8 // (12 * samples) * samples
    found = found.reshape(height, columns, -1)[..., :each]
    return found.reshape(height, -1, samples)[:, :width]


# ---------------------------------------------------------------- damage


def _pieces(page: _Page) -> list[tuple[int, int]]:
    """Where strips or tiles are in the file, and how many bytes each has."""
    tiled = _TILES in page.tags
    offsets = page.values(_TILES if tiled else _STRIPS)
    counts = page.values(_TILE_COUNTS if tiled else _STRIP_COUNTS)
    counts = (*counts, *(0,) * (len(offsets) - len(counts)))
    return [(int(place), int(count)) for place, count in zip(offsets, counts, strict=False)]


def _piece_size(page: _Page, kind: _Kind) -> tuple[int, int]:
    """Width and height of a tile or a strip, pixels."""
    width, height = kind.size
    if _TILES in page.tags:
        return page.value(_TILE_WIDTH) or width, page.value(_TILE_HEIGHT) or height
    return width, min(height, page.value(_ROWS, height) or height)


def _needed(page: _Page, kind: _Kind) -> int:
    """How many tiles or strips the picture has."""
    wide, high = _piece_size(page, kind)
    count = math.ceil(kind.size[0] / wide) * math.ceil(kind.size[1] / high)
    return count if kind.chunky else count * kind.samples


def _within(data: bytes, page: _Page, kind: _Kind) -> float:
    """The part of the pieces that the picture needs and the file has, 0 to 1."""
    needed = _needed(page, kind)
    there = 0.0
    for place, count in _pieces(page)[:needed]:
        if place and place < len(data):
            there += min(1.0, (len(data) - place) / count) if count else 1.0
    return min(1.0, there / needed)


def _jpegs(data: bytes, page: _Page, kind: _Kind) -> tuple[float, str]:
    """How much of a page of JPEG pieces is whole, and what libjpeg, but not libtiff, says of it."""
    tables = page.tags[_TABLES].raw if _TABLES in page.tags else b""
    whole, complaint = 0, ""
    pieces = _pieces(page)[: _needed(page, kind)]
    wide, high = _piece_size(page, kind)
    if page.value(_COMPRESSION) == _OLD_JPEG:  # a whole file, and strips somewhere in it
        pieces = [(page.value(_JPEG_FILE), page.value(_JPEG_LENGTH))]
        wide, high = kind.size
        if data[pieces[0][0] : pieces[0][0] + 2] != b"\xff\xd8":
            return 1.0, ""
    for place, count in pieces:
        piece = data[place : place + count]
        if tables.endswith(b"\xff\xd9") and piece.startswith(b"\xff\xd8"):
            piece = tables[:-2] + piece[2:]
        try:
            size = simplejpeg.decode_jpeg_header(piece, strict=False)[:2]
            if size[0] > high + _PIECE_MARGIN or size[1] > wide + _PIECE_MARGIN:
                raise ValueError(f"a piece of {size[1]} x {size[0]} pixels is none of this page")
            simplejpeg.decode_jpeg(piece, "GRAY", min_factor=8)
        except ValueError as error:
            text = str(error)
            if not unsupported(text) and not any(harmless in text for harmless in HARMLESS):
                complaint = complaint or text
                continue
        whole += 1
    # A piece that had to be repaired is half there.
    return (whole + (len(pieces) - whole) / 2) / max(1, len(pieces)), complaint


def _packbits(data: bytes, page: _Page, kind: _Kind) -> tuple[float, str]:
    """How many strips or tiles unpack to the bytes that they should have, and what to say of the
    others. libtiff fills up what is missing, and Pillow does not ask it for its warnings."""
    if page.value(_FILL_ORDER, 1) != 1 or page.value(_PHOTOMETRIC) == _YCBCR:
        return 1.0, ""  # whose bytes are not those of the pixels in their order
    in_row, columns = _row(page, kind)
    height = kind.size[1]
    tiled = _TILES in page.tags
    rows = page.value(_TILE_HEIGHT) if tiled else min(height, page.value(_ROWS, height) or height)
    pieces = _pieces(page)
    left, whole = _MOST_RUNS, 0
    strips = max(1, -(-height // max(1, rows)))
    for number, (place, count) in enumerate(pieces):
        row = number // columns % strips * rows
        expected = in_row * (rows if tiled else min(rows, height - row))
        end = min(len(data), place + count) if count else len(data)
        found = 0
        while place < end and found < expected and left:
            left -= 1
            code = data[place]
            if code < 128:
                found += min(code + 1, end - place - 1)
                place += code + 2
            else:
                found += 257 - code if code > 128 else 0
                place += 2 if code > 128 else 1
        # Too much is a run that goes on behind the last row, which writers do not make.
        whole += found == expected or not left
    there = (whole + (len(pieces) - whole) / 2) / max(1, len(pieces))
    return there, "" if whole == len(pieces) else "PackBits data do not fill their strips"
