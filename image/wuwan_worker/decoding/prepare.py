"""From a picture to the square that the network sees: crop, scale, over white, turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wuwan_worker.decoding.base import Picture
    from wuwan_worker.decoding.errors import Flaw
    from wuwan_worker.shared.bundle import InputSpec

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_REDUCING_GAP = 2.0  # how many times the network's input is kept before the last, exact resizing
_BAND_PIXELS = 2**20
_SWAPS_SIDES = {5, 6, 7, 8}


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image ready for the network."""

    pixels: NDArray[np.uint8]  # (size, size, 3), RGB
    width: int  # of the original, as displayed (after EXIF orientation), in pixels
    height: int
    flaw: Flaw | None = None


def prepared(picture: Picture, spec: InputSpec, *, exact: bool) -> Decoded:
    """Crop, scale and turn a picture.

    Args:
        picture: as it is stored.
        spec: the network's input.
        exact: resize everything in one step, as the network was evaluated.
    """
    resampling = _RESAMPLING[spec.interpolation]
    if exact:
        square = _exact(picture.image, spec, resampling)
    else:
        square = _fast(picture.image, picture.size, spec, resampling)
    return turned(square, picture.orientation, picture.size, picture.flaw)


def turned(
    square: Image.Image, orientation: int, size: tuple[int, int], flaw: Flaw | None = None
) -> Decoded:
    """The network's square of an image that is stored with `size` pixels, as displayed."""
    width, height = reversed(size) if orientation in _SWAPS_SIDES else size
    return Decoded(np.asarray(_oriented(square, orientation)), width, height, flaw)


def _oriented(image: Image.Image, orientation: int) -> Image.Image:
    """The square crop is its own crop in every orientation, so turning may come last."""
    method = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    return image if method is None else image.transpose(method)


def crop(original: tuple[int, int], spec: InputSpec) -> tuple[list[int], list[int]]:
    """The reference's preparation of a picture: the size that it is resized to, and where in that
    the square begins; each in the order of `original`."""
    scale = spec.resize / min(original)
    resized = [max(spec.size, round(side * scale)) for side in original]
    return resized, [(big - spec.size) // 2 for big in resized]


def _box(size: tuple[int, int], original: tuple[int, int], spec: InputSpec) -> list[float]:
    """The crop of an image of `size` pixels that was decoded from one of `original` pixels.

    It is the reference's, whole pixels of the resized image, mapped back. Half a pixel off would
    change 2 % of the top labels.
    """
    resized, starts = crop(original, spec)
    ends = [start + spec.size for start in starts]
    return [
        edge / big * side
        for edges in (starts, ends)
        for edge, big, side in zip(edges, resized, size, strict=True)
    ]


def _fast(
    image: Image.Image, original: tuple[int, int], spec: InputSpec, resampling: Image.Resampling
) -> Image.Image:
    """What `_exact` gives, nearly: far too many pixels are averaged in blocks first."""
    left, top, right, bottom = _box(image.size, original, spec)
    size = (spec.size, spec.size)
    # RGB, RGBA and L can be scaled as they are, which leaves little to convert; a palette or CMYK
    # cannot be interpolated or would need a table each.
    if image.mode in ("RGB", "RGBA", "L") and not _keyed(image):
        box = (left, top, right, bottom)
        return _rgb(image.resize(size, resampling, box, reducing_gap=_REDUCING_GAP))
    factor = max(1, int(min(right - left, bottom - top) / spec.size / _REDUCING_GAP))
    image = _rgb_in_bands(image, factor)
    box = (left / factor, top / factor, right / factor, bottom / factor)
    return image.resize(size, resampling, box)


def _exact(image: Image.Image, spec: InputSpec, resampling: Image.Resampling) -> Image.Image:
    """Resized, then cropped; but without making the pixels that are cropped.

    The whole of a picture of 1 x 10,000 pixels would be 256 x 2,560,000 and take 2 GB.
    """
    image = _rgb_in_bands(image, 1)
    left, top, right, bottom = _box(image.size, image.size, spec)
    return image.resize((spec.size, spec.size), resampling, (left, top, right, bottom))


def _keyed(image: Image.Image) -> bool:
    return "transparency" in image.info


def _rgb_in_bands(image: Image.Image, factor: int) -> Image.Image:
    """As `_rgb`, and every side divided by `factor`; a few rows at a time.

    A palette PNG of 31 KB may have 16,000 x 16,000 pixels; all of them as RGBA, a white ground,
    and both composed would take 4 GB.
    """
    width, height = image.size
    rows = factor * max(1, _BAND_PIXELS // (width * factor))
    result = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    for top in range(0, height, rows):
        band = _rgb(image.crop((0, top, width, min(top + rows, height))))
        result.paste(band if factor == 1 else band.reduce(factor), (0, top // factor))
    return result


def _rgb(image: Image.Image) -> Image.Image:
    """As RGB, transparency over white."""
    if image.mode == "RGB" and not _keyed(image):
        return image
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or _keyed(image):
        # Pillow converts premultiplied grey to nothing but grey with alpha.
        layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        ground = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, layer).convert("RGB")
    return image.convert("RGB")
