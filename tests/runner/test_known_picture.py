"""The picture that every worker can label."""

from __future__ import annotations

import io
import os

from PIL import Image

from wuwan_runner import known_picture


def test_it_is_a_picture() -> None:
    """A whole PNG with more than one shade, as any other reader sees it."""
    with Image.open(io.BytesIO(known_picture.picture())) as image:
        image.verify()
    with Image.open(io.BytesIO(known_picture.picture())) as image:
        assert image.size == (64, 64)
        low, high = image.getextrema()
        assert low < high


def test_a_descriptor_can_be_read_as_often_as_it_is_wanted() -> None:
    """Each is new, and holds all of it."""
    first, second = known_picture.descriptor(), known_picture.descriptor()
    try:
        assert first != second
        for descriptor in (first, second):
            assert os.pread(descriptor, 10_000, 0) == known_picture.picture()
    finally:
        os.close(first)
        os.close(second)
