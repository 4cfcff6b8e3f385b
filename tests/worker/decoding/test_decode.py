"""Decoding: every format, every orientation, and hostile files."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageOps

from wuwan_worker.decoding import decode, prepare
from wuwan_worker.decoding.decode import Decoded, ItemError
from wuwan_worker.shared import bundle
from wuwan_worker.shared.protocol import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

# Pillow warns of damaged metadata before it raises.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

pillow_heif.register_heif_opener()  # to write such files

SPEC = bundle.load(bundle.find("imagenet-zh")).input
RED, GREEN, BLUE, WHITE, BLACK = (
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (255, 255, 255),
    (0, 0, 0),
)
# Where the middle of each quarter of the network's square is.
CORNERS = ((50, 50), (50, 170), (170, 50), (170, 170))


def _decode(content: bytes, *, exact: bool = False) -> Decoded:
    descriptor = os.memfd_create("wuwan-test", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, content)
        return decode.decode(descriptor, SPEC, exact=exact)
    finally:
        os.close(descriptor)


def _refused(content: bytes) -> tuple[ErrorCode, str]:
    with pytest.raises(ItemError) as caught:
        _decode(content)
    return caught.value.code, str(caught.value)


def _saved(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def _quarters(width: int = 320, height: int = 240) -> Image.Image:
    """Four quarters of different colours: any turn or mirroring shows."""
    image = Image.new("RGB", (width, height), WHITE)
    image.paste(RED, (0, 0, width // 2, height // 2))
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    return image


def _photo(width: int = 640, height: int = 480, seed: int = 0) -> Image.Image:
    """Something with edges, gradients and texture, as photos have."""
    if width * height > 1_000_000:
        return _photo(width // 4, height // 4, seed).resize((width, height))
    random = np.random.default_rng(seed)
    down, across = np.mgrid[0:height, 0:width] / max(width, height)
    waves = [
        sum(
            np.sin(2 * np.pi * (fx * across + fy * down) + phase) / (1 + abs(fx) + abs(fy))
            for fx, fy, phase in random.uniform(-9, 9, (12, 3))
        )
        for _ in range(3)
    ]
    values = np.stack(waves, axis=2) * 60 + 128
    values += (across > down)[..., None] * 40 + random.normal(0, 4, values.shape)
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def _close(found: NDArray[np.uint8], colours: tuple[tuple[int, int, int], ...], by: int) -> bool:
    pairs = zip(CORNERS, colours, strict=True)
    return all(np.abs(found[place].astype(int) - colour).max() <= by for place, colour in pairs)


def _shades(content: bytes) -> tuple[float, float]:
    """The mean brightness of the left and the right half."""
    pixels = _decode(content).pixels.astype(float)
    return pixels[:, :100].mean(), pixels[:, 124:].mean()


def _distance(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Mean absolute difference, in levels of 0..255."""
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def _reference(image: Image.Image) -> NDArray[np.uint8]:
    """Resize the shorter side, crop the middle: as the network was evaluated."""
    scale = SPEC.resize / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - SPEC.size) // 2, (height - SPEC.size) // 2
    return np.asarray(image.crop((left, top, left + SPEC.size, top + SPEC.size)))


# ---------------------------------------------------------------- formats


@pytest.mark.parametrize(
    ("file_format", "options", "tolerance"),
    [
        ("JPEG", {"quality": 95}, 8),
        ("JPEG", {"quality": 95, "progressive": True}, 8),
        ("JPEG", {"quality": 95, "keep_rgb": True}, 8),
        ("PNG", {}, 1),
        ("PNG", {"interlace": 1}, 1),
        ("WEBP", {"lossless": True}, 1),
        ("WEBP", {"quality": 90}, 8),
        ("GIF", {}, 2),
        ("BMP", {}, 1),
        ("TIFF", {}, 1),
        ("TIFF", {"compression": "tiff_lzw"}, 1),
        ("TIFF", {"compression": "jpeg"}, 8),
        ("HEIF", {"quality": 90}, 8),
        ("AVIF", {"quality": 90}, 8),
    ],
)
@pytest.mark.parametrize("exact", [False, True])
def test_every_format_of_the_allow_list(
    file_format: str, options: dict[str, Any], tolerance: int, exact: bool
) -> None:
    """Each format gives the picture that was saved, its size, and RGB bytes."""
    found = _decode(_saved(_quarters(), file_format, **options), exact=exact)
    assert (found.width, found.height) == (320, 240)
    assert found.pixels.shape == (SPEC.size, SPEC.size, 3)
    assert found.pixels.dtype == np.uint8
    assert _close(found.pixels, (RED, GREEN, BLUE, WHITE), tolerance)


