"""What a file is, by its first bytes: a format that is read, another one, or no image."""

from __future__ import annotations

import re

from wuwan_worker.decoding.errors import ItemError
from wuwan_worker.shared.protocol import ErrorCode

# What other formats begin with, to say "unsupported" rather than "not an image".
_OTHERS = (
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"%PDF", "PDF"),
    (b"8BPS", "Photoshop"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"II\xbc", "JPEG XR"),
    (b"gimp xcf", "GIMP"),
    (b"\x00\x00\x01\x00", "ICO"),
    (b"\x00\x00\x02\x00\x01\x00", "CUR"),
    (b"DDS ", "DDS"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"#?RGBE", "Radiance HDR"),
    (b"qoif", "QOI"),
    (b"BPG\xfb", "BPG"),
    (b"FLIF", "FLIF"),
    (b"SIMPLE  =", "FITS"),
    (b"icns", "ICNS"),
    (b"\x01\xda", "SGI"),
    (b"\xd7\xcd\xc6\x9a", "WMF"),
    (b"FUJIFILMCCD-RAW", "Fujifilm RAW (RAF)"),
    (b"IIU\x00", "Panasonic RAW (RW2)"),
    (b"IIRO", "Olympus RAW (ORF)"),
    (b"IIRS", "Olympus RAW (ORF)"),
    (b"MMOR", "Olympus RAW (ORF)"),
    (b"II\x1a\x00\x00\x00HEAPCCDR", "Canon RAW (CRW)"),
    (b"FOVb", "Sigma RAW (X3F)"),
    (b"\x00MRM", "Minolta RAW (MRW)"),
)
_HEADS = (
    (b"\xff\xd8", "jpeg"),
    (b"\x89PNG", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
    (b"II+\x00", "tiff"),
    (b"MM\x00+", "tiff"),
)
# The brands of ISO base media files that hold pictures. The decoder says what it cannot read.
_PICTURE_BRANDS = (
    b"avif", b"avis", b"mif1", b"msf1", b"mif2", b"miaf",
    b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs",
)  # fmt: skip
_PNM = re.compile(rb"P[1-7Ff][\s#]")
_SVG = re.compile(rb"<svg[\s>]|<!DOCTYPE\s+svg", re.IGNORECASE)
# Targa has no magic number at its beginning: a colour map or none, one of six types, no odd depth.
_TGA = re.compile(
    rb"(\x00[\x02\x03\x0a\x0b]\x00{5}|\x01[\x01\x09].{3}[\x0f\x10\x18\x20])"
    rb".{4}[^\x00].?.?.?[\x08\x0f\x10\x18\x20]",
    re.DOTALL,
)
_TGA_END = b"TRUEVISION-XFILE.\x00"
_TEXT_HEAD = 4096  # bytes in which an SVG shows what it is: comments and licences come first


def identify(data: bytes) -> str:
    """The name of the format, a key of `decode.READERS`.

    Raises:
        ItemError: `unsupported`, naming the format, or `not_an_image`.
    """
    head = data[:64]
    for magic, name in _HEADS:
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and b"WEBP".startswith(head[8:12]):
        return "webp"
    if head[4:8] == b"ftyp":
        brands = ftyp_brands(data)
        if any(brand in _PICTURE_BRANDS for brand in brands):
            return "heif"
        if b"crx " in brands:
            raise _unsupported("Canon RAW (CR3)")
        if b"jxl " in brands:
            raise _unsupported("JPEG XL")
    for magic, name in _OTHERS:
        if head.startswith(magic):
            raise _unsupported(name)
    if data[128:132] == b"DICM":
        raise _unsupported("DICOM")
    if _is_svg(data[:_TEXT_HEAD]):
        raise _unsupported("SVG")
    if _PNM.match(head):
        raise _unsupported("PNM")
    if data[-len(_TGA_END) :] == _TGA_END or (len(data) > 18 and _TGA.match(head)):
        raise _unsupported("Targa (TGA)")
    raise ItemError(ErrorCode.NOT_AN_IMAGE, "not an image in a known format")


def ftyp_brands(data: bytes) -> list[bytes]:
    """The brands of an ISO base media file, the major one first."""
    size = min(int.from_bytes(data[:4], "big"), 4096, len(data))
    return [data[8:12], *(data[place : place + 4] for place in range(16, size - 3, 4))]


def _unsupported(name: str) -> ItemError:
    return ItemError(ErrorCode.UNSUPPORTED, f"{name} is not supported")


def _is_svg(head: bytes) -> bool:
    """Whether markup begins here that is an SVG: after a byte order mark, comments, a doctype."""
    for mark, coding in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        if head.startswith(mark):
            head = head[2:].decode(coding, "replace").encode()
    head = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return head.startswith(b"<") and _SVG.search(head) is not None
