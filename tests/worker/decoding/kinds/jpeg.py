"""JPEG sub-kinds of the picture."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import imagecodecs
import numpy as np
from PIL import Image

from tests.worker.decoding.kinds.base import HEIGHT, WIDTH, Kind, grey, grey_rgb, rgb, saved, turned

if TYPE_CHECKING:
    from collections.abc import Iterator

_QUALITY = 93


def segment(marker: int, content: bytes) -> bytes:
    """One segment."""
    return struct.pack("!BBH", 0xFF, marker, len(content) + 2) + content


def without(data: bytes, marker: int) -> bytes:
    """A file without its segments of a kind, up to the first scan."""
    out, place = bytearray(data[:2]), 2
    while data[place + 1] != 0xDA:
        length = struct.unpack_from("!H", data, place + 2)[0] + 2
        if data[place + 1] != marker:
            out += data[place : place + length]
        place += length
    return bytes(out) + data[place:]


def kinds() -> Iterator[Kind]:
    """All of them."""
    picture = Image.fromarray(rgb())
    for progressive in (False, True):
        mark = "-progressive" if progressive else ""
        options = {"quality": _QUALITY, "progressive": progressive}
        for name, sampling in (
            ("444", 0),
            ("422", 1),
            ("420", 2),
            ("411", "4:1:1"),
            ("440", "4:4:0"),
        ):
            if name == "440":
                continue
            yield Kind(
                f"jpeg-{name}{mark}",
                saved(picture, "JPEG", subsampling=sampling, **options),
                rgb(),
                5,
            )
        yield Kind(
            f"jpeg-grey{mark}", saved(Image.fromarray(grey()), "JPEG", **options), grey_rgb(), 4
        )
        yield Kind(f"jpeg-rgb{mark}", saved(picture, "JPEG", keep_rgb=True, **options), rgb(), 4)
        for blocks in (1, 7):
            yield Kind(
                f"jpeg-restart-{blocks}{mark}",
                saved(picture, "JPEG", restart_marker_blocks=blocks, **options),
                rgb(),
                4,
            )
        yield Kind(
            f"jpeg-restart-rows{mark}",
            saved(picture, "JPEG", restart_marker_rows=1, optimize=True, **options),
            rgb(),
            4,
        )
        inks = Image.merge(
            "CMYK", [*Image.fromarray(255 - rgb()).split(), Image.new("L", (WIDTH, HEIGHT))]
        )
        adobe = saved(inks, "JPEG", **options)
        yield Kind(f"jpeg-cmyk-adobe{mark}", adobe, rgb(), 5)
        # Without Adobe's marker, too, 255 is no ink: as browsers have it.
        yield Kind(f"jpeg-cmyk-bare{mark}", without(adobe, 0xEE), rgb(), 5)
    ycck = imagecodecs.jpeg8_encode(
        255 - np.asarray(inks), level=_QUALITY, colorspace="CMYK", outcolorspace="YCCK"
    )
    yield Kind("jpeg-ycck", ycck, rgb(), 5)
    for name, options in {
        "440": {"subsampling": "440"},
        "411": {"subsampling": "411"},
        "optimised": {"optimize": True},
        "smooth": {"smoothing": True},
    }.items():
        content = imagecodecs.jpeg8_encode(rgb(), level=_QUALITY, **options)
        yield Kind(f"jpeg-codecs-{name}", content, rgb(), 5)
    plain = saved(picture, "JPEG", quality=_QUALITY)
    head, rest = plain[:2], plain[2:]
    yield Kind("jpeg-no-jfif", without(plain, 0xE0), rgb(), 4)
    for transform in (1, 7):
        adobe = segment(0xEE, b"Adobe" + struct.pack("!HHHB", 100, 0, 0, transform))
        yield Kind(f"jpeg-adobe-{transform}", head + adobe + without(plain, 0xE0)[2:], rgb(), 4)
    in_rgb = saved(picture, "JPEG", quality=_QUALITY, keep_rgb=True)
    yield Kind(
        "jpeg-rgb-icc-odd",
        in_rgb[:2] + segment(0xE2, b"ICC_PROFILE\0\x05\x02abc") + in_rgb[2:],
        rgb(),
        4,
    )
    yield Kind("jpeg-comment", head + segment(0xFE, b"a" * 60000) + rest, rgb(), 4)
    yield Kind("jpeg-fill-bytes", head + b"\xff" * 50 + rest, rgb(), 4)
    yield Kind("jpeg-data-behind-its-end", plain + bytes(4000), rgb(), 4)
    yield Kind("jpeg-jfif-revision", plain.replace(b"JFIF\0\x01", b"JFIF\0\x07"), rgb(), 4)
    yield Kind("jpeg-icc-odd", head + segment(0xE2, b"ICC_PROFILE\0\x05\x02abc") + rest, rgb(), 4)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = saved(picture, "JPEG", quality=_QUALITY, exif=exif.tobytes())
        yield Kind(f"jpeg-exif-{orientation}", content, turned(rgb(), orientation), 4)
    xmp = (
        b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF "
        b"xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'><rdf:Description "
        b"xmlns:tiff='http://ns.adobe.com/tiff/1.0/' tiff:Orientation='6'/></rdf:RDF></x:xmpmeta>"
    )
    yield Kind("jpeg-xmp-orientation", head + segment(0xE1, xmp) + rest, rgb(), 4)
    other = Image.new("RGB", (WIDTH, HEIGHT))
    yield Kind(
        "jpeg-mpo",
        saved(picture, "MPO", save_all=True, append_images=[other], quality=_QUALITY),
        rgb(),
        4,
    )
    wide = grey().astype("u2") * np.uint16(16)
    for name, bits, values in (("12", 12, wide), ("lossless-16", 16, wide * np.uint16(16))):
        content = imagecodecs.jpeg8_encode(
            values, level=90, bitspersample=bits, lossless=bits == 16
        )
        yield Kind(f"jpeg-{name}", content, f"{bits}-bit JPEG")
    yield Kind("jpeg-lossless-8", imagecodecs.jpeg8_encode(rgb(), lossless=True), rgb())