def test_formats_are_known_without_any_other_plugin() -> None:
    """A fresh process decodes a PNG first, and has not imported the plugins of other formats."""
    content = _saved(Image.new("RGB", (9, 9)), "PNG")
    program = (
        "import sys, os\n"
        "from wuwan_worker.decoding import decode\n"
        "from wuwan_worker.shared import bundle\n"
        "fd = os.memfd_create('x'); os.write(fd, sys.stdin.buffer.read())\n"
        "spec = bundle.load(bundle.find('imagenet-zh')).input\n"
        "print(decode.decode(fd, spec).width, 'PIL.EpsImagePlugin' in sys.modules)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=content,
        capture_output=True,
        env=environment,
        timeout=30,
        check=True,
    )
    assert done.stdout.split() == [b"9", b"False"]


_FRESH = """
import sys
from wuwan_worker.decoding import decode
from wuwan_worker.shared import bundle
image = decode.decode(sys.stdin.fileno(), bundle.load(bundle.find("imagenet-zh")).input)
print(image.width, image.height)
"""


@pytest.mark.parametrize("file_format", ["HEIF", "AVIF", "PNG"])
def test_decoders_that_are_loaded_late(tmp_path: Path, file_format: str) -> None:
    """The first image of a process may be in any format."""
    Image.new("RGB", (320, 240), RED).save(tmp_path / "image", file_format)
    with (tmp_path / "image").open("rb") as file:
        done = subprocess.run(
            [sys.executable, "-c", _FRESH],
            stdin=file,
            capture_output=True,
            timeout=30,
            check=False,
            env=os.environ | {"PYTHONPATH": str(bundle.EMBEDDED.parents[1])},
        )
    assert done.stdout.split() == [b"320", b"240"], done.stderr.decode()


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "HEIF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(file_format: str, orientation: int) -> None:
    """An orientation gives the same square and size as turning the picture does."""
    picture = _quarters(400, 240)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = picture.copy()
    upright.getexif()[0x0112] = orientation
    upright = ImageOps.exif_transpose(upright)
    content = _saved(picture, file_format, exif=exif.tobytes(), quality=95)
    expected = _decode(_saved(upright, "PNG"))
    for exact in (False, True):
        found = _decode(content, exact=exact)
        assert (found.width, found.height) == upright.size
        assert _distance(found.pixels, expected.pixels) < 3


def test_nonsense_in_exif_is_no_reason_to_fail() -> None:
    """Damaged or impossible orientation metadata leaves the picture as it is."""
    exif = Image.Exif()
    exif[0x0112] = 77
    for damaged in (exif.tobytes(), b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"Exif\x00\x00"):
        found = _decode(_saved(_quarters(), "JPEG", exif=damaged))
        assert (found.width, found.height) == (320, 240)
        assert _close(found.pixels, (RED, GREEN, BLUE, WHITE), 8)


def test_cmyk_jpeg() -> None:
    """A JPEG for printing has its colours, not their inverse."""
    found = _decode(_saved(_quarters().convert("CMYK"), "JPEG", quality=95))
    assert _close(found.pixels, (RED, GREEN, BLUE, WHITE), 12)


def test_mpo_gives_its_first_picture() -> None:
    """A file with several JPEGs (3D photos, some phones) is its first one."""
    other = Image.new("RGB", (320, 240), BLACK)
    content = _saved(_quarters(), "MPO", save_all=True, append_images=[other], quality=95)
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "MPO"
    assert _close(_decode(content).pixels, (RED, GREEN, BLUE, WHITE), 8)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_animations_give_their_first_frame(file_format: str) -> None:
    """An animation is labelled by its first frame."""
    frames = [Image.new("RGB", (320, 240), shade) for shade in (BLACK, GREEN)]
    content = _saved(_quarters(), file_format, save_all=True, append_images=frames)
    assert _close(_decode(content).pixels, (RED, GREEN, BLUE, WHITE), 40)


# ---------------------------------------------------------------- modes


