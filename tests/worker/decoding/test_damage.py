"""Damaged files: labelled with a flaw where half of the picture is there, refused otherwise."""

from __future__ import annotations

import gc
import io
import os
import random
import struct
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from wuwan_worker.decoding import decode, jpeg, memory
from wuwan_worker.decoding.decode import Decoded, Refused
from wuwan_worker.shared import bundle
from wuwan_worker.shared.protocol import ErrorCode, WarningCode

if TYPE_CHECKING:
    from collections.abc import Callable

# Pillow warns of damaged metadata.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

pillow_heif.register_heif_opener()  # to write such files

SPEC = bundle.load(bundle.find("imagenet-zh")).input
PHOTO = Path(__file__).parents[3] / "examples/photos/coffee.png"  # 600 x 400
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": ("JPEG", {"quality": 92}),
    "progressive jpeg": ("JPEG", {"quality": 92, "progressive": True}),
    "png": ("PNG", {}),
    "palette png": ("PNG", {"palette": True}),
    "webp": ("WEBP", {"quality": 90}),
    "lossless webp": ("WEBP", {"lossless": True}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
    "lzw tiff": ("TIFF", {"compression": "tiff_lzw"}),
    "deflate tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "packbits tiff": ("TIFF", {"compression": "packbits"}),
    "jpeg tiff": ("TIFF", {"compression": "jpeg"}),
    "heic": ("HEIF", {"quality": 80}),
    "avif": ("AVIF", {"quality": 80}),
}


def _attempt(content: bytes, *, exact: bool = False) -> Decoded | Refused:
    descriptor = os.memfd_create("wuwan-test", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, content)
        return decode.attempt(descriptor, SPEC, exact=exact)
    finally:
        os.close(descriptor)


def _labelled(content: bytes) -> Decoded:
    found = _attempt(content)
    assert isinstance(found, Decoded), found
    return found


def _refused(content: bytes) -> Refused:
    found = _attempt(content)
    assert isinstance(found, Refused), found
    return found


def _photo(kind: str) -> bytes:
    name, options = FORMATS[kind]
    options = dict(options)
    with Image.open(PHOTO) as opened:
        image = opened.convert("RGB")
    if options.pop("palette", False):
        image = image.quantize(200)
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def _distance(one: Decoded, other: Decoded, rows: slice = slice(None)) -> float:
    """Mean absolute difference, in levels of 0..255."""
    return float(np.abs(one.pixels[rows].astype(int) - other.pixels[rows]).mean())


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("exact", [False, True])
def test_whole_files_have_no_flaw(kind: str, exact: bool) -> None:
    """What no decoder complains of has no warning."""
    found = _attempt(_photo(kind), exact=exact)
    assert isinstance(found, Decoded)
    assert found.flaw is None


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        (kind, part)
        for kind in FORMATS
        for part in (0.02, 0.15, 0.3)
        # The whole of a progressive one, coarsely, is in its first scan.
        if kind != "progressive jpeg" or part < 0.1
    ],
)
def test_less_than_half_is_truncated(kind: str, part: float) -> None:
    """A file of which little is there has an error, whatever its format."""
    content = _photo(kind)
    found = _refused(content[: int(len(content) * part)])
    assert found.code == ErrorCode.TRUNCATED
    assert found.message


@pytest.mark.parametrize(
    "kind", ["jpeg", "progressive jpeg", "png", "palette png", "webp", "gif", "bmp", "tiff"]
)
@pytest.mark.parametrize("part", [0.85, 0.97])
def test_more_than_half_is_labelled_with_a_flaw(kind: str, part: float) -> None:
    """The upper part is the photo, and the record will say that something is missing."""
    content = _photo(kind)
    found = _labelled(content[: int(len(content) * part)])
    assert found.flaw is not None
    assert found.flaw.code == WarningCode.TRUNCATED
    assert (found.width, found.height) == (600, 400)
    there = slice(0, 90) if kind != "bmp" else slice(130, 224)  # which begins at the bottom
    assert _distance(found, _labelled(content), there) < (12 if "progressive" in kind else 2)


