"""JPEGs in batches, as on a GPU but on the CPU. Skipped without torch and torchvision."""

from __future__ import annotations

import io
import os
import struct
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("torchvision", reason="torchvision is not installed")

from wuwan_worker.backends.torch import jpegs  # noqa: E402
from wuwan_worker.backends.torch.jpegs import JpegDecoder  # noqa: E402
from wuwan_worker.decoding import decode  # noqa: E402
from wuwan_worker.decoding.decode import Decoded, Refused  # noqa: E402
from wuwan_worker.jobs import Job, Options  # noqa: E402
from wuwan_worker.shared import bundle  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    Files = Callable[[bytes], int]

SPEC = bundle.load(bundle.find("imagenet-zh")).input
CPU = torch.device("cpu")


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that were decoded as such."""
    found: list[int] = []

    def spy(data: list[Any], **options: Any) -> Any:
        found.append(len(data))
        return torchvision_decode(data, **options)

    torchvision_decode = jpegs.decode_jpeg
    monkeypatch.setattr(jpegs, "decode_jpeg", spy)
    return found


def _photo(width: int, height: int, seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (9, 12, 3), np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noise = random.normal(0, 8, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8))


def _jpeg(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def _oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _jpeg(_photo(500, 375, orientation), exif=exif)


def _decode(
    memory_file: Files, contents: list[bytes], *, exact: bool = False
) -> list[Decoded | Refused]:
    options = Options(top_k=5, min_score=0.0, exact=exact, level="")
    work = [Job(0, number, memory_file(data), options) for number, data in enumerate(contents)]
    return _decoded(JpegDecoder(SPEC, CPU), work)


def _decoded(decoder: JpegDecoder, work: list[Job]) -> list[Decoded | Refused]:
    with ThreadPoolExecutor(2) as pool:

        def on_cpu(job: Job) -> Future[Decoded | Refused]:
            exact = job.options.exact
            return pool.submit(decode.attempt, job.descriptor, SPEC, exact=exact)

        return decoder.decode(work, on_cpu)


ORDINARY = {
    "photo": _jpeg(_photo(500, 375)),
    "upright": _jpeg(_photo(375, 500, 1)),
    "square": _jpeg(_photo(300, 300, 2)),
    "small": _jpeg(_photo(60, 45, 3)),
    "large": _jpeg(_photo(3000, 2000, 4)),
    "progressive": _jpeg(_photo(500, 375, 5), progressive=True),
    "no subsampling": _jpeg(_photo(500, 375, 6), subsampling=0),
    "odd sides": _jpeg(_photo(501, 333, 7)),
    "bytes after its end": _jpeg(_photo(500, 375)) + b"\0" * 40,
} | {f"orientation {number}": _oriented(number) for number in range(1, 9)}


def test_squares_are_the_references(memory_file: Files, batches: list[int]) -> None:
    """All in one batch; sizes as displayed; pixels within rounding of the exact way."""
    found = _decode(memory_file, list(ORDINARY.values()))
    assert batches == [len(ORDINARY)]
    for name, image, data in zip(ORDINARY, found, ORDINARY.values(), strict=True):
        expected = decode.from_bytes(data, SPEC, exact=True)
        assert isinstance(image, Decoded), name
        assert (image.width, image.height) == (expected.width, expected.height), name
        assert image.pixels.shape == (224, 224, 3)
        difference = np.abs(image.pixels.astype(int) - expected.pixels)
        assert difference.max() <= 2, name
        assert difference.mean() < 0.5, name


def _png() -> bytes:
    buffer = io.BytesIO()
    _photo(300, 200).save(buffer, "PNG")
    return buffer.getvalue()


def _huge() -> bytes:
    """A JPEG whose header claims 20,000 x 20,000 pixels."""
    data = bytearray(_jpeg(Image.new("RGB", (16, 16))))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 20_000, 20_000)
    return bytes(data)


OTHERS = {
    "PNG": _png(),
    "grey": _jpeg(_photo(300, 200).convert("L")),
    "CMYK": _jpeg(_photo(300, 200).convert("CMYK")),
    "strip": _jpeg(_photo(2000, 100)),
    "cut": ORDINARY["photo"][:-2000],
    "head alone": ORDINARY["photo"][:300] + b"\xff\xd9",
    "too large": _huge(),
    "text": b"no image at all",
    "empty": b"",
}


def test_the_rest_is_left_to_the_other_decoder(memory_file: Files, batches: list[int]) -> None:
    """With the same result for each, its error included; no batch is made."""
    found = _decode(memory_file, list(OTHERS.values()))
    assert batches == []
    for (name, data), image in zip(OTHERS.items(), found, strict=True):
        assert _told(image) == _told(_alone(memory_file(data))), name
    labelled = [n for n, one in zip(OTHERS, found, strict=True) if isinstance(one, Decoded)]
    assert labelled == ["PNG", "grey", "CMYK", "strip", "cut"]  # the last one with a warning


def _alone(descriptor: int) -> Decoded | Refused:
    return decode.attempt(descriptor, SPEC)


def _told(image: Decoded | Refused) -> tuple[object, ...]:
    """What can be compared."""
    if isinstance(image, Refused):
        return image.code, image.message
    return image.width, image.height, image.pixels.tobytes()


def test_one_damaged_file_costs_no_other_its_labels(memory_file: Files, batches: list[int]) -> None:
    """A batch that fails is decoded image by image, and only the culprit has an error."""
    damaged = bytearray(ORDINARY["photo"])
    table = damaged.index(b"\xff\xc4")
    damaged[table + 4 : table + 24] = b"\xff" * 20
    good = [ORDINARY["photo"], ORDINARY["upright"]]
    first, second, third = _decode(memory_file, [good[0], bytes(damaged), good[1]])
    assert batches == [3]
    assert isinstance(first, Decoded)
    assert isinstance(second, Refused)
    assert second.code == "truncated"
    assert isinstance(third, Decoded)
    assert (third.width, third.height) == (375, 500)


def test_exact_is_the_reference_itself(memory_file: Files, batches: list[int]) -> None:
    """Whoever asks for the reference does not get what is nearly it."""
    (found,) = _decode(memory_file, [ORDINARY["photo"]], exact=True)
    assert batches == []
    expected = decode.from_bytes(ORDINARY["photo"], SPEC, exact=True)
    assert isinstance(found, Decoded)
    assert np.array_equal(found.pixels, expected.pixels)


def test_a_batch_has_a_limit(
    memory_file: Files, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit into memory beside the others comes after them."""
    monkeypatch.setattr(jpegs, "MAX_BATCH_PIXELS", 2 * 500 * 375)
    found = _decode(memory_file, [ORDINARY["photo"]] * 3)
    assert batches == [2, 1]
    assert all(isinstance(image, Decoded) for image in found)