def _halves(mode: str, left: Any, right: Any, size: tuple[int, int] = (300, 300)) -> Image.Image:
    image = Image.new(mode, size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def _deep(dtype: str, left: float, right: float) -> Image.Image:
    values = np.full((300, 300), left, dtype)
    values[:, 150:] = right
    return Image.fromarray(values)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bits_are_not_white(file_format: str) -> None:
    """16-bit greyscale keeps its shades; clipped at 255 it would be white."""
    content = _saved(_deep("uint16", 16_384, 49_152), file_format)
    assert _shades(content) == (pytest.approx(63, abs=2), pytest.approx(191, abs=2))


@pytest.mark.parametrize(
    ("dtype", "left", "right"),
    [
        ("float32", 0.25, 0.75),
        ("float32", 64, 192),
        ("float32", 16_384, 49_152),
        ("int32", 64, 192),
        ("int32", 16_384, 49_152),
    ],
)
def test_deep_greyscale_has_shades_whatever_its_range(
    dtype: str, left: float, right: float
) -> None:
    """32-bit images in the usual ranges are neither black nor white."""
    dark, bright = _shades(_saved(_deep(dtype, left, right), "TIFF"))
    assert 40 < dark < 80
    assert 180 < bright <= 255


def test_not_a_number_is_no_reason_to_fail() -> None:
    """Scientific images may have gaps."""
    assert _decode(_saved(_deep("float32", float("nan"), 0.5), "TIFF")).width == 300


@pytest.mark.parametrize(
    ("mode", "left", "right"),
    [
        ("RGBA", (0, 0, 0, 0), (0, 0, 0, 255)),
        ("LA", (0, 0), (0, 255)),
    ],
)
@pytest.mark.parametrize("exact", [False, True])
def test_transparency_is_over_white(mode: str, left: Any, right: Any, exact: bool) -> None:
    """What is transparent is white, as on a page, not the black below it."""
    pixels = _decode(_saved(_halves(mode, left, right), "PNG"), exact=exact).pixels
    assert pixels[:, :100].min() >= 254
    assert pixels[:, 124:].max() <= 1


@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_a_palette_with_transparency_is_over_white(file_format: str) -> None:
    """A transparent colour of a palette is white."""
    image = _halves("P", 0, 1)
    image.putpalette([*BLACK, *RED])
    pixels = _decode(_saved(image, file_format, transparency=0)).pixels
    assert pixels[:, :100].min() >= 254
    assert np.abs(pixels[:, 124:].astype(int) - RED).max() <= 1


@pytest.mark.parametrize(("mode", "key", "other"), [("RGB", (9, 9, 9), (200, 0, 0)), ("L", 9, 200)])
def test_a_colour_that_means_transparent_is_white(mode: str, key: Any, other: Any) -> None:
    """A PNG may declare one colour transparent."""
    pixels = _decode(_saved(_halves(mode, key, other), "PNG", transparency=key)).pixels
    assert pixels[:, :100].min() >= 254


@pytest.mark.parametrize(("mode", "dark", "bright"), [("1", 0, 1), ("L", 0, 255)])
def test_black_and_white(mode: str, dark: int, bright: int) -> None:
    """1-bit and grey images keep black black and white white."""
    assert _shades(_saved(_halves(mode, dark, bright), "PNG")) == (0, 255)


def test_bands_join_without_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large palette image that is converted a few rows at a time looks as if done in one go."""
    content = _saved(_photo(1500, 1100).quantize(64), "PNG")
    expected = _decode(content).pixels
    monkeypatch.setattr(prepare, "_BAND_PIXELS", 7000)
    assert np.array_equal(_decode(content).pixels, expected)


# ---------------------------------------------------------------- the square


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (257, 999), (256, 256), (100, 80)])
def test_exact_is_the_reference(size: tuple[int, int]) -> None:
    """`exact` gives what resizing and then cropping gives, to a level of rounding."""
    photo = _photo(*size)
    found = _decode(_saved(photo, "PNG"), exact=True).pixels
    assert np.abs(found.astype(int) - _reference(photo)).max() <= 2


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [(4000, 3000), (1000, 1500), (500, 375), (300, 300), (90, 120)])
def test_the_fast_way_agrees_with_the_exact_one(size: tuple[int, int], seed: int) -> None:
    """Decoding a JPEG at reduced scale changes pixels by little."""
    content = _saved(_photo(*size, seed=seed).filter(ImageFilter.GaussianBlur(1)), "JPEG")
    fast, exact = _decode(content), _decode(content, exact=True)
    assert (fast.width, fast.height) == (exact.width, exact.height) == size
    assert _distance(fast.pixels, exact.pixels) < 3


@pytest.mark.parametrize("name", ["chelsea.png", "coffee.png", "rocket.jpg", "camera.png"])
def test_the_fast_way_agrees_on_photos(photos: Path, name: str) -> None:
    """The same for real photos."""
    content = (photos / name).read_bytes()
    fast, exact = _decode(content), _decode(content, exact=True)
    assert _distance(fast.pixels, exact.pixels) < 4


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1), (1, 1), (2, 3), (1, 60_000)])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_extreme_shapes(size: tuple[int, int], exact: bool, file_format: str) -> None:
    """Any shape gives a square of its colour, at once and in little memory."""
    with _little_memory(60 * 1024):
        found = _decode(_saved(Image.new("RGB", size, BLUE), file_format), exact=exact)
    assert (found.width, found.height) == size
    assert np.abs(found.pixels.astype(int) - BLUE).max() <= 3


def _resident(line: str) -> int:
    """This process's resident memory, or the most it has been, KiB (proc(5), status)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{line}:")[1].split()[0])


@contextlib.contextmanager
def _little_memory(limit: int) -> Iterator[None]:
    """What is done takes no more than `limit` KiB at any time."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now
    before = _resident("VmRSS")
    yield
    assert _resident("VmHWM") - before < limit


# ---------------------------------------------------------------- the descriptor


def test_the_offset_does_not_matter(memory_file: Callable[[bytes], int]) -> None:
    """The file is read from its start, and the client's offset is not moved."""
    descriptor = memory_file(_saved(_quarters(), "PNG"))
    os.lseek(descriptor, 100, os.SEEK_SET)
    assert decode.decode(descriptor, SPEC).width == 320
    assert os.lseek(descriptor, 0, os.SEEK_CUR) == 100


def test_unreadable_descriptors() -> None:
    """Closed, write-only, directory and pipe descriptors are `unreadable`, at once."""
    reader, writer = os.pipe()
    directory = os.open("/", os.O_RDONLY)
    closed = os.dup(directory)
    os.close(closed)
    output = os.open("/dev/null", os.O_WRONLY)
    try:
        for descriptor in (reader, directory, closed, output):
            with pytest.raises(ItemError) as caught:
                decode.decode(descriptor, SPEC)
            assert caught.value.code == ErrorCode.UNREADABLE
    finally:
        for descriptor in (reader, writer, directory, output):
            os.close(descriptor)


def test_a_device_without_end_is_not_read_to_its_end() -> None:
    """/dev/zero gives what a file of its size, nothing, would give."""
    descriptor = os.open("/dev/zero", os.O_RDONLY)
    try:
        with pytest.raises(ItemError) as caught:
            decode.decode(descriptor, SPEC)
    finally:
        os.close(descriptor)
    assert caught.value.code == ErrorCode.NOT_AN_IMAGE


# ---------------------------------------------------------------- hostile files


def test_an_empty_file() -> None:
    """0 bytes are `not_an_image`."""
    assert _refused(b"") == (ErrorCode.NOT_AN_IMAGE, "the file is empty")


@pytest.mark.parametrize("length", [3, 12, 20])
def test_a_cut_header_is_truncated(length: int) -> None:
    """A JPEG of a few bytes is a cut JPEG."""
    assert _refused(_saved(_quarters(), "JPEG")[:length])[0] == ErrorCode.TRUNCATED


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (EPS, "PostScript"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "PDF"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'\n<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"8BPS\x00\x01" + bytes(20), "Photoshop"),
        (b"\x00\x00\x01\x00\x01\x00" + bytes(60), "ICO"),
        (b"\xff\x4f\xff\x51" + bytes(60), "JPEG 2000"),
        (b"\xff\x0a" + bytes(60), "JPEG XL"),
    ],
)
def test_other_formats_are_unsupported(content: bytes, name: str) -> None:
    """A format that is known and not taken is `unsupported`, and is named."""
    code, message = _refused(content)
    assert code == ErrorCode.UNSUPPORTED
    assert name in message