@pytest.mark.parametrize("kind", ["heic", "avif", "lzw tiff", "lossless webp", "jpeg tiff"])
@pytest.mark.parametrize("part", [0.85, 0.97])
def test_the_others_are_either_and_never_silent(kind: str, part: float) -> None:
    """A cut file that its decoder does not show is an error; one that it shows has a flaw."""
    content = _photo(kind)
    found = _attempt(content[: int(len(content) * part)])
    if isinstance(found, Decoded):
        assert found.flaw is not None
    else:
        assert found.code == ErrorCode.TRUNCATED


@pytest.mark.parametrize("kind", ["jpeg", "progressive jpeg"])
def test_a_jpeg_without_its_end_marker(kind: str) -> None:
    """18,440 photos of one collection: every pixel is there."""
    content = _photo(kind)
    assert content.endswith(b"\xff\xd9")
    found, whole = _labelled(content[:-2]), _labelled(content)
    assert found.flaw is not None
    assert found.flaw.code == WarningCode.TRUNCATED
    assert "%" not in found.flaw.message
    assert np.array_equal(found.pixels, whole.pixels)


def test_an_mpo_whose_second_picture_is_cut() -> None:
    """The first one is whole, and it is the one that counts."""
    with Image.open(PHOTO) as opened:
        image = opened.convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, "MPO", save_all=True, append_images=[image])
    assert _labelled(buffer.getvalue()[:-2000]).flaw is None


@pytest.mark.parametrize("kind", ["jpeg", "progressive jpeg"])
def test_a_jpeg_with_a_hole(kind: str) -> None:
    """Half of the scan zeroed has no labels without a word, as it had; nearly all of it none."""
    content = _photo(kind)
    scan = jpeg.header(content).scan

    def with_hole(start: float, end: float) -> bytes:
        first, last = (int(scan + (len(content) - scan) * part) for part in (start, end))
        return content[:first] + bytes(last - first) + content[last:]

    found = _labelled(with_hole(0.7, 0.95))
    assert found.flaw is not None
    if kind == "jpeg":
        assert _refused(with_hole(0.1, 0.95)).code == ErrorCode.TRUNCATED


@pytest.mark.parametrize("seed", range(8))
def test_wrong_bytes_in_a_jpeg_are_a_flaw(seed: int) -> None:
    """Wherever libjpeg has something to say, the picture has a flaw or is refused."""
    content = bytearray(_photo("jpeg"))
    chance = random.Random(seed)
    scan = jpeg.header(bytes(content)).scan
    for _ in range(40):
        content[chance.randrange(scan + 20, len(content) - 2)] = chance.randrange(256)
    found = _attempt(bytes(content))
    assert isinstance(found, Refused) or found.flaw is not None


def test_segments_that_say_nothing_of_the_pixels() -> None:
    """A cut, empty or lying APPn segment, comments and garbage between segments cost no labels."""
    content = _photo("jpeg")
    whole = _labelled(content)
    for odd in (
        b"\xff\xe2\x00\x02",  # empty
        b"\xff\xe2\x00\x0eICC_PROFILE\x00",  # a profile without its number
        b"\xff\xe2\x00\x08ICC_PROFILE\x00",  # a length that is too small
        b"garbage",
        b"\xff\xe0\x00\x10JFIF\x00\x09\x01" + bytes(7),  # of an unknown version
        b"\xff\xe1\x00\x08Exif\x00\x00",
        b"\xff\xe1\x00\x20Exif\x00\x00II*\x00\xff\xff\xff\xff" + bytes(16),
        b"\xff\xfe\x00\x05abc",
        b"\xff\xed\x00\x04\x00\x00",
    ):
        found = _labelled(content[:2] + odd + content[2:])
        assert np.array_equal(found.pixels, whole.pixels)
        # What is no segment at all is damage to libjpeg, though it finds its way.
        rubbish = odd == b"garbage" or b"\x00\x08ICC" in odd
        assert (found.flaw is not None) is rubbish


