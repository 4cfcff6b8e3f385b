"""Damage that was found by mutating files: none of it gives labels without a word."""

from __future__ import annotations

import contextlib
import io
import os
import random
import struct
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tests.worker.decoding.kinds import gif, heif, jpeg, png, tiff
from tests.worker.decoding.kinds.base import (
    HEIGHT,
    SPEC,
    WIDTH,
    distance,
    grey,
    palette,
    rgb,
    saved,
    seen,
)
from tests.worker.decoding.kinds.bmp import built as built_bmp
from wuwan_worker.decoding import coded, decode
from wuwan_worker.decoding.decode import ItemError
from wuwan_worker.shared.protocol import ErrorCode, WarningCode

if TYPE_CHECKING:
    from wuwan_worker.decoding.decode import Decoded

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def _decoded(content: bytes) -> Decoded:
    descriptor = os.memfd_create("damaged", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, content)
        return decode.decode(descriptor, SPEC)
    finally:
        os.close(descriptor)


def _warned(content: bytes, code: WarningCode) -> Decoded:
    found = _decoded(content)
    assert found.flaw is not None
    assert found.flaw.code == code
    return found


def _refused(content: bytes) -> ErrorCode:
    with pytest.raises(ItemError) as caught:
        _decoded(content)
    return caught.value.code


def _kind(kinds: object, name: str) -> bytes:
    return next(kind.content for kind in kinds() if kind.name == name)  # type: ignore[operator]


# ---------------------------------------------------------------- GIF


@pytest.mark.parametrize(("part", "labelled"), [(0.7, True), (0.3, False)])
def test_a_gif_whose_codes_end_early(part: float, labelled: bool) -> None:
    """An end code before the last row is noticed."""
    indices, table, _ = palette(256)
    whole = gif.frame(indices, colours=table.tobytes())
    short = gif.frame(indices[: int(HEIGHT * part)], colours=table.tobytes())
    # The frame says that it has all rows, and has data behind the end code.
    frame = short.replace(short[8:17], whole[8:17], 1)
    for more in (b"", b"\xff" + bytes(255)):
        content = gif.built(frame[:-1] + 4 * more + b"\0")
        if labelled:
            assert "70%" in str(_warned(content, WarningCode.TRUNCATED).flaw)
        else:
            assert _refused(content) == ErrorCode.TRUNCATED