def test_a_large_file_is_read_alone(
    memory_file: Files, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of them would not fit into a container's memory."""
    photo = ORDINARY["photo"]
    monkeypatch.setattr(jpegs, "MAX_BYTES", len(photo) - 1)
    (found,) = _decode(memory_file, [photo])
    assert batches == []
    assert isinstance(found, Decoded)


def test_what_the_gpu_leaves_is_decoded_side_by_side(
    memory_file: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one after the other in the thread that serves the GPU."""
    side_by_side = threading.Barrier(2, timeout=20)
    whole = decode.decode

    def wait_for_another(*arguments: Any, **options: Any) -> Decoded:
        side_by_side.wait()
        return whole(*arguments, **options)

    monkeypatch.setattr(decode, "decode", wait_for_another)
    buffer = io.BytesIO()
    _photo(40, 30).save(buffer, "PNG")
    found = _decode(memory_file, [buffer.getvalue()] * 2)
    assert all(isinstance(image, Decoded) for image in found)


def test_a_decoder_that_cannot_start_is_asked_once(
    memory_file: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU without nvJPEG: no images are gathered for it any more."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Failed to initialize nvjpeg with hardware backend")

    monkeypatch.setattr(jpegs, "decode_jpeg", refuse)
    decoder = JpegDecoder(SPEC, CPU)
    options = Options(top_k=5, min_score=0.0, exact=False, level="")
    (found,) = _decoded(decoder, [Job(0, 0, memory_file(ORDINARY["photo"]), options)])
    assert isinstance(found, Decoded)
    assert decoder.least > 2**31


def test_a_lost_gpu_ends_the_worker(memory_file: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing works on it any more; the CPU must not take over in silence."""

    def lost(*_: Any, **__: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(jpegs, "decode_jpeg", lost)
    with pytest.raises(torch.AcceleratorError):
        _decode(memory_file, [ORDINARY["photo"]])


def test_files_are_left_open(memory_file: Files) -> None:
    """They are the engine's to close."""
    descriptor = memory_file(ORDINARY["photo"])
    options = Options(top_k=5, min_score=0.0, exact=False, level="")
    _decoded(JpegDecoder(SPEC, CPU), [Job(0, 0, descriptor, options)])
    assert os.fstat(descriptor).st_size == len(ORDINARY["photo"])
