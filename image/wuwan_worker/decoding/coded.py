"""Damage that can be told from coded data alone, where decoders make up something and keep silent.

libwebp, dav1d and libde265 decode whatever bits they get: a photo of which the second half is
zeros, as a download that was broken off or a bad disk leaves it, has a second half of smears.
"""

from __future__ import annotations

_HOLE = bytes(1024)
# Arithmetic coding may make zeros of a picture in which nothing happens. That is far below this.
_LEAST_DENSITY = 0.01  # bytes a pixel
# HEVC data have no three zeros in a row (ITU-T H.265, 7.4.2): this many are no slip of an encoder.
_NO_HEVC = bytes(16)


def sound(content: bytes, pixels: int) -> float:
    """The part of entropy-coded data in front of a hole, 0 to 1; 1 where there is none."""
    if len(content) < max(len(_HOLE), _LEAST_DENSITY * pixels):
        return 1.0
    hole = content.find(_HOLE)
    return 1.0 if hole < 0 else hole / len(content)


def sound_hevc(content: bytes, prefix: int) -> float:
    """The part of an HEVC picture in front of the first place that cannot be right, 0 to 1.

    Args:
        content: NAL units, each after its length.
        prefix: bytes of such a length.
    """
    place = 0
    while place < len(content):
        length = int.from_bytes(content[place : place + prefix], "big")
        end = place + prefix + length
        if length < 2 or end > len(content):
            return place / len(content)
        hole = content.find(_NO_HEVC, place + prefix, end)
        if hole >= 0:
            return hole / len(content)
        place = end
    return 1.0