def test_an_even_last_row_is_no_damage() -> None:
    """A whole GIF that ends with a black row has no warning."""
    indices = np.zeros((HEIGHT, WIDTH), np.uint8)
    indices[: HEIGHT // 2] = 7
    table = bytes(range(256)) * 3
    assert _decoded(gif.built(gif.frame(indices, colours=table))).flaw is None
    assert _decoded(saved(Image.fromarray(indices), "GIF", interlace=1)).flaw is None


def test_a_frame_larger_than_its_canvas_is_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GIF of 240 x 160 whose frame has 60,000 x 60,000 pixels is refused at once."""
    indices, table, _ = palette(256)
    content = bytearray(gif.built(gif.frame(indices, colours=table.tobytes())))
    place = content.index(b"\x2c", 13)
    content[place + 5 : place + 9] = struct.pack("<2H", 60_000, 60_000)
    start = time.monotonic()
    assert _refused(bytes(content)) == ErrorCode.TOO_LARGE
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("kind", ["gif", "png"])
def test_frames_behind_an_empty_one_that_cannot_be_read(kind: str) -> None:
    """Where the first frame is empty and the others are lost, the labels come with a warning."""
    if kind == "gif":
        indices, table, _ = palette(256)
        empty = np.full_like(indices, 3)
        content = gif.built(gif.frame(empty, clear=3), gif.frame(indices), colours=table.tobytes())
        content = content[:-9000]
    else:
        content = _kind(png.kinds, "png-animated-empty-first")
        place = content.index(b"fdAT") + 20_000
        content = content[:place] + bytes(3000) + content[place + 3000 :]
    _warned(content, WarningCode.DAMAGED)


def test_an_animation_that_is_none_any_more() -> None:
    """Without its control chunk an APNG is its default image; if that is empty, with a warning."""
    content = _kind(png.kinds, "png-animated-empty-first")
    _warned(content.replace(b"acTL", b"xcTL"), WarningCode.DAMAGED)


# ---------------------------------------------------------------- HEIC, AVIF, WebP


def _coded_file(name: str) -> bytes:
    picture = Image.fromarray(np.asarray(Image.fromarray(rgb()).resize((480, 320))))
    if name == "heic":
        buffer = io.BytesIO()
        heif.pillow_heif.from_pillow(picture).save(buffer, quality=90)
        return buffer.getvalue()
    return saved(picture, name.upper(), quality=90)


@pytest.mark.parametrize("name", ["avif", "heic", "webp"])
def test_a_hole_of_zeros_in_coded_data(name: str) -> None:
    """Zeros from two thirds on are a warning, from one third on an error."""
    content = _coded_file(name)
    assert _decoded(content).flaw is None
    for part, labelled in ((0.8, True), (0.3, False)):
        place = int(len(content) * part)
        damaged = content[:place] + bytes(len(content) - place)
        if labelled:
            _warned(damaged, WarningCode.DAMAGED)
        else:
            assert _refused(damaged) == ErrorCode.TRUNCATED


@pytest.mark.parametrize("name", ["avif", "heic", "webp"])
@pytest.mark.parametrize("part", [0.998, 0.9, 0.7])
def test_coded_pictures_that_are_cut(name: str, part: float) -> None:
    """A cut picture is labelled by what is there, with a warning."""
    content = _coded_file(name)
    found = _warned(content[: int(len(content) * part)], WarningCode.TRUNCATED)
    assert distance(found.pixels, seen(rgb())) < 25
    assert _refused(content[: int(len(content) * 0.3)]) == ErrorCode.TRUNCATED


@pytest.mark.parametrize("name", ["avif", "heic"])
def test_alpha_that_is_cut_off_costs_no_labels(name: str) -> None:
    """Of a picture whose alpha, which comes last, is not there the colours are labelled."""
    kinds = heif.avifs if name == "avif" else heif.heics
    content = _kind(kinds, f"{name}-alpha")
    _warned(content[: int(len(content) * 0.9)], WarningCode.TRUNCATED)


def test_zeros_where_nothing_happens_are_no_hole() -> None:
    """A plain picture compresses to little, which may be zeros."""
    assert coded.sound(bytes(5000), 4_000_000) == 1
    for name in ("AVIF", "WEBP"):
        assert _decoded(saved(Image.new("RGB", (3000, 2000)), name)).flaw is None


# ---------------------------------------------------------------- TIFF, JPEG, BMP, PNG


def test_packbits_that_do_not_fill_their_strips() -> None:
    """libtiff fills up, and Pillow does not tell."""
    content = tiff.written(rgb(), photometric="rgb", compression="packbits", rowsperstrip=32)
    assert _decoded(content).flaw is None
    with tiff.tifffile.TiffFile(io.BytesIO(content)) as file:
        place = file.pages[0].dataoffsets[1]
    # Runs of one value in place of what was written out: more bytes than the strip has.
    damaged = content[:place] + b"\x82\x10" * 400 + content[place + 800 :]
    _warned(damaged, WarningCode.DAMAGED)


def test_old_jpeg_with_damage_inside() -> None:
    """A JPEG file in a TIFF is looked at as a JPEG file is."""
    content = bytearray(tiff._old_jpeg(saved(rgb(), "JPEG", quality=92, subsampling=2)))
    place = content.index(b"\xff\xda") + 6000
    content[place : place + 200] = b"\xff" * 200
    _warned(bytes(content), WarningCode.DAMAGED)


def test_a_tiff_that_does_not_say_what_its_values_mean() -> None:
    """A guess is a warning."""
    _warned(tiff.built(tiff.page(grey(), {262: None})), WarningCode.DAMAGED)


@pytest.mark.parametrize("rubbish", [b"\x00" * 12, b"\xff\x00abc", b"rubbish"])
def test_rubbish_between_the_segments_of_a_jpeg(rubbish: bytes) -> None:
    """It stops libjpeg's header, but every viewer finds its way."""
    content = saved(rgb(), "JPEG", quality=93)
    place = content.index(b"\xff\xdb")
    found = _decoded(content[:place] + rubbish + content[place:])
    assert distance(found.pixels, seen(rgb())) < 4


def test_damaged_metadata_and_damaged_pixels_of_a_jpeg() -> None:
    """What libjpeg says of a profile does not hide what it says of pixels."""
    content = saved(rgb(), "JPEG", quality=93)
    content = content[:2] + jpeg.segment(0xE2, b"ICC_PROFILE\0\x05\x02abc") + content[2:]
    assert _decoded(content).flaw is None
    _warned(content[: int(len(content) * 0.8)], WarningCode.TRUNCATED)


def test_an_odd_marker_is_damage_not_a_kind() -> None:
    """libjpeg's "unsupported marker" in the middle of a scan is no kind of JPEG."""
    content = bytearray(saved(rgb(), "JPEG", quality=93))
    content[-3000:-2990] = b"\xff\xf7" * 5
    _warned(bytes(content), WarningCode.DAMAGED)
    del content[20:]
    assert _refused(bytes(content)) == ErrorCode.TRUNCATED


@pytest.mark.parametrize("part", [0.8, 0.3])
def test_a_bmp_of_odd_masks_that_is_cut(part: float) -> None:
    """The reader of masks keeps the rule of all formats."""
    values = (rgb() >> 4).astype(np.uint16) @ np.array([256, 16, 1], np.uint16)
    rows = values[::-1].tobytes()
    content = built_bmp(rows, 16, compression=3, masks=(0xF00, 0xF0, 0xF))
    assert _decoded(content).flaw is None
    cut = content[: int(len(content) * part)]
    if part > 0.5:
        _warned(cut, WarningCode.TRUNCATED)
    else:
        assert _refused(cut) == ErrorCode.TRUNCATED


# ---------------------------------------------------------------- a small hunt of its own


@pytest.mark.parametrize("name", ["gif", "png", "jpeg", "bmp", "webp", "tiff", "avif", "heic"])
def test_mutated_files_end_soon_as_a_picture_or_an_error(name: str) -> None:
    """Flips, cuts, holes and repeats, seeded: a square or an ItemError, each in little time."""
    if name in ("avif", "heic", "webp"):
        whole = _coded_file(name)
    elif name == "tiff":
        whole = tiff.written(rgb(), photometric="rgb", compression="lzw", predictor=True)
    else:
        whole = saved(rgb(), name.upper())
    chance = random.Random(10)
    for _ in range(60):
        content = bytearray(whole)
        place = chance.randrange(len(content))
        length = chance.choice((1, 4, 64, 2048))
        match chance.randrange(5):
            case 0:
                content[place] ^= 1 << chance.randrange(8)
            case 1:
                del content[place:]
            case 2:
                content[place : place + length] = bytes(length)
            case 3:
                content[place:place] = content[place : place + length]
            case _:
                content[chance.randrange(60)] = chance.randrange(256)
        start = time.monotonic()
        with contextlib.suppress(ItemError):
            assert _decoded(bytes(content)).pixels.shape == (SPEC.size, SPEC.size, 3)
        assert time.monotonic() - start < 5
