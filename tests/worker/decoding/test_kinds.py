"""Every sub-kind of every format: our network's input against the truth, and against peers.

`python -m tests.worker.decoding.kinds.table` prints the table. docs/formats.md says what it holds.
"""

from __future__ import annotations

import functools
from fnmatch import fnmatch

import pytest

from tests.worker.decoding.kinds import table

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
    pytest.mark.filterwarnings("ignore:Casting complex values"),
]

# Where another reader is known to differ from the truth: which kinds, how they read them.
# An entry says nothing of us: we must be right in each of these kinds.
DIFFER = {
    "libvips": {
        "bmp-*": "is built without a BMP reader",
        "heic-*": "is built without HEVC",
        "avif-animated": "does not know it for a picture",
        "jpeg-cmyk-*": "goes by a printer's colour profile",
        "jpeg-ycck*": "goes by a printer's colour profile",
        "jpeg-adobe-7": "is told to refuse what libjpeg warns of",
        "jpeg-jfif-revision": "is told to refuse what libjpeg warns of",
        "png-exif-*-after": "does not look for EXIF behind the pixels",
        "png-animated-*": "shows the default image, though it is empty",
        "gif-small-frame-ground-*": "fills what is around a small frame",
        "gif-e*-first": "shows the first frame, though it is empty",
        "webp-animated-*-empty-first": "shows the first frame, though it is empty",
        "tiff-*-separate-tiles": "does not read planes in tiles",
        "tiff-*zstd*": "is built without zstd",
        "tiff-*lzma*": "is built without LZMA",
        "tiff-*cmyk*": "goes by a printer's colour profile",
        "tiff-*-and-more-*": "takes any fourth sample for alpha",
        "tiff-rgb-alpha-and-one-more-*": "takes the last sample for alpha",
        "tiff-rgb-two-more-*": "takes any fourth sample for alpha",
        "tiff-grey-alpha-*-separate": "misreads it in planes; tifffile reads what was written",
        "tiff-*-f8-*": "does not read 64 bits",
        "tiff-*-f[24]-*": "takes floats for linear light, or for 0 to 255 in grey",
        "tiff-*-[ui]4-*": "takes wide integers for 0 to 255",
        "tiff-*-f4-*": "takes floats for 0 to 255 in grey",
        "tiff-*-i[12]-*": "takes signed values for 0 to 255",
        "tiff-grey-1bit-*-packbits": "refuses what tifffile writes",
        "tiff-thumbnail-first*": "shows the first page, whatever it is",
        "tiff-thumbnail-with-main-below-*": "shows the first page, whatever it is",
        "tiff-mask-first-*": "shows the first page, whatever it is",
        "tiff-no-*": "refuses directories without what TIFF 6.0 requires",
        "tiff-strip-byte-counts-zero-*": "is told to refuse what libtiff warns of",
        "tiff-orientation-nonsense-*": "is told to refuse what libtiff warns of",
        "tiff-grey-12bit*": "does not read 12 bits",
        "tiff-lab-8-*": "fails on it ('bad labq format')",
        "tiff-icc-lab-8-*": "does not know it for Lab",
        "tiff-ycbcr-1x1-*": "takes YCbCr that is not subsampled for RGB",
        "tiff-old-jpeg": "is built without old JPEG",
    },
    "tifffile": {
        "tiff-palette-1-*": "gives bits as booleans",
        "tiff-no-photometric-*": "does not guess what colours are meant",
        "tiff-no-samples-per-pixel-*": "does not guess what colours are meant",
        "tiff-*lab-*": "gives Lab as it is stored",
        "tiff-ycbcr-*": "does not convert YCbCr",
    },
}


@functools.cache
def _rows(name: str) -> list[table.Row]:
    return table.rows(name)


@pytest.mark.parametrize("name", table.FORMATS)
def test_every_kind_is_right_or_refused_by_name(name: str) -> None:
    """Pixels, size and orientation are those that were written; or the error names the kind."""
    found = _rows(name)
    wrong = [row for row in found if not row.right]
    assert not wrong, f"of {len(found)} kinds:\n{table.printed(wrong)}"


@pytest.mark.parametrize("name", table.FORMATS)
def test_peers_agree_or_are_known_to_differ(name: str) -> None:
    """Where we are right, so are others, or we know why not: else the truth may be wrong."""
    odd = []
    for row in _rows(name):
        if isinstance(row.kind.truth, str):
            continue
        for peer, found in (("libvips", row.libvips), ("tifffile", row.tifffile)):
            known = any(fnmatch(row.kind.name, pattern) for pattern in DIFFER[peer])
            asked = peer == "libvips" or name == "tiff"
            if asked and not known and (found is None or found > row.kind.within):
                odd.append(row)
    assert not odd, table.printed(odd)


@pytest.mark.parametrize("peer", DIFFER)
def test_each_known_difference_is_of_a_kind_that_there_is(peer: str) -> None:
    """No entry of the table of differences is left over from a kind that is gone."""
    names = [row.kind.name for name in table.FORMATS for row in _rows(name)]
    assert not [
        pattern for pattern in DIFFER[peer] if not any(fnmatch(name, pattern) for name in names)
    ]
