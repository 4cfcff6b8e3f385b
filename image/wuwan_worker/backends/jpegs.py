"""JPEGs in batches: decoded and scaled on a GPU (nvJPEG, by torchvision); all else as ever.

A GPU decodes whole images and scales them as the reference does, so its squares are those of
`decode(exact=True)` but for rounding. The CPU's decoder does the rest: other formats, CMYK and
grey, strips, very large images, and damaged ones, of which it says what is wrong.
"""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch.nn import functional
from torchvision.io import ImageReadMode, decode_jpeg

from wuwan_worker import decode
from wuwan_worker.decode import Decoded, ItemError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wuwan_worker.bundle import InputSpec
    from wuwan_worker.jobs import Job

log = logging.getLogger(__name__)

# All pixels of a batch, which are there at once, 3 bytes each; and those of one image, which take
# 12 bytes more each while it is scaled.
MAX_BATCH_PIXELS = 128 * 2**20
MAX_PIXELS = 32 * 2**20
MAX_RATIO = 4  # of the sides: the whole image is scaled, and most of a long strip for nothing
_HEAD, _END = b"\xff\xd8\xff", b"\xff\xd9"
_TAIL = 64  # bytes that some cameras put after the end


@dataclass(frozen=True, slots=True)
class _Jpeg:
    data: bytes
    size: tuple[int, int]  # width and height as stored, pixels
    orientation: int


class JpegDecoder:
    """See `BatchDecoder`."""

    least = 8
    most = 32

    def __init__(self, spec: InputSpec, device: Any) -> None:
        self._spec = spec
        self._device = device

    def decode(self, jobs: Sequence[Job]) -> list[Decoded | ItemError]:
        """See `BatchDecoder.decode`."""
        files: list[bytes | ItemError] = [_read(job) for job in jobs]
        found: dict[int, Decoded | ItemError] = {}
        batch: dict[int, _Jpeg] = {}
        room = MAX_BATCH_PIXELS
        for number, (job, data) in enumerate(zip(jobs, files, strict=True)):
            if isinstance(data, ItemError):
                found[number] = data
                continue
            jpeg = None if job.options.exact else _plain(data)
            if jpeg is not None and (room := room - jpeg.size[0] * jpeg.size[1]) >= 0:
                batch[number] = jpeg
        if batch:
            found |= zip(batch, self._squares(list(batch.values())), strict=False)
        for number, data in enumerate(files):
            if number not in found and isinstance(data, bytes):
                found[number] = self._on_cpu(data, exact=jobs[number].options.exact)
        return [found[number] for number in range(len(jobs))]

    def _on_cpu(self, data: bytes, *, exact: bool) -> Decoded | ItemError:
        try:
            return decode.from_bytes(data, self._spec, exact=exact)
        except ItemError as error:
            return error

    def _squares(self, jpegs: Sequence[_Jpeg]) -> list[Decoded]:
        """One for each, or none at all."""
        try:
            with torch.inference_mode():
                sources = [
                    torch.frombuffer(bytearray(jpeg.data), dtype=torch.uint8) for jpeg in jpegs
                ]
                images = decode_jpeg(sources, mode=ImageReadMode.RGB, device=self._device)
                # One by one, each let go of when it is done: they differ in size.
                squares = torch.stack([self._square(images.pop(0)) for _ in jpegs])
                pixels = squares.permute(0, 2, 3, 1).cpu().numpy()
        except RuntimeError as error:  # a file damaged in the middle, or too little GPU memory
            log.info("decoded on the CPU instead: %s", str(error).strip().splitlines()[0])
            return []
        return [
            decode.turned(Image.fromarray(square), jpeg.orientation, jpeg.size)
            for square, jpeg in zip(pixels, jpegs, strict=True)
        ]

    def _square(self, image: Any) -> Any:
        """(3, height, width) to (3, size, size), uint8."""
        height, width = image.shape[1:]
        resized, (top, left) = decode.crop((height, width), self._spec)
        scaled = functional.interpolate(
            image[None].float(),
            size=resized,
            mode=self._spec.interpolation,
            antialias=True,
            align_corners=False,
        )[0]
        size = self._spec.size
        square = scaled[:, top : top + size, left : left + size]
        return square.clamp(0, 255).round().to(torch.uint8)


def _read(job: Job) -> bytes | ItemError:
    try:
        return decode.read(job.descriptor)
    except ItemError as error:
        return error


def _plain(data: bytes) -> _Jpeg | None:
    """What a GPU may decode: a whole RGB photo of an ordinary size and shape."""
    if not data.startswith(_HEAD) or _END not in data[-_TAIL:]:
        return None
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            width, height = image.size
            ordinary = (
                image.mode == "RGB"
                and image.info.get("adobe_transform", 1) == 1  # 0: stored as RGB, not as YCbCr
                and width * height <= MAX_PIXELS
                and max(width, height) <= MAX_RATIO * min(width, height)
            )
            return _Jpeg(data, image.size, decode.orientation_of(image)) if ordinary else None
    except Exception:  # the CPU's decoder says what is wrong
        return None