@pytest.mark.parametrize("file_format", ["PPM", "TGA", "PCX", "ICNS", "SGI", "DDS"])
def test_formats_outside_the_allow_list_are_not_decoded(file_format: str) -> None:
    """What Pillow could decode besides is refused."""
    code, _ = _refused(_saved(Image.new("RGB", (64, 64)), file_format))
    assert code in (ErrorCode.UNSUPPORTED, ErrorCode.NOT_AN_IMAGE)


def test_ghostscript_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An EPS, whatever its name, runs no program."""
    ran = tmp_path / "ran"
    for name in ("gs", "gswin32c", "gswin64c"):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\ntouch {ran}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    subprocess.run(["gs"], check=True, timeout=10)  # the trap works
    ran.unlink()
    assert _refused(EPS)[0] == ErrorCode.UNSUPPORTED
    header = struct.pack("<4s6IH", b"\xc5\xd0\xd3\xc6", 32, len(EPS), 0, 0, 0, 0, 0xFFFF)
    assert _refused(header + b"\x00\x00" + EPS)[0] == ErrorCode.UNSUPPORTED
    assert not ran.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"hello, world\n",
        b"\x00" * 1000,
        b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(40),
        b"\x1f\x8b\x08",
    ],
)
def test_what_is_no_image(content: bytes) -> None:
    """Text, zeros, sounds and archives are `not_an_image`."""
    assert _refused(content)[0] == ErrorCode.NOT_AN_IMAGE


def _chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(kind + content)
    return struct.pack("!I", len(content)) + kind + content + struct.pack("!I", check)


def _png(width: int, height: int, *, kind: int = 0, extra: bytes = b"") -> bytes:
    """A PNG of zeros, 8 bits (`kind` 0 grey, 2 RGB, 3 palette), never whole in memory."""
    row = 1 + width * (3 if kind == 2 else 1)
    packer = zlib.compressobj(9)
    packed = bytearray()
    block = bytes(row * 64)
    for start in range(0, height, 64):
        packed += packer.compress(block[: row * min(64, height - start)])
    packed += packer.flush()
    header = struct.pack("!2I5B", width, height, 8, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + extra
        + _chunk(b"IDAT", bytes(packed))
        + _chunk(b"IEND", b"")
    )


def test_a_picture_with_too_many_pixels() -> None:
    """20,000 x 20,000 pixels are refused before one of them is decoded."""
    content = _png(20_000, 20_000)
    assert len(content) < 1_000_000
    with _little_memory(10 * 1024):
        code, message = _refused(content)
    assert code == ErrorCode.TOO_LARGE
    assert "20000 x 20000" in message


def test_sizes_are_not_multiplied_in_32_bits() -> None:
    """65,500 x 65,500 pixels are too many, not few."""
    content = bytearray(_saved(Image.new("L", (16, 16)), "JPEG"))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack("!2H", 65_500, 65_500)
    assert _refused(bytes(content))[0] == ErrorCode.TOO_LARGE


def test_a_large_palette_with_transparency_takes_little_memory() -> None:
    """A few kilobytes that are 64 megapixels of a palette do not become gigabytes."""
    palette = _chunk(b"PLTE", bytes((*BLACK, *RED))) + _chunk(b"tRNS", b"\x00")
    content = _png(8000, 8000, kind=3, extra=palette)
    with _little_memory(150 * 1024):  # the pixels are 64 MB
        found = _decode(content)
    assert found.pixels.min() == 255


def test_the_limit_on_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file over the limit is refused by its size, and one at the limit is taken."""
    content = _saved(_quarters(), "BMP")
    monkeypatch.setattr(decode, "MAX_BYTES", len(content))
    assert _decode(content).width == 320
    monkeypatch.setattr(decode, "MAX_BYTES", len(content) - 1)
    assert _refused(content)[0] == ErrorCode.TOO_LARGE


def test_a_sparse_file_over_the_limit_is_not_read(memory_file: Callable[[bytes], int]) -> None:
    """A terabyte of nothing is refused at once."""
    descriptor = memory_file(b"")
    os.ftruncate(descriptor, 2**40)
    with pytest.raises(ItemError) as caught:
        decode.decode(descriptor, SPEC)
    assert caught.value.code == ErrorCode.TOO_LARGE


@given(st.binary(max_size=300))
@settings(max_examples=60)
def test_random_bytes_are_an_item_error(content: bytes) -> None:
    """Random bytes raise nothing but ItemError."""
    with pytest.raises(ItemError):
        _decode(content)


_SEEDS = [_saved(_quarters(64, 48), name) for name in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")]


@given(st.sampled_from(_SEEDS), st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_files_are_pictures_or_item_errors(seed: bytes, data: st.DataObject) -> None:
    """Wrong bytes anywhere give a picture of the right shape or an ItemError."""
    content = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ItemError):
        found = _decode(bytes(content), exact=data.draw(st.booleans()))
        assert found.pixels.shape == (SPEC.size, SPEC.size, 3)
