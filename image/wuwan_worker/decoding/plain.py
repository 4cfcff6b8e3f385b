"""GIF and BMP: by Pillow."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from wuwan_worker.decoding.base import Picture, frame_with_content, judged, loaded
from wuwan_worker.decoding.errors import Flaw, ItemError
from wuwan_worker.shared.protocol import ErrorCode, WarningCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from wuwan_worker.decoding.base import Request

_INSIDE = {4: "a JPEG inside", 5: "a PNG inside"}
_BITFIELDS = (3, 6)  # BMP compressions that say which bits are which colour


def read_gif(data: bytes, request: Request) -> Picture:
    """See `Reader`."""
    if len(data) < 13:
        raise ItemError(ErrorCode.TRUNCATED, "the image's header is cut short or damaged")
    first = _opened(data, "GIF")
    # Indices; and for an animation's later frames colours, twice. Not the size in the header: a
    # frame that is larger than its canvas makes that larger.
    request.claim.need(first.size, 9, len(data))
    box = first.tile[0][1] if first.tile else (0, 0, *first.size)  # type: ignore[attr-defined]
    image, flaw = _loaded(lambda: _opened(data, "GIF"))
    size = image.size
    shown, lost = frame_with_content(image)
    if lost and flaw is None:
        flaw = Flaw(WarningCode.DAMAGED, f"frames cannot be read: {lost}")
    if box != (0, 0, *size) and shown is image:
        # Pillow fills what is around a small frame with any colour; a browser lets it be.
        whole = Image.new("RGBA", size)
        whole.paste(image.convert("RGBA").crop(box), box)
        shown = whole
    return Picture(shown, size, flaw=flaw)


def read_bmp(data: bytes, request: Request) -> Picture:
    """See `Reader`."""
    try:
        size = _opened(data, "BMP").size
    except OSError as error:  # Pillow's way to say what it does not read
        odd = "nsupported" in str(error)
        if odd and _has_masks(data):
            return _masked(data, request)
        if odd:
            bits, coding = struct.unpack_from("<HI", data.ljust(34, b"\0"), 28)
            name = f"BMP with {_INSIDE[coding]}" if coding in _INSIDE else f"BMP of {bits} bits"
            raise ItemError(ErrorCode.UNSUPPORTED, f"{name} is not supported") from None
        raise
    request.claim.need(size, 5, len(data))
    image, flaw = _loaded(lambda: _opened(data, "BMP"))
    return Picture(_opaque(image), image.size, flaw=flaw)


def _opaque(image: Image.Image) -> Image.Image:
    """Photoshop, and most that write 32 bits, leave the fourth byte 0: it is no alpha."""
    if image.mode == "RGBA" and not image.getchannel("A").getbbox():
        return image.convert("RGB")
    return image


def _has_masks(data: bytes) -> bool:
    bits = int.from_bytes(data[28:30], "little")
    return int.from_bytes(data[30:34], "little") in _BITFIELDS and bits in (16, 32)


def _masked(data: bytes, request: Request) -> Picture:
    """A BMP that says which bits are which colour in a way that Pillow does not know."""
    if len(data) < 70:
        raise ItemError(ErrorCode.TRUNCATED, "the image's header is cut short or damaged")
    start, header, width, height, _, bits, compression = struct.unpack_from("<IIiiHHI", data, 10)
    masks = struct.unpack_from("<4I", data, 54)
    alpha = masks[3] if header >= 56 or compression == _BITFIELDS[1] else 0
    size = (width, abs(height))
    if width <= 0 or not height:
        raise ItemError(ErrorCode.TRUNCATED, "the image's header is damaged")
    request.claim.need(size, 10, len(data))
    in_row = -(-width * bits // 32) * 4
    there = min(1.0, max(0, len(data) - start) // in_row / size[1])
    flaw = judged(there, WarningCode.TRUNCATED, "the file ends early") if there < 1 else None
    pixels = np.full((size[1], width, 4), 255, np.uint8)
    stored = np.frombuffer(data, np.uint8, int(there * size[1]) * in_row, start)
    rows = stored.reshape(-1, in_row)
    target = pixels if height < 0 else pixels[::-1]
    step = max(1, 2**20 // width)  # rows at a time: one by one would take minutes of narrow ones
    for top in range(0, len(rows), step):
        values = rows[top : top + step].view(f"<u{bits // 8}")[:, :width].astype(np.uint32)
        lines = target[top : top + step]
        for channel, mask in enumerate((*masks[:3], alpha)):
            if mask:
                low = (mask & -mask).bit_length() - 1
                part = ((values & mask) >> low).astype(np.float32)
                lines[: len(part), :, channel] = part * np.float32(
                    255 / (mask >> low)
                ) + np.float32(0.5)
            elif channel < 3:
                lines[..., channel] = 0
    return Picture(_opaque(Image.fromarray(pixels)), size, flaw=flaw)


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
