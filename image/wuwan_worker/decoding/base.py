"""What all formats have in common: what they give, how they fail, and how damage is measured."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image

from wuwan_worker.decoding.errors import Flaw, ItemError
from wuwan_worker.shared.protocol import ErrorCode, WarningCode

if TYPE_CHECKING:
    from wuwan_worker.decoding.memory import Claim
    from wuwan_worker.shared.bundle import InputSpec

# Less of the picture than this is no picture: "less than half of the picture there".
LEAST_THERE = 0.5
# What rows that were never decoded look like. A grey that hardly any picture has in whole rows.
_FILLS: dict[str, float | tuple[float, ...]] = {
    "L": 127,
    "P": 0,
    "RGB": (127, 128, 129),
    "RGBA": (127, 128, 129, 255),
    "RGBX": (127, 128, 129, 255),
    "LA": (127, 255),
    "CMYK": (128, 127, 126, 0),
    "YCbCr": (127, 128, 129),
    "I;16": 32639,
    "I": 32639,
}
_SAMPLE = 64  # pixels of a row by which it is told whether it was decoded
_FRAMES_TRIED = 8  # of an animation, for one that shows something
# More than an orientation needs, far less than what Pillow takes a minute to parse.
_MAX_EXIF = 16 * 1024 * 1024
_ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded image as it is stored: not turned yet, and a JPEG perhaps at reduced scale."""

    image: Image.Image  # loaded, 8 bits a channel at the most
    size: tuple[int, int]  # width and height at full scale, pixels
    orientation: int = 1  # as EXIF counts, 1 to 8
    flaw: Flaw | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """How a picture is wanted."""

    spec: InputSpec
    exact: bool  # at full scale
    claim: Claim  # on the memory that decoders share


# What Pillow's decoders raise of damaged pixels. Nothing may catch it in the name of metadata.
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error)

Reader: TypeAlias = Callable[[bytes, Request], Picture]


def judged(there: float, code: WarningCode, message: str) -> Flaw:
    """What becomes of a picture of which only a part is there: one rule for all formats.

    Args:
        there: the part of the picture that was decoded, 0 to 1.
        code: for the warning.
        message: what is wrong with it, without the part that is there.

    Raises:
        ItemError: `truncated`, if that is less than half.
    """
    if there < LEAST_THERE:
        raise ItemError(ErrorCode.TRUNCATED, f"{message}: only {there:.0%} of the picture is there")
    part = "" if there >= 1 else f": {min(there, 0.99):.0%} of the picture is there"
    return Flaw(code, message + part)


def loaded(open_: Callable[[], Image.Image]) -> tuple[Image.Image, float, str]:
    """An image with its pixels; of a damaged one as much as there is, over a grey ground.

    Args:
        open_: gives the image, not loaded.

    Returns:
        The image, the part that was decoded, and the decoder's complaint, "" if it had none.
    """
    image = open_()
    fill = _FILLS.get(image.mode, 0)
    # Pillow decodes into the memory that an image has already. So what was not decoded shows. A
    # GIF makes its own ground, of the first colour.
    if image.format != "GIF":
        image.im = Image.new(image.mode, image.size, fill).im
    complaint = ""
    try:
        image.load()
    except DAMAGE as error:
        complaint = said(error)
        image.tile = []  # type: ignore[attr-defined]  # what is there is all that there will be
    return image, 1 - _rows_of(image, fill) if complaint else 1.0, complaint


def may_be_short(image: Image.Image) -> bool:
    """Whether an image from `loaded` may have ended early without its decoder having said so.

    The last two rows tell, because the last pass of an interlaced picture has every other row.
    """
    width, height = image.size
    last = image.crop((0, max(0, height - 2), width, height))
    return _rows_of(last, _FILLS.get(image.mode, 0)) > 0


def _rows_of(image: Image.Image, fill: float | tuple[float, ...]) -> float:
    """The part of an image's rows that are of that colour, by a sample of their pixels."""
    sample = image.resize((min(image.width, _SAMPLE), image.height), Image.Resampling.NEAREST)
    pixels = np.asarray(sample)
    same = pixels == np.asarray(fill, pixels.dtype)
    return float(same.reshape(len(pixels), -1).all(axis=1).mean())


def frame_with_content(image: Image.Image) -> tuple[Image.Image, str]:
    """The first frame of an animation that is not of one colour, among its first few.

    Many begin with an empty one. An image without other frames stays as it is.

    Returns:
        The frame, and what the decoder said of frames that it could not read, or "".
    """
    try:
        # Not how many there are: to count a GIF's is to read it all, in a loop in Python.
        if not getattr(image, "is_animated", False) or not uniform(image):
            return image, ""
    except DAMAGE as error:  # it looks for a second one
        return image, said(error) if uniform(image) else ""
    first = image.copy()
    for number in range(1, _FRAMES_TRIED):
        try:
            image.seek(number)
        except EOFError:
            break
        except DAMAGE as error:
            return first, said(error)
        try:
            if image.size != first.size:  # memory was asked for by the first one's
                return first, "a later frame has another size"
            image.load()
        except DAMAGE as error:
            return first, said(error)  # a damaged animation still has its first frame
        if not uniform(image):
            return image.copy(), ""
    return first, ""


def uniform(image: Image.Image) -> bool:
    """Whether a picture is of one colour, or of none at all."""
    if image.mode in ("RGBA", "LA") and not image.getchannel("A").getbbox():
        return True
    extrema = image.getextrema()
    bands = extrema if isinstance(extrema[0], tuple) else (extrema,)
    return all(low == high for low, high in bands)


def exif_orientation(exif: bytes | None) -> int:
    """The orientation in EXIF data; 1 where there is none, or it makes no sense.

    The one rule for JPEG, PNG and WebP, which is that of browsers: EXIF alone counts. What XMP
    says is ignored. TIFF has it as a tag of its own, HEIC and AVIF as a property of the picture.
    """
    if not exif or len(exif) > _MAX_EXIF:
        return 1
    try:
        content = Image.Exif()
        content.load(exif)
        value = content.get(_ORIENTATION, 1)
    except Exception:  # damaged metadata must not cost the photo its labels
        return 1
    return value if value in range(1, 9) else 1


def said(error: Exception) -> str:
    """What a decoder said of damage, as one sentence's end."""
    return str(error).strip().rstrip(".") or type(error).__name__
