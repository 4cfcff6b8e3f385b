"""From an open descriptor to the pixels that the network sees.

Every image here may be hostile: formats are an explicit allow-list, what a picture will take is
known before any pixel is decoded, and whatever goes wrong becomes an `ItemError` for this image
alone. What was missing or repaired in a picture that is labelled all the same is its `flaw`.
"""

from __future__ import annotations

import os
import threading
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import (  # noqa: F401  # each plugin registers its format
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    PngImagePlugin,
    WebPImagePlugin,
)

from wuwan_worker.decoding import heif, jpeg, memory, plain, png, tiff, webp
from wuwan_worker.decoding.base import Request
from wuwan_worker.decoding.errors import Flaw, ItemError
from wuwan_worker.decoding.identify import identify
from wuwan_worker.decoding.patience import Limits, Patience
from wuwan_worker.decoding.prepare import Decoded, prepared
from wuwan_worker.shared.protocol import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from wuwan_worker.decoding.base import Reader
    from wuwan_worker.shared.bundle import InputSpec

__all__ = [
    "MAX_BYTES",
    "READERS",
    "Decoded",
    "Flaw",
    "ItemError",
    "Refused",
    "attempt",
    "decode",
    "from_bytes",
    "read",
]

# PS and EPS run a program (Ghostscript), and dozens of rare formats have rarely tested decoders.
READERS: Mapping[str, Reader] = {
    "jpeg": jpeg.read,
    "png": png.read,
    "webp": webp.read,
    "gif": plain.read_gif,
    "bmp": plain.read_bmp,
    "tiff": tiff.read,
    "heif": heif.read,
}
MAX_BYTES = 512 * 1024 * 1024
# Files over this are read and decoded one at a time: their bytes are in memory before anything is
# known of their pixels.
LARGE_BYTES = 32 * 1024 * 1024

Image.MAX_IMAGE_PIXELS = None  # the budget of bytes is stricter, and says so in our words
ImageFile.LOAD_TRUNCATED_IMAGES = False
# Pillow warns of odd metadata; a library's warning is no news to the person who tags photos.
warnings.filterwarnings("ignore", module=r"PIL\.")

_large = threading.Lock()


@dataclass(frozen=True, slots=True)
class Refused:
    """Why an image has no labels, as a value.

    An exception holds the frames that it went through, and those the file and its pixels: kept
    until the answer is sent it would be kept until Python next looks for cycles.
    """

    code: ErrorCode
    message: str


def attempt(
    descriptor: int, spec: InputSpec, *, exact: bool = False, patience: Patience | None = None
) -> Decoded | Refused:
    """As `decode`, and what is wrong with the image as a value."""
    try:
        return decode(descriptor, spec, exact=exact, patience=patience)
    except ItemError as error:
        return Refused(error.code, str(error))


def decode(
    descriptor: int, spec: InputSpec, *, exact: bool = False, patience: Patience | None = None
) -> Decoded:
    """Read, decode, orient, crop and scale one image. Does not close the descriptor.

    Args:
        descriptor: an open file; its offset does not matter.
        spec: the network's input.
        exact: the reference way (full decode, then resize, then crop) instead of the fast one
            (reduced-scale JPEG decode, then crop and resize in one step).
        patience: told where the decoder is, for who looks at the clock.

    Raises:
        ItemError: whatever is wrong with the image.
    """
    patience = patience or Patience(Limits())
    if (size := _size(descriptor)) <= LARGE_BYTES:
        patience.reading(size)
        return from_bytes(read(descriptor), spec, exact=exact, patience=patience)
    with _its_turn(patience):
        patience.reading(size)
        return from_bytes(read(descriptor), spec, exact=exact, patience=patience)


@contextmanager
def _its_turn(patience: Patience) -> Iterator[None]:
    with patience.waiting():
        _large.acquire()
    try:
        yield
    finally:
        _large.release()


def from_bytes(
    data: bytes, spec: InputSpec, *, exact: bool = False, patience: Patience | None = None
) -> Decoded:
    """As `decode`, from what `read` gave."""
    patience = patience or Patience(Limits())
    patience.decoding()
    try:
        reader = READERS[identify(data)]
        with memory.budget().claim(patience) as claim:
            picture = reader(data, Request(spec, exact, claim))
            return prepared(picture, spec, exact=exact)
    except ItemError:
        raise
    except MemoryError:
        raise ItemError(ErrorCode.TOO_LARGE, "not enough memory to decode the image") from None
    except Exception as error:  # decoders raise whatever their parsers stumble on
        text = str(error).strip() or type(error).__name__
        raise ItemError(ErrorCode.TRUNCATED, f"damaged image data: {text}") from None


def _size(descriptor: int) -> int:
    """A file's size, bytes.

    Raises:
        ItemError: if it cannot be told, or is over `MAX_BYTES`.
    """
    try:
        size = os.fstat(descriptor).st_size
    except OSError as error:
        raise ItemError(ErrorCode.UNREADABLE, error.strerror or str(error)) from None
    if size > MAX_BYTES:
        raise ItemError(ErrorCode.TOO_LARGE, f"{size:,} bytes; the limit is {MAX_BYTES:,} bytes")
    return size


def read(descriptor: int) -> bytes:
    """The whole file.

    Raises:
        ItemError: if it cannot be read, is empty, or has more than `MAX_BYTES`.
    """
    # Not mmap: a file that is cut while it is mapped kills the process (SIGBUS).
    size = _size(descriptor)
    chunks, offset = [], 0
    try:
        while chunk := os.pread(descriptor, size + 1 - offset, offset):
            chunks.append(chunk)
            offset += len(chunk)
            if offset > size:  # it grows while we read: what was there at the start is enough
                break
    except OSError as error:
        raise ItemError(ErrorCode.UNREADABLE, error.strerror or str(error)) from None
    if not offset:
        raise ItemError(ErrorCode.NOT_AN_IMAGE, "the file is empty")
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
