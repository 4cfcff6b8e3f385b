"""TIFF sub-kinds of the picture."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
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
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

SHORT, LONG, RATIONAL = 3, 4, 5
_FORMATS = {1: "B", 2: "B", 3: "H", 4: "I", 5: "2I", 8: "h", 9: "i", 11: "f", 12: "d", 16: "Q"}


def written(values: NDArray[Any], *, order: str = "<", big: bool = False, **options: Any) -> bytes:
    """A file by tifffile."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, byteorder=order, bigtiff=big) as file:
        file.write(values, metadata=None, **options)
    return buffer.getvalue()


@dataclass(slots=True)
class Page:
    """A directory that is written by hand."""

    tags: dict[int, tuple[int, tuple[float, ...]]]  # tag: type and values
    strips: Sequence[bytes]
    below: list[Page] = field(default_factory=list)  # its SubIFDs


def page(
    values: NDArray[Any],
    changes: Mapping[int, tuple[int, ...] | None] | None = None,
    *,
    strips: Sequence[bytes] | None = None,
    order: str = "<",
    below: Sequence[Page] = (),
) -> Page:
    """An uncompressed page of one strip, with `changes` to its tags; None leaves one out."""
    height, width = values.shape[:2]
    samples = values.shape[2] if values.ndim == 3 else 1
    plain: dict[int, tuple[int, ...] | None] = {
        256: (width,),
        257: (height,),
        258: (8 * values.dtype.itemsize,) * samples,
        259: (1,),
        262: (2 if samples > 2 else 1,),
        277: (samples,),
        278: (height,),
        284: (1,),
    }
    plain |= dict(changes or {})
    if strips is None:
        strips = [values.astype(values.dtype.newbyteorder(order)).tobytes()]
    tags = {
        tag: (SHORT if max(found) < 65536 else LONG, tuple(found))
        for tag, found in plain.items()
        if found is not None
    }
    if (plain.get(279) or (0,)) is not None and 279 not in plain:
        tags[279] = (LONG, tuple(len(strip) for strip in strips))
    return Page(tags, strips, list(below))


def built(*pages: Page, order: str = "<") -> bytes:
    """A classic file of pages that were written by hand."""
    out = bytearray((b"II*\0" if order == "<" else b"MM\0*") + bytes(4))

    def add(one: Page, link: int, *, more: bool = True) -> int:
        tags = dict(one.tags)
        places = []
        for strip in one.strips:
            places.append(len(out))
            out.extend(strip + b"\0" * (len(strip) % 2))
        tags[273] = (LONG, tuple(places))
        if one.below:
            found = []
            for lower in one.below:
                add(lower, -1)
                found.append(started[-1])
            tags[330] = (LONG, tuple(found))
        entries = b""
        for tag in sorted(tags):
            kind, values = tags[tag]
            raw = b"".join(
                struct.pack(
                    order + _FORMATS[kind], *(value if isinstance(value, tuple) else (value,))
                )
                for value in values
            )
            if len(raw) > 4:
                place = len(out)
                out.extend(raw + b"\0" * (len(raw) % 2))
                raw = struct.pack(order + "I", place)
            entries += struct.pack(order + "HHI", tag, kind, len(values)) + raw.ljust(4, b"\0")
        start = len(out)
        started.append(start)
        if link >= 0:
            struct.pack_into(order + "I", out, link, start)
        out.extend(struct.pack(order + "H", len(tags)) + entries + bytes(4))
        return len(out) - 4

    started: list[int] = []
    link = 4
    for one in pages:
        link = add(one, link)
    return bytes(out)


def kinds() -> Iterator[Kind]:
    """All of them."""
    for order in "<>":
        yield from _colours(order)
        yield from _greys(order)
        yield from _single(order)
        yield from _by_hand(order)
    yield from _compressed()
    yield from _orientations()
    yield from _refused()


