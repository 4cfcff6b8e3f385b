"""What other readers see: tifffile and libvips."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pyvips
import tifffile

from tests.worker.decoding.kinds.base import over_white, turned

if TYPE_CHECKING:
    from numpy.typing import NDArray


def by_libvips(content: bytes) -> NDArray[np.uint8]:
    """As libvips displays a file: turned, in sRGB, over white.

    Raises:
        pyvips.Error: of what it cannot read, or has to warn of.
    """
    image = pyvips.Image.new_from_buffer(content, "", fail_on="warning").autorot()
    if image.interpretation not in ("b-w", "grey16", "rgb16", "srgb"):
        image = image.colourspace("srgb")
    deep = image.interpretation in ("grey16", "rgb16") or image.format == "ushort"
    if image.hasalpha():
        top = 65535 if deep else 255
        image = image.flatten(background=top, max_alpha=top)
    if deep:
        image = image.cast("ushort") >> 8
    pixels = image.cast("uchar").numpy()
    pixels = pixels.reshape(image.height, image.width, -1)[..., :3]
    return np.ascontiguousarray(np.repeat(pixels, 3, axis=2) if pixels.shape[2] < 3 else pixels)


def by_tifffile(content: bytes) -> NDArray[np.uint8]:
    """The main page's values as tifffile reads them, shown by its tags.

    Raises:
        Exception: of what it cannot read.
    """
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        pages = [*file.pages, *(lower for one in file.pages for lower in one.pages or ())]
        page: Any = next((one for one in pages if not one.is_reduced and not one.is_mask), pages[0])
        values = page.asarray()
        photometric = page.photometric.name
        if values.ndim == 3 and page.planarconfig == 2:
            values = np.moveaxis(values, 0, 2)
        if photometric == "PALETTE":
            table = page.colormap
            shown = table[:, values].transpose(1, 2, 0)
            return (shown // (257 if table.max() > 255 else 1)).astype(np.uint8)
        values = _eight_bits(values, page.bitspersample)
        if photometric == "MINISWHITE":
            values = 255 - values
        if photometric == "SEPARATED":
            inks = 255 - values[..., :4].astype(int)
            shown = (inks[..., :3] * inks[..., 3:] // 255).astype(np.uint8)
        else:
            shown = _coloured(values, photometric, tuple(map(int, page.extrasamples)))
        tag = page.tags.get(274)
        return turned(shown, int(tag.value) if tag and tag.value in range(1, 9) else 1)


def _coloured(values: NDArray[Any], photometric: str, extra: tuple[int, ...]) -> NDArray[np.uint8]:
    if values.ndim == 2:
        values = values[..., None]
    colours = values[..., :3] if photometric in ("RGB", "YCBCR") else values[..., :1]
    colours = np.repeat(colours, 3 // colours.shape[2], axis=2)
    for number, what in enumerate(extra):
        band = values[..., number - len(extra)]
        if what == 2:
            return over_white(colours, band)
        if what == 1:
            return np.clip(colours + (255 - band[..., None].astype(int)), 0, 255).astype(np.uint8)
    return colours


def _eight_bits(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    if values.dtype.kind == "f":
        finite = values[np.isfinite(values)]
        top = next(top for top in (1.02, 260, 65535) if finite.max() <= top)
        top = {1.02: 1, 260: 255}.get(top, top)
        return np.nan_to_num(np.clip(values * (255 / top), 0, 255), nan=0).round().astype(np.uint8)
    if values.dtype.kind == "i":
        bits -= 1
    if values.max() < 256 <= 2 ** (bits - 1):
        return values.astype(np.uint8)
    if values.max() < 65536 <= 2 ** (bits - 1):
        bits = 16
    return (values.astype(float) * (255 / (2**bits - 1))).round().clip(0, 255).astype(np.uint8)
