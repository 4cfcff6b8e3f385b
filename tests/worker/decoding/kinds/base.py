"""One picture with known pixels, and how peers see a file: what every table of kinds is made of."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from wuwan_worker.decoding import prepare
from wuwan_worker.decoding.base import Picture
from wuwan_worker.shared import bundle

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPEC = bundle.load(bundle.find("imagenet-zh")).input
WIDTH, HEIGHT = 240, 160
PHOTOS = Path(__file__).parents[4] / "examples" / "photos"


@dataclass(frozen=True, slots=True)
class Kind:
    """One file of a kind, and what must come of it."""

    name: str
    content: bytes
    # (height, width, 3) as displayed; or a part of the message with which it is refused.
    truth: NDArray[np.uint8] | str
    within: float = 1.5  # mean absolute difference on the network's input, of 255
    flaw: bool = False  # whether the picture has one


@functools.cache
def rgb() -> NDArray[np.uint8]:
    """The picture, (160, 240, 3)."""
    with Image.open(PHOTOS / "coffee.png") as image:
        return np.asarray(image.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS))


@functools.cache
def grey() -> NDArray[np.uint8]:
    """The picture in grey, (160, 240)."""
    return np.asarray(Image.fromarray(rgb()).convert("L"))


@functools.cache
def grey_rgb() -> NDArray[np.uint8]:
    """The picture in grey, as it is displayed."""
    return np.repeat(grey()[..., None], 3, axis=2)


@functools.cache
def alpha() -> NDArray[np.uint8]:
    """An alpha channel with all values, (160, 240)."""
    across = np.linspace(0, 255, WIDTH).round().astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(across, (HEIGHT, WIDTH)))


def over_white(colours: NDArray[Any], alphas: NDArray[Any]) -> NDArray[np.uint8]:
    """Colours as they are seen where white is below."""
    part = alphas[..., None].astype(float) / 255
    found: NDArray[np.uint8] = (colours * part + 255 * (1 - part)).round().astype(np.uint8)
    return found


@functools.cache
def faded() -> NDArray[np.uint8]:
    """The picture under `alpha`, over white."""
    return over_white(rgb(), alpha())


@functools.cache
def faded_grey() -> NDArray[np.uint8]:
    """The grey picture under `alpha`, over white."""
    return over_white(grey_rgb(), alpha())


def palette(colours: int = 256) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Indices (160, 240), colours (n, 3), and what they show (160, 240, 3)."""
    image = Image.fromarray(rgb()).quantize(colours)
    table = np.array(image.getpalette(), np.uint8).reshape(-1, 3)
    table = np.vstack([table, np.zeros((colours - len(table), 3), np.uint8)])[:colours]
    indices = np.asarray(image)
    return indices, table, table[indices]


def saved(image: Image.Image | NDArray[Any], file_format: str, **options: Any) -> bytes:
    """A file by Pillow."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def turned(picture: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """A picture that is stored with this orientation, as it is displayed."""
    image = Image.fromarray(picture)
    way = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    return np.asarray(image if way is None else image.transpose(way))


def seen(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The network's input of a picture, (224, 224, 3)."""
    return _seen(picture.shape, picture.tobytes())


@functools.lru_cache(maxsize=256)
def _seen(shape: tuple[int, ...], content: bytes) -> NDArray[np.uint8]:
    image = Image.fromarray(np.frombuffer(content, np.uint8).reshape(shape))
    return prepare.prepared(Picture(image, image.size), SPEC, exact=False).pixels


def distance(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Mean absolute difference, in levels of 0..255."""
    return float(np.abs(one.astype(int) - other.astype(int)).mean())