def _colours(order: str) -> Iterator[Kind]:
    end = {"<": "le", ">": "be"}[order]
    opaque = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
    inks = 255 - rgb()
    pictures = {
        "rgb": (rgb(), rgb(), {"photometric": "rgb"}),
        "rgba": (
            np.concatenate([rgb(), opaque], 2),
            rgb(),
            {"photometric": "rgb", "extrasamples": ["unassalpha"]},
        ),
        "rgba-faded": (
            np.dstack([rgb(), alpha()]),
            faded(),
            {"photometric": "rgb", "extrasamples": ["unassalpha"]},
        ),
        "rgba-associated": (
            np.dstack([(rgb() * (alpha()[..., None] / 255)).round().astype(np.uint8), alpha()]),
            faded(),
            {"photometric": "rgb", "extrasamples": ["assocalpha"]},
        ),
        "rgb-and-more": (
            np.dstack([rgb(), alpha()]),
            rgb(),
            {"photometric": "rgb", "extrasamples": ["unspecified"]},
        ),
        "cmyk": (np.concatenate([inks, 0 * opaque], 2), rgb(), {"photometric": "separated"}),
    }
    for name, (values, truth, options) in pictures.items():
        ways = [None, "lzw", "deflate", "packbits", "zstd", "lzma", "jpeg"]
        if name not in ("rgb", "rgba"):
            ways = [None, "lzw"]
        elif order == ">":
            ways = [way for way in ways if way not in ("zstd", "lzma")]
        for way in ways:
            for planes in ("contig", "separate"):
                for tile in (None, (64, 64)):
                    for bits in (8, 16):
                        if way == "jpeg" and (
                            bits == 16 or (name == "rgba" and planes == "contig")
                        ):
                            continue
                        stored = values.astype(f"u{bits // 8}") * np.array(
                            1 if bits == 8 else 257, f"u{bits // 8}"
                        )
                        if planes == "separate":
                            stored = np.moveaxis(stored, 2, 0).copy()
                        yield Kind(
                            f"tiff-{name}-{bits}-{end}-{way}-{planes}-"
                            f"{'tiles' if tile else 'strips'}",
                            written(
                                stored,
                                order=order,
                                planarconfig=planes,
                                compression=way,
                                tile=tile,
                                rowsperstrip=None if tile else 32,
                                **options,
                            ),
                            truth,
                            within=4 if way == "jpeg" else 1.5,
                        )
    for letter in ("f2", "f4", "f8"):
        for name in ("rgb", "rgba", "rgba-faded", "rgb-and-more"):
            values, truth, options = pictures[name]
            yield Kind(
                f"tiff-{name}-{letter}-{end}",
                written((values / 255).astype(letter), order=order, **options),
                truth,
            )
    part = alpha()[..., None] / 255
    for letter in ("f4", "u4"):
        scale = {"f4": 1 / 255, "u4": 16843009}[letter]
        for name, values, truth in (
            ("rgba-associated", np.dstack([rgb() * part, alpha()]), faded()),
            ("grey-alpha-associated", np.dstack([grey() * part[..., 0], alpha()]), faded_grey()),
        ):
            yield Kind(
                f"tiff-{name}-{letter}-{end}",
                written(
                    (values * scale).astype(letter),
                    order=order,
                    photometric="rgb" if name[0] == "r" else "minisblack",
                    extrasamples=["assocalpha"],
                    planarconfig="contig",
                ),
                truth,
            )
    for bits in (8, 16):
        scale = np.array(1 if bits == 8 else 257, f"u{bits // 8}")
        yield Kind(
            f"tiff-grey-alpha-associated-{bits}-{end}",
            written(
                np.dstack([grey() * part[..., 0], alpha()]).round().astype(scale.dtype) * scale,
                order=order,
                photometric="minisblack",
                extrasamples=["assocalpha"],
                planarconfig="contig",
            ),
            faded_grey(),
        )
        for planes in ("contig", "separate"):
            for name, extra, truth in (
                ("two-more", ["unspecified", "unspecified"], rgb()),
                ("one-more-and-alpha", ["unspecified", "unassalpha"], faded()),
                ("alpha-and-one-more", ["unassalpha", "unspecified"], None),
            ):
                bands = [rgb(), 255 - grey(), alpha()]
                if truth is None:
                    bands, truth = [rgb(), alpha(), grey()], faded()
                values = np.dstack(bands).astype(scale.dtype) * scale
                if planes == "separate":
                    values = np.moveaxis(values, 2, 0).copy()
                yield Kind(
                    f"tiff-rgb-{name}-{bits}-{end}-{planes}",
                    written(
                        values,
                        order=order,
                        photometric="rgb",
                        extrasamples=extra,
                        planarconfig=planes,
                        compression="lzw",
                    ),
                    truth,
                )
    for letter in ("u4", "i2", "i4"):
        scale = {"u4": 2**24 + 2**16 + 257, "i2": 128, "i4": 2**23}[letter]
        yield Kind(
            f"tiff-rgb-{letter}-{end}",
            written(rgb().astype(letter) * np.array(scale, letter), order=order, photometric="rgb"),
            rgb(),
        )


