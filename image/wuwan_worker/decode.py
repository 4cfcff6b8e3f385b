"""From an open descriptor to the pixels that the network sees.

Every image here may be hostile: formats are an explicit allow-list, sizes are checked before any
pixel is decoded, and whatever goes wrong becomes an `ItemError` for this image alone.
"""

from __future__ import annotations

import functools
import io
import os
import threading
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import (  # noqa: F401  # each plugin registers its format
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from wuwan_worker.protocol import ErrorCode

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wuwan_worker.bundle import InputSpec

# An MPO (several JPEGs in one, as some phones write) opens as a JPEG does.
# PS and EPS run a program (Ghostscript), and dozens of rare formats have rarely tested decoders.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
HEIF_FORMATS = ("HEIF", "AVIF")
# The largest phone sensors give 200 megapixels; 20,000 x 20,000 is over this.
MAX_PIXELS = 2**28
MAX_BYTES = 512 * 1024 * 1024
# Images over this are decoded one at a time, so that several at once do not add up to more than
# the container's memory limit.
LARGE_PIXELS = 32 * 1024 * 1024

# What other formats begin with, to say "unsupported" rather than "not an image".
_OTHER_FORMATS = (
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"%PDF", "PDF"),
    (b"8BPS", "Photoshop"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"<svg", "SVG"),
    (b"gimp xcf", "GIMP"),
    (b"\x00\x00\x01\x00", "ICO"),
    (b"DDS ", "DDS"),
    (b"FUJIFILMCCD-RAW", "Fujifilm RAW"),
)
# What the formats of the allow-list begin with, to say "truncated".
_KNOWN_HEADS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"RIFF", b"II*\x00", b"MM\x00*")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_REDUCING_GAP = 2.0  # how many times the network's input is kept before the last, exact resizing
_BAND_PIXELS = 2**20
_EXIF_ORIENTATION = 0x0112
_SWAPS_SIDES = {5, 6, 7, 8}

Image.MAX_IMAGE_PIXELS = None  # `_check_size` is stricter and says so in our words
ImageFile.LOAD_TRUNCATED_IMAGES = False
# Pillow warns of odd metadata; a library's warning is no news to the person who tags photos.
warnings.filterwarnings("ignore", module=r"PIL\.")

_large = threading.Lock()


class ItemError(Exception):
    """One image cannot be labelled; `code` and the message go into its record."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image ready for the network."""

    pixels: NDArray[np.uint8]  # (size, size, 3), RGB
    width: int  # of the original, as displayed (after EXIF orientation), in pixels
    height: int


def decode(descriptor: int, spec: InputSpec, *, exact: bool = False) -> Decoded:
    """Read, decode, orient, crop and scale one image. Does not close the descriptor.

    Args:
        descriptor: an open file; its offset does not matter.
        spec: the network's input.
        exact: the reference way (full decode, then resize, then crop) instead of the fast one
            (reduced-scale JPEG decode, then crop and resize in one step).

    Raises:
        ItemError: whatever is wrong with the image.
    """
    return from_bytes(read(descriptor), spec, exact=exact)


def from_bytes(data: bytes, spec: InputSpec, *, exact: bool = False) -> Decoded:
    """As `decode`, from what `read` gave."""
    try:
        with Image.open(io.BytesIO(data), formats=_formats(data)) as image:
            if image.width * image.height > LARGE_PIXELS:
                with _large:
                    return _prepare(image, spec, exact)
            return _prepare(image, spec, exact)
    except ItemError:
        raise
    except UnidentifiedImageError:
        raise _unidentified(data) from None
    except MemoryError:
        raise ItemError(ErrorCode.TOO_LARGE, "not enough memory to decode the image") from None
    except Exception as error:  # Pillow's decoders raise whatever their parsers stumble on
        raise ItemError(ErrorCode.TRUNCATED, _reason(error)) from None


def _formats(data: bytes) -> tuple[str, ...]:
    """Those that `data` may be in."""
    if data[4:8] == b"ftyp":
        _register_heif()
        return HEIF_FORMATS
    return FORMATS


@functools.cache
def _register_heif() -> None:
    """Load the decoders of HEIC and AVIF: 30 ms, which most starts need not spend."""
    import pillow_heif
    from PIL import AvifImagePlugin  # noqa: F401  # registers its format

    pillow_heif.register_heif_opener(thumbnails=False)