# ---------------------------------------------------------------- PNG


def _chunk(kind: bytes, content: bytes, *, check: int | None = None) -> bytes:
    check = zlib.crc32(kind + content) if check is None else check
    return struct.pack("!I", len(content)) + kind + content + struct.pack("!I", check)


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("a megabyte of text", _chunk(b"tEXt", b"workflow\x00" + b"x" * 3_000_000)),
        ("packed text", _chunk(b"zTXt", b"w\x00\x00" + zlib.compress(bytes(70_000_000)))),
        ("a wrong sum", _chunk(b"iCCP", b"name\x00\x00abc", check=0)),
        ("a profile of nonsense", _chunk(b"iCCP", b"name\x00\x00" + b"\xff" * 50)),
        ("sRGB", _chunk(b"sRGB", b"\x99" * 7)),
        ("cHRM", _chunk(b"cHRM", b"\xff" * 5)),
        ("gAMA", _chunk(b"gAMA", b"")),
        ("pHYs", _chunk(b"pHYs", b"\xff")),
        ("EXIF of nonsense", _chunk(b"eXIf", b"\x00\xff" * 9)),
        ("an unknown chunk", _chunk(b"quUx", b"abc")),
    ],
)
def test_ancillary_chunks_cost_no_labels(name: str, extra: bytes) -> None:
    """What is not needed for the pixels is ignored, whole or broken, and in little time."""
    del name
    content = _photo("png")
    place = 8 + 25  # behind IHDR
    for at in (place, len(content) - 12):
        found = _labelled(content[:at] + extra + content[at:])
        assert np.array_equal(found.pixels, _labelled(content).pixels)
        assert found.flaw is None


def test_a_wrong_sum_of_pixel_data_is_a_flaw() -> None:
    """A decoder that checks sums refuses it, one that does not shows it."""
    content = bytearray(_photo("png"))
    content[-16] ^= 0xFF  # the last byte of IDAT's sum
    found = _labelled(bytes(content))
    assert found.flaw is not None
    assert found.flaw.code == WarningCode.DAMAGED


def test_damage_is_not_swallowed_by_a_reader_of_metadata() -> None:
    """A PNG without EXIF: Pillow looks for it behind the pixels, and hides what it meets there."""
    content = bytearray(_photo("png"))
    start = content.index(b"IDAT") + 4
    middle = start + (len(content) - start) // 12
    content[middle : middle + 8] = b"\x00\xff" * 4
    assert _refused(bytes(content)).code == ErrorCode.TRUNCATED


def test_a_png_whose_header_promises_more_rows() -> None:
    """320 of 32,767 rows are no picture, though Pillow is content."""
    content = bytearray(_photo("png"))
    content[20:24] = struct.pack("!I", 32_767)
    content[29:33] = struct.pack("!I", zlib.crc32(content[12:29]))
    found = _refused(bytes(content))
    assert found.code == ErrorCode.TRUNCATED
    assert "1% of the picture" in found.message


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA"])
@pytest.mark.parametrize("shade", [0, 127, 255])
def test_pictures_that_end_in_one_colour_are_whole(mode: str, shade: int) -> None:
    """A black, grey or white lower half is no missing one."""
    image = Image.new("RGB", (90, 60), (shade, shade, shade))
    image.paste((200, 30, 30), (0, 0, 90, 30))
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, "PNG")
    assert _labelled(buffer.getvalue()).flaw is None


# ---------------------------------------------------------------- examples of the field


@pytest.fixture
def field(sample: Path) -> Path:
    """Files as people reported them; see the module's other tests for their kinds."""
    if not (sample / "field").is_dir():
        pytest.skip("WUWAN_TEST_DATA has no field/")
    return sample / "field"


