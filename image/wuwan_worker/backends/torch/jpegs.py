"""JPEGs in batches: decoded and scaled on a GPU (nvJPEG, by torchvision); all else as ever.

A GPU decodes whole images and scales them as the reference does (`decode(exact=True)`), but where a
JPEG has fewer colours than pixels nvJPEG repeats them and the CPU's decoder blends them;
`benchmarks/gpu.py` counts the labels that this changes. The CPU's decoder does the rest: other
formats, CMYK and grey, strips, very large images, and damaged ones, of which it says what is wrong.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, JpegImagePlugin, MpoImagePlugin  # noqa: F401  # each registers its format
from torch.nn import functional
from torchvision.io import ImageReadMode, decode_jpeg

from wuwan_worker.decoding import decode, jpeg, prepare
from wuwan_worker.decoding.decode import Decoded, ItemError, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from wuwan_worker.jobs import Job
    from wuwan_worker.shared.bundle import InputSpec

log = logging.getLogger(__name__)

# Of one image, which takes 12 bytes for each while it is scaled; and of all that are decoded in one
# go, which are there at once. nvJPEG keeps buffers for as many as it ever had, parked or not.
MAX_PIXELS = 32 * 2**20
MAX_BATCH_PIXELS = MAX_PIXELS
MAX_BYTES = 32 * 2**20  # of one file: all of a batch are in memory at once
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

    most = 32

    def __init__(self, spec: InputSpec, device: Any) -> None:
        self.least = 8
        self._spec = spec
        self._device = device

    def decode(
        self, jobs: Sequence[Job], on_cpu: Callable[[Job], Future[Decoded | Refused]]
    ) -> list[Decoded | Refused]:
        """See `BatchDecoder.decode`."""
        jpegs = {number: jpeg for number, job in enumerate(jobs) if (jpeg := _jpeg(job))}
        rest = [number for number in range(len(jobs)) if number not in jpegs]
        # Begun first: they are decoded while the GPU works.
        others = [on_cpu(jobs[number]) for number in rest]
        found: dict[int, Decoded | Refused] = {}
        for batch in _batches(jpegs):
            if squares := self._squares([jpegs[number] for number in batch]):
                found |= zip(batch, squares, strict=True)
                continue
            rest += batch
            others += [on_cpu(jobs[number]) for number in batch]
        found |= zip(rest, (other.result() for other in others), strict=True)
        return [found[number] for number in range(len(jobs))]

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
                # In order in memory before it leaves the GPU: to sort it here holds up all threads.
                pixels = squares.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        except torch.AcceleratorError:
            raise  # nothing works on this GPU any more: the worker has to go
        except RuntimeError as error:  # a file damaged in the middle, or too little GPU memory
            self._failed(str(error).strip().splitlines()[0])
            return []
        return [
            Decoded(square, *jpeg.size)
            if jpeg.orientation == 1
            else prepare.turned(Image.fromarray(square), jpeg.orientation, jpeg.size)
            for square, jpeg in zip(pixels, jpegs, strict=True)
        ]

    def _failed(self, reason: str) -> None:
        if self._device.type == "cuda":
            # What was begun before it failed still runs, on memory that is free to be used again.
            torch.cuda.current_stream(self._device).synchronize()
        if "Failed to initialize nvjpeg" in reason:  # torchvision would try again each time
            log.warning("JPEGs are decoded on the CPU: %s", reason)
            self.least = sys.maxsize
        else:
            log.info("decoded on the CPU instead: %s", reason)

    def _square(self, image: Any) -> Any:
        """(3, height, width) to (3, size, size), uint8."""
        height, width = image.shape[1:]
        resized, (top, left) = prepare.crop((height, width), self._spec)
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


def _batches(jpegs: Mapping[int, _Jpeg]) -> Iterator[list[int]]:
    """Their numbers, in groups of at most `MAX_BATCH_PIXELS`."""
    batch: list[int] = []
    room = MAX_BATCH_PIXELS
    for number, content in jpegs.items():
        pixels = content.size[0] * content.size[1]
        if pixels > room:
            yield batch
            batch, room = [], MAX_BATCH_PIXELS
        batch.append(number)
        room -= pixels
    if batch:
        yield batch


def _jpeg(job: Job) -> _Jpeg | None:
    """What a GPU may decode of it; the CPU's decoder reads all else, and says what is wrong."""
    try:
        if job.options.exact or os.fstat(job.descriptor).st_size > MAX_BYTES:
            return None
        if os.pread(job.descriptor, len(_HEAD), 0) != _HEAD:
            return None
        return _plain(decode.read(job.descriptor))
    except (OSError, ItemError):
        return None


def _plain(data: bytes) -> _Jpeg | None:
    """What a GPU may decode: a whole RGB photo of an ordinary size and shape."""
    if not data.startswith(_HEAD) or _END not in data[-_TAIL:]:
        return None
    try:
        head = jpeg.header(data)
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            width, height = image.size
            ordinary = (
                image.mode == "RGB"
                and image.info.get("adobe_transform", 1) == 1  # 0: stored as RGB, not as YCbCr
                and width * height <= MAX_PIXELS
                and max(width, height) <= MAX_RATIO * min(width, height)
            )
            return _Jpeg(data, image.size, head.orientation) if ordinary else None
    except Exception:  # the CPU's decoder says what is wrong
        return None
