"""AVIF and HEIC sub-kinds of the picture."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
import pillow_heif
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
    rgb,
    saved,
    turned,
)
from wuwan_worker.decoding import boxes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray


def box(kind: bytes, *parts: bytes) -> bytes:
    """One box."""
    content = b"".join(parts)
    return struct.pack("!I4s", len(content) + 8, kind) + content


def coded(data: bytes) -> tuple[bytes, bytes, dict[bytes, bytes]]:
    """How the primary item of a file is coded, its data, and its properties."""
    meta = boxes.meta(data)
    assert meta is not None
    item = meta.items[meta.primary]
    content = b"".join(data[at : at + length] for at, length in item.extents)
    return item.kind, content, dict(item.properties)


def built(
    brand: bytes,
    items: Sequence[tuple[bytes, bytes, Sequence[tuple[bytes, bytes]]]],
    *,
    references: Sequence[tuple[bytes, int, tuple[int, ...]]] = (),
    major: bytes | None = None,
    essential: frozenset[bytes] = frozenset((b"hvcC", b"av1C", b"irot", b"imir", b"clap")),
) -> bytes:
    """A file of items (type, data, properties); the first one is the primary."""
    ftyp = box(b"ftyp", major or brand, bytes(4), b"mif1", brand, b"miaf")
    known: list[tuple[bytes, bytes]] = []
    links = b""
    for number, (_, _, properties) in enumerate(items, 1):
        found = []
        for one in properties:
            if one not in known:
                known.append(one)
            found.append((known.index(one) + 1) | (0x80 if one[0] in essential else 0))
        links += struct.pack("!HB", number, len(found)) + bytes(found)
    entries = b"".join(
        box(b"infe", b"\x02\0\0\0", struct.pack("!HH4s", number, 0, kind), b"\0")
        for number, (kind, _, _) in enumerate(items, 1)
    )
    iref = b"".join(
        box(kind, struct.pack(f"!HH{len(to)}H", source, len(to), *to))
        for kind, source, to in references
    )

    def meta(start: int) -> bytes:
        places, at = b"", start
        for number, (_, content, _) in enumerate(items, 1):
            places += struct.pack("!HHHII", number, 0, 1, at, len(content))
            at += len(content)
        return box(
            b"meta", bytes(4),
            box(b"hdlr", bytes(8), b"pict", bytes(13)),
            box(b"pitm", bytes(4), struct.pack("!H", 1)),
            box(b"iloc", bytes(4), b"\x44\0", struct.pack("!H", len(items)), places),
            box(b"iinf", bytes(4), struct.pack("!H", len(items)), entries),
            *([box(b"iref", bytes(4), iref)] if iref else []),
            box(
                b"iprp",
                box(b"ipco", *(box(kind, content) for kind, content in known)),
                box(b"ipma", bytes(4), struct.pack("!I", len(items)), links),
            ),
        )  # fmt: skip

    start = len(ftyp) + len(meta(0)) + 8
    return ftyp + meta(start) + box(b"mdat", *(content for _, content, _ in items))


def _ispe(width: int, height: int) -> tuple[bytes, bytes]:
    return b"ispe", struct.pack("!III", 0, width, height)


def _clap(width: int, height: int, right: int = 0, down: int = 0) -> tuple[bytes, bytes]:
    return b"clap", struct.pack("!IIIIiIiI", width, 1, height, 1, right, 1, down, 1)


def _moved(name: str, brand: bytes, plain: bytes) -> Iterator[Kind]:
    """Turned, mirrored, cropped, and made of tiles, by properties alone."""
    kind, content, known = coded(plain)
    config = next((key, value) for key, value in known.items() if key in (b"hvcC", b"av1C"))
    others = [(key, value) for key, value in known.items() if key in (b"colr", b"pixi")]
    base = [_ispe(WIDTH, HEIGHT), config, *others]

    def one(
        mark: str, truth: NDArray[np.uint8], *more: tuple[bytes, bytes], **options: Any
    ) -> Kind:
        file = built(brand, [(kind, content, [*base, *more])], **options)
        return Kind(f"{name}-{mark}", file, np.ascontiguousarray(truth), 5)

    yield one("rebuilt", rgb())
    yield one("major-mif1", rgb(), major=b"mif1")
    for quarters in (1, 2, 3):
        yield one(f"irot-{quarters}", np.rot90(rgb(), quarters), (b"irot", bytes((quarters,))))
    yield one("imir-0", rgb()[::-1], (b"imir", b"\0"))
    yield one("imir-1", rgb()[:, ::-1], (b"imir", b"\1"))
    yield one("irot-imir", np.rot90(rgb(), 1)[:, ::-1], (b"irot", b"\1"), (b"imir", b"\1"))
    yield one("clap", rgb()[30:130, 40:200], _clap(160, 100))
    yield one("clap-moved", rgb()[50:150, 20:180], _clap(160, 100, -20, 20))
    yield one("clap-irot", np.rot90(rgb()[30:130, 40:200], 1), _clap(160, 100), (b"irot", b"\1"))
    yield one(
        "clap-moved-irot",
        np.rot90(rgb()[50:150, 20:180], 1),
        _clap(160, 100, -20, 20),
        (b"irot", b"\1"),
    )
    yield one(
        "clap-moved-imir",
        rgb()[50:150, 20:180][:, ::-1],
        _clap(160, 100, -20, 20),
        (b"imir", b"\1"),
    )


def _grid(
    name: str,
    brand: bytes,
    tiles: Sequence[bytes],
    size: tuple[int, int],
    *more: tuple[bytes, bytes],
) -> bytes:
    """A grid of 2 x 2 tiles."""
    del name
    parts = [coded(tile) for tile in tiles]
    width, height = size
    grid = struct.pack("!BBBBHH", 0, 0, 1, 1, width, height)
    items = [(b"grid", grid, [_ispe(width, height), *more])]
    for kind, content, known in parts:
        properties = [
            (key, value)
            for key, value in known.items()
            if key in (b"ispe", b"hvcC", b"av1C", b"colr", b"pixi")
        ]
        items.append((kind, content, properties))
    return built(brand, items, references=[(b"dimg", 1, (2, 3, 4, 5))])


def _quarters(width: int, height: int) -> list[NDArray[np.uint8]]:
    """The picture in tiles of this size, what is beyond it repeated."""
    padded = np.pad(rgb(), ((0, 2 * height - HEIGHT), (0, 2 * width - WIDTH), (0, 0)), mode="edge")
    return [
        np.ascontiguousarray(padded[y : y + height, x : x + width])
        for y in (0, height)
        for x in (0, width)
    ]


def avifs() -> Iterator[Kind]:
    """All of the AVIFs."""
    picture = Image.fromarray(rgb())
    fast = {"speed": 9, "quality": 92}
    for sampling in ("4:4:4", "4:2:2", "4:2:0"):
        yield Kind(
            f"avif-{sampling}", saved(picture, "AVIF", subsampling=sampling, **fast), rgb(), 5
        )
    yield Kind(
        "avif-4:0:0",
        saved(Image.fromarray(grey()), "AVIF", subsampling="4:0:0", **fast),
        grey_rgb(),
        4,
    )
    yield Kind("avif-limited-range", saved(picture, "AVIF", range="limited", **fast), rgb(), 5)
    with_alpha = Image.fromarray(np.dstack([rgb(), alpha()]))
    yield Kind("avif-alpha", saved(with_alpha, "AVIF", **fast), faded(), 5)
    grey_alpha = Image.fromarray(np.dstack([grey(), alpha()]))
    yield Kind("avif-grey-alpha", saved(grey_alpha, "AVIF", **fast), faded_grey(), 5)
    for bits in (10, 12):
        wide = rgb().astype("u2") << (bits - 8)
        content = imagecodecs.avif_encode(wide, level=92, speed=9, bitspersample=bits)
        yield Kind(f"avif-{bits}bit", content, rgb(), 5)
        wide = np.dstack([rgb(), alpha()]).astype("u2") << (bits - 8)
        content = imagecodecs.avif_encode(wide, level=92, speed=9, bitspersample=bits)
        yield Kind(f"avif-{bits}bit-alpha", content, faded(), 5)
    black = Image.new("RGB", (WIDTH, HEIGHT))
    yield Kind(
        "avif-animated",
        saved(picture, "AVIF", save_all=True, append_images=[black], **fast),
        rgb(),
        5,
    )
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = saved(picture, "AVIF", exif=exif.tobytes(), **fast)
        yield Kind(f"avif-exif-{orientation}", content, turned(rgb(), orientation), 5)
    yield from _moved("avif", b"avif", saved(picture, "AVIF", **fast))
    tiles = [saved(tile, "AVIF", **fast) for tile in _quarters(128, 80)]
    yield Kind("avif-grid", _grid("avif", b"avif", tiles, (WIDTH, HEIGHT)), rgb(), 5)
    rotated = _grid("avif", b"avif", tiles, (WIDTH, HEIGHT), (b"irot", b"\1"))
    yield Kind("avif-grid-irot", rotated, np.ascontiguousarray(np.rot90(rgb())), 5)


def _heic(image: Image.Image | NDArray[np.uint8], **options: Any) -> bytes:
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=92, **options)
    return buffer.getvalue()


def _deep_heic(values: NDArray[np.generic], mode: str) -> bytes:
    height, width = values.shape[:2]
    buffer = io.BytesIO()
    pillow_heif.encode(mode, (width, height), values.astype("<u2").tobytes(), buffer, quality=92)
    return buffer.getvalue()


def heics() -> Iterator[Kind]:
    """All of the HEICs."""
    for chroma in (420, 422, 444):
        yield Kind(f"heic-{chroma}", _heic(rgb(), chroma=chroma), rgb(), 5)
    yield Kind("heic-grey", _heic(grey()), grey_rgb(), 4)
    yield Kind("heic-alpha", _heic(np.dstack([rgb(), alpha()])), faded(), 5)
    yield Kind(
        "heic-grey-alpha", _heic(Image.fromarray(np.dstack([grey(), alpha()]))), faded_grey(), 5
    )
    wide = rgb().astype("u2") * np.uint16(257)
    yield Kind("heic-10bit", _deep_heic(wide, "RGB;16"), rgb(), 5)
    deep = np.dstack([rgb(), alpha()]).astype("u2") * np.uint16(257)
    yield Kind("heic-10bit-alpha", _deep_heic(deep, "RGBA;16"), faded(), 5)
    yield Kind(
        "heic-grey-10bit", _deep_heic(grey().astype("u2") * np.uint16(257), "L;16"), grey_rgb(), 5
    )
    pillow_heif.options.SAVE_HDR_TO_12_BIT = True
    try:
        yield Kind("heic-12bit", _deep_heic(wide, "RGB;16"), rgb(), 5)
    finally:
        pillow_heif.options.SAVE_HDR_TO_12_BIT = False
    yield from _moved("heic", b"heic", _heic(rgb()))
    yield Kind("heic-grid", _heic(rgb(), tile_size=64), rgb(), 5)
    tiles = [_heic(tile) for tile in _quarters(128, 80)]
    rotated = _grid("heic", b"heic", tiles, (WIDTH, HEIGHT), (b"irot", b"\1"))
    yield Kind("heic-grid-irot", rotated, np.ascontiguousarray(np.rot90(rgb())), 5)
    yield Kind("heic-thumbnail", _heic(rgb(), thumbnails=[64]), rgb(), 5)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        buffer = io.BytesIO()
        pillow_heif.encode(
            "RGB", (WIDTH, HEIGHT), rgb().tobytes(), buffer, quality=92, exif=exif.tobytes()
        )
        yield Kind(
            f"heic-orientation-{orientation}", buffer.getvalue(), turned(rgb(), orientation), 5
        )
    # EXIF's orientation alone says nothing: the picture's properties do.
    kind, content, known = coded(_heic(rgb()))
    exif = Image.Exif()
    exif[0x0112] = 6
    items = [(kind, content, list(known.items())), (b"Exif", bytes(4) + exif.tobytes(), [])]
    yield Kind("heic-exif-alone", built(b"heic", items, references=[(b"cdsc", 2, (1,))]), rgb(), 5)
    several = pillow_heif.from_pillow(Image.fromarray(rgb()))
    several.add_from_pillow(Image.new("RGB", (WIDTH, HEIGHT)))
    buffer = io.BytesIO()
    several.save(buffer, quality=92)
    yield Kind("heic-several", buffer.getvalue(), rgb(), 5)