# name: the reference, mean difference at the most, size, flaw
_RIGHT: dict[str, tuple[str, float, tuple[int, int], str]] = {
    "02a": ("", 4, (240, 160), "truncated"),
    "03a": ("", 4, (240, 160), ""),
    "04": ("", 4, (240, 160), ""),
    "05a": ("", 0.5, (240, 160), ""),
    "06a": ("", 0.5, (240, 160), ""),
    "07": ("", 0.5, (240, 160), ""),
    "08a": ("-gray", 0.5, (240, 160), ""),
    "09": ("-gray", 0.5, (240, 160), ""),
    "10": ("", 0.5, (240, 160), ""),
    "12a": ("", 0.5, (240, 160), ""),
    "15": ("", 4, (240, 160), ""),
    "f6g": ("", 9, (600, 400), "damaged"),
    # libheif leaves out a crop that is outside of the picture: the size is that of the pixels.
    "f7": ("", 12, (160, 108), ""),
}
_WRONG: dict[str, tuple[str, str]] = {
    "01a": ("truncated", "6% of the picture"),
    "12b": ("unsupported", "RAW"),
    "13a": ("unsupported", "JPEG 2000"),
    "13d": ("unsupported", "12-bit JPEG"),
    "17": ("unsupported", "SVG"),
    "f2": ("too_large", "16383 x 16383"),
    "f4": ("unsupported", "501 scans"),
    "f6a": ("truncated", "1% of the picture"),
    "f6c": ("truncated", "palette"),
}


@pytest.mark.parametrize("name", _RIGHT)
def test_field_files_that_are_labelled(field: Path, name: str) -> None:
    """The picture, its size, and a flaw where there is one."""
    reference, most, size, flaw = _RIGHT[name]
    (path,) = field.glob(f"{name}-*")
    found = _labelled(path.read_bytes())
    expected = _labelled((field / f"00-reference{reference}-240x160.png").read_bytes())
    assert (found.width, found.height) == size
    assert _distance(found, expected) < most
    assert (found.flaw.code if found.flaw else "") == flaw


@pytest.mark.parametrize("name", _WRONG)
def test_field_files_that_are_refused(field: Path, name: str, little: None) -> None:
    """With the code that says why."""
    code, text = _WRONG[name]
    (path,) = field.glob(f"{name}-*")
    found = _refused(path.read_bytes())
    assert found.code == code
    assert text in found.message


# ---------------------------------------------------------------- memory


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker with 600 MB for pictures."""
    budget = memory.Budget(600 * 10**6)
    monkeypatch.setattr(memory, "budget", lambda: budget)


def _resident(line: str = "VmRSS") -> int:
    """This process's resident memory, bytes (proc(5), status)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{line}:")[1].split()[0]) * 1024