def read(descriptor: int) -> bytes:
    """The whole file.

    Raises:
        ItemError: if it cannot be read, is empty, or has more than `MAX_BYTES`.
    """
    # Not mmap: a file that is cut while it is mapped kills the process (SIGBUS).
    try:
        size = os.fstat(descriptor).st_size
        if size > MAX_BYTES:
            raise ItemError(
                ErrorCode.TOO_LARGE, f"{size:,} bytes; the limit is {MAX_BYTES:,} bytes"
            )
        chunks, offset = [], 0
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


def _prepare(image: Image.Image, spec: InputSpec, exact: bool) -> Decoded:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ItemError(
            ErrorCode.TOO_LARGE,
            f"{width} x {height} pixels; the limit is {MAX_PIXELS // 10**6} megapixels",
        )
    orientation = orientation_of(image)
    resampling = _RESAMPLING[spec.interpolation]
    if exact:
        square = _exact(image, spec, resampling)
    else:
        # The decoder may scale by 1/2, 1/4 or 1/8 as long as the shorter side keeps `resize`
        # pixels: libjpeg then skips most of the inverse DCT.
        scale = spec.resize / min(width, height)
        image.draft("RGB", (int(width * scale), int(height * scale)))
        square = _fast(image, (width, height), spec, resampling)
    return turned(square, orientation, (width, height))


def turned(square: Image.Image, orientation: int, size: tuple[int, int]) -> Decoded:
    """The network's square of an image that is stored with `size` pixels, as displayed."""
    width, height = reversed(size) if orientation in _SWAPS_SIDES else size
    return Decoded(np.asarray(_oriented(square, orientation)), width, height)


def orientation_of(image: Image.Image) -> int:
    """How an image is to be turned, 1 to 8, as EXIF counts."""
    # pillow-heif has applied the orientation and says so by having removed it from the EXIF data.
    # Pillow applies a TIFF's when it loads it, and gives its size as displayed from the start.
    if image.format == "TIFF" or ("exif" not in image.info and image.format not in ("PNG", "WEBP")):
        return 1
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # damaged metadata must not cost the photo its labels
        return 1
    return value if value in range(1, 9) else 1


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
    # RGB, RGBA and L can be scaled as they are, which leaves little to convert; a palette, 16 bits
    # or CMYK cannot be interpolated or would need a table each.
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
    image.load()
    white = _white(image)
    width, height = image.size
    rows = factor * max(1, _BAND_PIXELS // (width * factor))
    result = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    for top in range(0, height, rows):
        band = _rgb(image.crop((0, top, width, min(top + rows, height))), white)
        result.paste(band if factor == 1 else band.reduce(factor), (0, top // factor))
    return result


def _rgb(image: Image.Image, white: float = 255.0) -> Image.Image:
    """As RGB, transparency over white, 16 bits and floats scaled to 8 bits."""
    if image.mode == "RGB" and not _keyed(image):
        return image
    if image.mode.startswith(("I", "F")):
        # Pillow's own conversion clips at 255, which makes nearly everything white.
        values = np.nan_to_num(np.asarray(image).astype(np.float32))
        grey = np.clip(values * (255.0 / white), 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or _keyed(image):
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, layer).convert("RGB")
    return image.convert("RGB")


def _white(image: Image.Image) -> float:
    """The value that stands for white. 32-bit and float greyscale has no fixed one."""
    if image.mode not in ("I", "F"):
        return 65535.0 if image.mode.startswith("I") else 255.0
    brightest = np.max(image.getextrema())
    return next((top for top in (1.0, 255.0) if brightest <= top), 65535.0)


def _unidentified(data: bytes) -> ItemError:
    head = data[:64].lstrip()
    if head.startswith(b"<?xml") and b"<svg" in data[:1024]:
        return ItemError(ErrorCode.UNSUPPORTED, "SVG is not supported")
    for magic, name in _OTHER_FORMATS:
        if head.startswith(magic):
            return ItemError(ErrorCode.UNSUPPORTED, f"{name} is not supported")
    riff_of_other_kind = head.startswith(b"RIFF") and not b"WEBP".startswith(head[8:12])
    known = head.startswith(_KNOWN_HEADS) or (head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS)
    if known and not riff_of_other_kind:
        return ItemError(ErrorCode.TRUNCATED, "the image's header is cut short or damaged")
    return ItemError(ErrorCode.NOT_AN_IMAGE, "not an image in a known format")


def _reason(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text if "truncated" in text else f"damaged image data: {text}"
