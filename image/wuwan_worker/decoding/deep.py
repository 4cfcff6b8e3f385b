"""Values of more than 8 bits as the 8 that a picture is shown with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BAND = 2**20  # values that are converted at a time: as floats they take many times the memory
_SAMPLE = 2**20  # values that the range is judged by, at the most
# Of the values: one hot pixel, an infinity, a gap of scanner noise must not blacken a photo.
_PERCENTILES = (0.5, 99.5)
_CEILINGS = (1.0, 255.0, 65535.0)


def levels(values: NDArray[np.generic]) -> tuple[float, float]:
    """The values that stand for black and white, where the file does not say.

    Unsigned 16 bits have their whole range. Floats and wider integers are in one of the usual
    ranges, 0 to 1, 255, 65,535 or all, which nearly all of their finite values tell; those that
    reach far below 0 are stretched.
    """
    if values.dtype == np.uint16:
        return 0.0, 65535.0
    sample = values.reshape(-1)[:: max(1, values.size // _SAMPLE)].astype(np.float64)
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return 0.0, 1.0
    low, high = np.percentile(sample, _PERCENTILES)
    if low < -0.05 * max(high, -low):
        return float(low), float(max(high, low + 1e-9))
    ceilings = list(_CEILINGS)
    if values.dtype.kind in "iu":
        largest = float(np.iinfo(str(values.dtype)).max)
        ceilings = [*(ceiling for ceiling in _CEILINGS[1:] if ceiling < largest), largest]
    white = next((ceiling for ceiling in ceilings if high <= ceiling * 1.001), float(high))
    return 0.0, white


def eight_bits(values: NDArray[np.generic], black: float, white: float) -> NDArray[np.uint8]:
    """The same shape, `black` as 0 and `white` as 255; black may be the larger one.

    What is not a number is black.
    """
    rows = values.reshape(len(values), -1)
    found = np.empty(rows.shape, np.uint8)
    step = max(1, _BAND // max(1, rows.shape[1]))
    scale = 255.0 / (white - black)
    for top in range(0, len(rows), step):
        band = rows[top : top + step].astype(np.float64)
        band = np.nan_to_num((band - black) * scale, nan=0.0, posinf=255.0, neginf=0.0)
        found[top : top + step] = np.clip(band + 0.5, 0, 255).astype(np.uint8)
    return found.reshape(values.shape)


def grey(image: Image.Image) -> Image.Image:
    """A picture of 16 bits, as PNG and HEIC have them, in 8; with its transparent value, if it has
    one, as alpha."""
    values = np.asarray(image)
    found = Image.fromarray(eight_bits(values, 0.0, 65535.0))
    key = image.info.get("transparency")
    if isinstance(key, int):
        found.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return found