def _greys(order: str) -> Iterator[Kind]:
    end = {"<": "le", ">": "be"}[order]
    depths = {
        "u1": grey(),
        "u2": grey().astype("u2") * np.uint16(257),
        "u4": grey().astype("u4") * np.uint32(16843009),
        "f2": (grey() / 255).astype("f2"),
        "f4": (grey() / 255).astype("f4"),
        "f8": grey() / 255,
    }
    for white in (False, True):
        name = "miniswhite" if white else "minisblack"
        for letter, values in depths.items():
            if white:
                top = 1 if letter[0] == "f" else np.iinfo(values.dtype).max
                values = (top - values).astype(values.dtype)
            for way in (None, "lzw", "deflate", "packbits"):
                for tile in (None, (64, 64)):
                    yield Kind(
                        f"tiff-grey-{letter}-{end}-{name}-{way}-{'tiles' if tile else 'strips'}",
                        written(
                            values,
                            order=order,
                            photometric=name,
                            compression=way,
                            tile=tile,
                            rowsperstrip=None if tile else 32,
                        ),
                        grey_rgb(),
                    )
        for bits in (1, 2, 4):
            values = grey() >> (8 - bits)
            top = 2**bits - 1
            truth = np.repeat((values * (255 // top)).astype(np.uint8)[..., None], 3, axis=2)
            stored = top - values if white else values
            for way in (None, "lzw", "packbits"):
                if way and bits > 1:
                    continue
                yield Kind(
                    f"tiff-grey-{bits}bit-{end}-{name}-{way}",
                    written(
                        stored.astype(bool) if bits == 1 else stored,
                        order=order,
                        photometric=name,
                        bitspersample=bits,
                        compression=way,
                    ),
                    truth,
                )
    yield Kind(
        f"tiff-grey-i2-{end}",
        written(grey().astype("i2") * np.int16(128), order=order, photometric="minisblack"),
        grey_rgb(),
    )
    yield Kind(
        f"tiff-grey-i4-{end}",
        written(grey().astype("i4") * np.int32(2**23), order=order, photometric="minisblack"),
        grey_rgb(),
    )
    ranges = {
        "f4-255": (grey().astype("f4"), None),
        "f4-65535": (grey().astype("f4") * 257, None),
        "u4-255": (grey().astype("u4"), None),
        "u4-65535": (grey().astype("u4") * 257, None),
        "f4-a-pixel-over-1": ((grey() / 255).astype("f4"), 1.01),
        "f4-an-infinity": ((grey() / 255).astype("f4"), np.inf),
        "f4-a-gap": ((grey() / 255).astype("f4"), np.nan),
        "f4-a-pixel-over-255": (grey().astype("f4"), 256),
    }
    for name, (values, odd) in ranges.items():
        if odd is not None:
            values[0, 0] = odd
        yield Kind(
            f"tiff-grey-{name}-{end}",
            written(values, order=order, photometric="minisblack"),
            grey_rgb(),
        )


def _single(order: str) -> Iterator[Kind]:
    end = {"<": "le", ">": "be"}[order]
    for bits in (8, 16):
        scale = np.array(1 if bits == 8 else 257, f"u{bits // 8}")
        for way in (None, "lzw"):
            for planes in ("contig", "separate"):
                for name, band, truth in (
                    ("opaque", np.full_like(grey(), 255), grey_rgb()),
                    ("faded", alpha(), faded_grey()),
                ):
                    values = np.dstack([grey(), band]).astype(scale.dtype) * scale
                    if planes == "separate":
                        values = np.moveaxis(values, 2, 0).copy()
                    yield Kind(
                        f"tiff-grey-alpha-{name}-{bits}-{end}-{way}-{planes}",
                        written(
                            values,
                            order=order,
                            photometric="minisblack",
                            extrasamples=["unassalpha"],
                            planarconfig=planes,
                            compression=way,
                        ),
                        truth,
                    )
        for name, values, truth in (("rgb", rgb(), rgb()), ("grey", grey(), grey_rgb())):
            for tile in (None, (64, 64)):
                yield Kind(
                    f"tiff-{name}-{bits}-{end}-predictor-{'tiles' if tile else 'strips'}",
                    written(
                        values.astype(scale.dtype) * scale,
                        order=order,
                        photometric="rgb" if name == "rgb" else "minisblack",
                        compression="lzw",
                        predictor=True,
                        tile=tile,
                    ),
                    truth,
                )
    for letter in ("f2", "f4", "f8"):
        for name, values, truth in (
            ("rgb", rgb(), rgb()),
            ("rgba", np.dstack([rgb(), alpha()]), faded()),
            ("grey", grey(), grey_rgb()),
        ):
            for tile in (None, (64, 64)):
                yield Kind(
                    f"tiff-{name}-{letter}-{end}-predictor-{'tiles' if tile else 'strips'}",
                    written(
                        (values / 255).astype(letter),
                        order=order,
                        photometric="minisblack" if name == "grey" else "rgb",
                        extrasamples=["unassalpha"] if name == "rgba" else None,
                        compression="deflate",
                        predictor=True,
                        tile=tile,
                    ),
                    truth,
                )
    for name, values, truth in (("rgb", rgb(), rgb()), ("grey", grey(), grey_rgb())):
        yield Kind(
            f"tiff-{name}-u4-{end}-predictor",
            written(
                values.astype("u4") * np.uint32(16843009),
                order=order,
                photometric="minisblack" if name == "grey" else "rgb",
                compression="deflate",
                predictor=True,
            ),
            truth,
        )
    indices, table, truth = palette()
    for name, scale in (("scaled", 257), ("unscaled", 1)):
        yield Kind(
            f"tiff-palette-8-{end}-{name}",
            written(
                indices,
                order=order,
                photometric="palette",
                colormap=(table.T.astype("u2") * np.uint16(scale)),
            ),
            truth,
        )
    yield Kind(
        f"tiff-rgb-8-{end}-big", written(rgb(), order=order, big=True, photometric="rgb"), rgb()
    )
    yield Kind(
        f"tiff-grey-16-{end}-big",
        written(
            grey().astype("u2") * np.uint16(257), order=order, big=True, photometric="minisblack"
        ),
        grey_rgb(),
    )


def _packed(values: NDArray[np.uint8], bits: int) -> bytes:
    """Values of a few bits, rows in whole bytes."""
    wide = np.unpackbits(values[..., None], axis=2)[..., 8 - bits :]
    return np.packbits(wide.reshape(len(values), -1), axis=1).tobytes()


def _by_hand(order: str) -> Iterator[Kind]:
    end = {"<": "le", ">": "be"}[order]

    def kind(name: str, *pages: Page, truth: NDArray[np.uint8] | str, within: float = 1.5) -> Kind:
        return Kind(f"tiff-{name}-{end}", built(*pages, order=order), truth, within)

    for bits in (1, 2, 4):
        indices, table, truth = palette(2**bits)
        colours = tuple(int(value) * 257 for value in table.T.reshape(-1))
        changes = {258: (bits,), 262: (3,), 320: colours}
        strip = _packed(indices, bits)
        yield kind(f"palette-{bits}", page(indices, changes, strips=[strip]), truth=truth)
    thumbnail = page(rgb()[::4, ::4] // 4, {254: (1,)}, order=order)
    old = page(rgb()[::4, ::4] // 4, {255: (2,)}, order=order)
    mask = page(np.zeros_like(grey()), {254: (4,)}, order=order)
    main = page(rgb(), {254: (0,)}, order=order)
    plain = page(rgb(), order=order)
    yield kind("thumbnail-first", thumbnail, main, truth=rgb())
    yield kind("thumbnail-first-old", old, plain, truth=rgb())
    yield kind("mask-first", mask, main, truth=rgb())
    yield kind("mask-second", main, mask, truth=rgb())
    yield kind("thumbnail-second", main, thumbnail, truth=rgb())
    yield kind(
        "thumbnail-with-main-below",
        page(rgb()[::4, ::4] // 4, {254: (1,)}, order=order, below=[main]),
        truth=rgb(),
    )
    yield kind(
        "reduced-below", page(rgb(), {254: (0,)}, order=order, below=[thumbnail]), truth=rgb()
    )
    yield kind("only-a-thumbnail", page(rgb(), {254: (1,)}, order=order), truth=rgb())
    yield kind(
        "several-pages",
        page(rgb(), {254: (2,)}, order=order),
        page(grey(), order=order),
        truth=rgb(),
    )
    for name, changes in {
        "no-strip-byte-counts": {279: None},
        "no-rows-per-strip": {278: None},
        "rows-per-strip-2-to-32": {278: (2**32 - 1,)},
        "no-planar-configuration": {284: None},
        "no-compression": {259: None},
        "no-samples-per-pixel": {277: None},
        "bits-once": {258: (8,)},
        "strip-byte-counts-zero": {279: (0,)},
        "sample-format-once": {339: (1,)},
        "sample-format-void": {339: (4, 4, 4)},
        "orientation-nonsense": {274: (77,)},
    }.items():
        yield kind(name, page(rgb(), changes, order=order), truth=rgb())
    # What libtiff takes such pages for, and a warning.
    for name, values, shown in (("rgb", rgb(), rgb()), ("grey", grey(), grey_rgb())):
        content = built(page(values, {262: None}, order=order), order=order)
        yield Kind(f"tiff-no-photometric-{name}-{end}", content, shown, flaw=True)
    bilevel = np.repeat(((grey() >> 7) * 255).astype(np.uint8)[..., None], 3, axis=2)
    ones = _packed(grey() >> 7, 1)
    yield kind(
        "no-bits-per-sample",
        page(grey(), {258: None, 277: None}, strips=[ones]),
        truth=bilevel,
    )
    reversed_ = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
    yield kind(
        "fill-order-2-1bit",
        page(grey(), {258: (1,), 266: (2,)}, strips=[ones.translate(reversed_)]),
        truth=bilevel,
    )
    four = _packed(grey() >> 4, 4)
    yield kind(
        "fill-order-2-4bit",
        page(grey(), {258: (4,), 266: (2,)}, strips=[four.translate(reversed_)]),
        truth=np.repeat(((grey() >> 4) * 17)[..., None], 3, axis=2),
    )
    yield kind(
        "fill-order-2-8bit",
        page(grey(), {266: (2,)}, strips=[grey().tobytes().translate(reversed_)]),
        truth=grey_rgb(),
    )
    yield kind(
        "fill-order-2-rgb",
        page(rgb(), {266: (2,)}, strips=[rgb().tobytes().translate(reversed_)]),
        truth=rgb(),
    )
    twelve = np.unpackbits(
        (grey().astype("u2") * np.uint16(16)).astype(">u2").view("u1").reshape(HEIGHT, -1), axis=1
    )
    twelve = np.packbits(twelve.reshape(HEIGHT, WIDTH, 16)[..., 4:].reshape(HEIGHT, -1), axis=1)
    yield kind(
        "grey-12bit", page(grey(), {258: (12,)}, strips=[twelve.tobytes()]), truth=grey_rgb()
    )
    yield kind(
        "grey-12bit-miniswhite",
        page(grey(), {258: (12,), 262: (0,)}, strips=[(255 - twelve).tobytes()]),
        truth=grey_rgb(),
    )
    yield kind(
        "rgb-4bit",
        page(rgb(), {258: (4, 4, 4)}, strips=[_packed((rgb() >> 4).reshape(HEIGHT, -1), 4)]),
        truth="4 bits",
    )
    yield kind("rgb-565", page(rgb(), {258: (5, 6, 5)}, strips=[rgb().tobytes()]), truth="bits")
    yield kind(
        "grey-i1",
        page((grey() >> 1).view("i1"), {339: (2,)}, order=order),
        truth=grey_rgb() >> 1 << 1,
        within=2.5,
    )
    lab = _lab()
    signed = lab.copy()
    yield kind("lab-8", page(signed, {262: (8,)}), truth=rgb(), within=2.5)
    icc = lab.copy()
    icc[..., 1:] ^= 0x80
    yield kind("icc-lab-8", page(icc, {262: (9,)}), truth=rgb(), within=2.5)
    wide = np.dstack(
        [lab[..., 0].astype("u2") * 257, lab[..., 1:].view("i1").astype("i2").view("u2") << 8]
    )
    yield kind("lab-16", page(wide.astype("u2"), {262: (8,)}, order=order), truth=rgb(), within=3)
    yield from _ycbcr(order)


def _lab() -> NDArray[np.uint8]:
    """CIE L*a*b* of the picture under D50, a and b as signed bytes."""
    from PIL import ImageCms

    change = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    image = ImageCms.applyTransform(Image.fromarray(rgb()), change)
    assert image is not None
    return np.asarray(image).copy()


def _ycbcr(order: str) -> Iterator[Kind]:
    end = {"<": "le", ">": "be"}[order]
    values = np.asarray(Image.fromarray(rgb()).convert("YCbCr"))
    for down, across in ((1, 1), (1, 2), (2, 2), (2, 1), (4, 4)):
        blocks = values.reshape(HEIGHT // down, down, WIDTH // across, across, 3)
        light = blocks[..., 0].transpose(0, 2, 1, 3).reshape(HEIGHT // down, WIDTH // across, -1)
        colour = blocks[..., 1:].mean(axis=(1, 3)).round().astype(np.uint8)
        stored = np.concatenate([light, colour], axis=2).tobytes()
        yield Kind(
            f"tiff-ycbcr-{across}x{down}-{end}",
            built(
                page(
                    rgb(),
                    {262: (6,), 530: (across, down), 531: (1,)},
                    strips=[stored],
                ),
                order=order,
            ),
            rgb(),
            within=5,
        )


def _compressed() -> Iterator[Kind]:
    bilevel = Image.fromarray(grey()).convert("1")
    truth = np.asarray(bilevel.convert("RGB"))
    for way in ("group3", "group4", "tiff_ccitt"):
        yield Kind(f"tiff-bilevel-{way}", saved(bilevel, "TIFF", compression=way), truth)
    for sub in ((1, 1), (2, 1), (2, 2), (4, 1)):
        yield Kind(
            f"tiff-jpeg-ycbcr-{sub[0]}x{sub[1]}",
            written(rgb(), photometric="rgb", compression="jpeg", subsampling=sub, rowsperstrip=32),
            rgb(),
            within=6,
        )
    for name, values, shown in (("rgb", rgb(), rgb()), ("grey", grey(), grey_rgb())):
        yield Kind(
            f"tiff-jpeg-pillow-{name}",
            saved(values, "TIFF", compression="jpeg", quality=90),
            shown,
            5,
        )
    inks = Image.merge(
        "CMYK", [*Image.fromarray(255 - rgb()).split(), Image.new("L", (WIDTH, HEIGHT))]
    )
    yield Kind(
        "tiff-jpeg-pillow-cmyk", saved(inks, "TIFF", compression="jpeg", quality=90), rgb(), 5
    )
    for way in (
        "raw",
        "tiff_lzw",
        "packbits",
        "tiff_deflate",
        "tiff_adobe_deflate",
        "zstd",
        "lzma",
    ):
        for name, image, shown in (
            ("rgb", Image.fromarray(rgb()), rgb()),
            ("cmyk", inks, rgb()),
            (
                "la",
                Image.merge("LA", [Image.fromarray(grey()), Image.fromarray(alpha())]),
                faded_grey(),
            ),
            ("palette", Image.fromarray(rgb()).quantize(200), None),
        ):
            if shown is None:
                shown = np.asarray(image.convert("RGB"))
            yield Kind(f"tiff-pillow-{name}-{way}", saved(image, "TIFF", compression=way), shown)
    stream = saved(rgb(), "JPEG", quality=92, subsampling=2)
    yield Kind("tiff-old-jpeg", _old_jpeg(stream), rgb(), 5)


def _old_jpeg(stream: bytes) -> bytes:
    """JPEG as TIFF 6.0 had it first: a whole file, and where it is."""
    one = page(
        rgb(), {259: (6,), 262: (6,), 513: (8,), 514: (len(stream),), 530: (2, 2)}, strips=[stream]
    )
    return built(one)


def _orientations() -> Iterator[Kind]:
    for orientation in range(1, 9):
        for bits in (8, 16):
            values = rgb().astype(f"u{bits // 8}") * np.array(
                1 if bits == 8 else 257, f"u{bits // 8}"
            )
            yield Kind(
                f"tiff-orientation-{orientation}-{bits}",
                built(page(values, {274: (orientation,)})),
                turned(rgb(), orientation),
            )


def _refused() -> Iterator[Kind]:
    for way, name in (
        ("lerc", "LERC"),
        ("webp", "WebP"),
        ("jpeg2000", "JPEG 2000"),
        ("jpegxl", "JPEG XL"),
        ("jpegxr", "JPEG XR"),
    ):
        yield Kind(f"tiff-{way}", written(rgb(), photometric="rgb", compression=way), name)
    yield Kind(
        "tiff-complex", written((grey() / 255).astype("c8"), photometric="minisblack"), "complex"
    )
    yield Kind("tiff-u8", written(grey().astype("u8"), photometric="minisblack"), "64 bits")
    yield Kind("tiff-raw-mosaic", built(page(grey(), {262: (32803,)})), "RAW")
