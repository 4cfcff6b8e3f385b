"""GIF and BMP: by Pillow."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError

from wuwan_worker.decoding.base import (
    Flaw,
    ItemError,
    Picture,
    judged,
    loaded,
    with_content,
)
from wuwan_worker.protocol import ErrorCode, WarningCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from wuwan_worker.decoding.base import Request

_BITFIELDS = (3, 6)  # BMP compressions that say which bits are which colour


def read_gif(data: bytes, request: Request) -> Picture:
    """See `Reader`."""
    if len(data) < 13:
        raise ItemError(ErrorCode.TRUNCATED, "the image's header is cut short or damaged")
    # Indices; and for an animation's later frames colours, twice.
    request.claim.need(struct.unpack_from("<2H", data, 6), 9, len(data))
    image, flaw = _loaded(lambda: _opened(data, "GIF"))
    return Picture(with_content(image), image.size, flaw=flaw)


def read_bmp(data: bytes, request: Request) -> Picture:
    """See `Reader`."""
    try:
        size = _opened(data, "BMP").size
    except OSError as error:  # Pillow's way to say what it does not read
        if "nsupported" in str(error):
            raise ItemError(ErrorCode.UNSUPPORTED, _kind_of_bmp(data)) from None
        raise
    request.claim.need(size, 5, len(data))
    image, flaw = _loaded(lambda: _opened(data, "BMP"))
    if image.mode == "RGBA" and not image.getchannel("A").getbbox():
        # Photoshop, and most that write 32 bits, leave the fourth byte 0: it is no alpha.
        image = image.convert("RGB")
    return Picture(image, image.size, flaw=flaw)


def _opened(data: bytes, name: str) -> Image.Image:
    """The image, not loaded.

    Raises:
        ItemError: `truncated`, if its header makes no sense.
    """
    try:
        return Image.open(io.BytesIO(data), formats=(name,))
    except (UnidentifiedImageError, SyntaxError, ValueError, struct.error):
        raise ItemError(ErrorCode.TRUNCATED, "the image's header is cut short or damaged") from None


def _loaded(open_: Callable[[], Image.Image]) -> tuple[Image.Image, Flaw | None]:
    image, there, complaint = loaded(open_)
    return image, judged(there, WarningCode.TRUNCATED, complaint) if complaint else None


def _kind_of_bmp(data: bytes) -> str:
    bits = int.from_bytes(data[28:30], "little")
    odd = int.from_bytes(data[30:34], "little") in _BITFIELDS
    layout = " with this layout of bits" if odd else ""
    return f"BMP of {bits} bits{layout} is not supported"