def _failing() -> list[bytes]:
    """Large files that fail in every way that a decoder has."""
    side = 3000
    packed = zlib.compress(bytes((1 + 3 * side) * side), 1)
    header = struct.pack("!2I5B", side, side, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", packed)
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    image = Image.fromarray(noise).resize((2000, 2000))
    files = [png[: len(png) // 3], png[:40] + b"\xff" * 200 + png[240:]]
    for name, options in (("TIFF", {"compression": "tiff_lzw"}), ("JPEG", {}), ("WEBP", {})):
        buffer = io.BytesIO()
        image.save(buffer, name, **options)
        files.append(buffer.getvalue()[: len(buffer.getvalue()) // 3])
    return files


def test_failed_images_leave_nothing_behind(memory_file: Callable[[bytes], int]) -> None:
    """200 failing files take no more than a few: no error holds the pixels of its image."""
    descriptors = [memory_file(content) for content in _failing()]
    results = [decode.attempt(descriptor, SPEC) for descriptor in descriptors]
    assert all(isinstance(result, Refused) for result in results)
    gc.collect()
    gc.disable()
    try:
        before = _resident()
        kept = [decode.attempt(descriptors[i % len(descriptors)], SPEC) for i in range(200)]
        assert len(kept) == 200
        assert _resident() - before < 60 * 2**20  # one of them takes 36 MB
    finally:
        gc.enable()


@pytest.mark.usefixtures("little")
def test_thirty_four_bytes_do_not_take_gigabytes() -> None:
    """A picture that cannot fit is refused by what it would take, before a byte is taken."""
    tiny = bytes.fromhex("524946461a000000574542505650384c0e0000002ffebfff0f071011fd0f4444ff03")
    before = _resident("VmHWM")
    found = _refused(tiny)
    assert found.code == ErrorCode.TOO_LARGE
    assert "this worker has 600 MB" in found.message
    assert _resident("VmHWM") - before < 20 * 2**20


@pytest.mark.usefixtures("little")
def test_the_same_pixels_cost_what_their_format_takes() -> None:
    """49 megapixels of grey PNG fit where 49 megapixels of lossless WebP do not."""
    buffer = io.BytesIO()
    Image.new("L", (7000, 7000)).save(buffer, "PNG")
    assert _labelled(buffer.getvalue()).width == 7000
    buffer = io.BytesIO()
    Image.new("RGB", (7000, 7000)).save(buffer, "WEBP", lossless=True, quality=0, method=0)
    assert _refused(buffer.getvalue()).code == ErrorCode.TOO_LARGE


@pytest.mark.parametrize("kind", ["webp", "lossless webp", "png", "lzw tiff", "heic"])
def test_a_second_half_of_zeros(kind: str) -> None:
    """As a download that was broken off leaves it: never labels without a word."""
    content = _photo(kind)
    found = _attempt(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    assert isinstance(found, Refused) or found.flaw is not None


# ---------------------------------------------------------------- long headers


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xd8" + b"\xff" * 30_000_000,
        b"\xff\xd8" + b"\xff\x00" * 15_000_000,
        b"\xff\xd8" + b"\xff\xfe\x00\x02" * 8_000_000,
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", bytes(13)) + _chunk(b"tEXt", b"") * 2_500_000,
    ],
    ids=["fill", "garbage", "comments", "chunks"],
)
def test_headers_without_end_are_left_soon(content: bytes) -> None:
    """30 MB of what says nothing are refused in about a second."""
    started = time.process_time()
    assert _refused(content).code == ErrorCode.TRUNCATED
    assert time.process_time() - started < 5


def test_a_photo_behind_much_filling() -> None:
    """Any number of fill bytes may come before a segment."""
    content = _photo("jpeg")
    found = _labelled(content[:2] + b"\xff" * 200_000 + content[2:])
    assert np.array_equal(found.pixels, _labelled(content).pixels)


@pytest.mark.parametrize(("more", "read"), [(80, True), (200, False)])
def test_a_jpeg_of_many_scans(more: int, read: bool) -> None:
    """Far more than photos have are refused; those of a thumbnail, or behind the end, are none."""
    buffer = io.BytesIO()
    Image.new("RGB", (640, 480), "red").save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content.rindex(b"\xff\xda")
    scan = content[last:-2]
    thumbnail = b"\xff\xe1\x01\xf8Exif\x00\x00" + b"\xff\xda" * 248
    content = content[:2] + thumbnail + content[2:-2] + scan * more + b"\xff\xd9" + scan * 300
    if read:
        assert _labelled(content).width == 640
    else:
        found = _refused(content)
        assert (found.code, found.message) == (
            ErrorCode.UNSUPPORTED,
            "a JPEG of 210 scans is not supported (up to 100)",
        )


def test_frames_are_not_counted() -> None:
    """A GIF of 400,000 frames is no slower than one of eight: to count them took 2.6 s."""
    buffer = io.BytesIO()
    Image.new("P", (64, 64)).save(buffer, "GIF")
    content = buffer.getvalue()
    frame = content[content.rindex(b",\0\0\0\0") : -1]
    started = time.process_time()
    assert _labelled(content[:-1] + frame * 400_000 + b";").width == 64
    assert time.process_time() - started < 1
