"""JPEG decoders and resizers beside each other: CPU time an image, and what it does to the labels.

    pip install -e '.[cpu]' opencv-python-headless simplejpeg PyTurboJPEG pyvips pyvips-binary
    python benchmarks/decoders.py PHOTOS [--large 24]

PHOTOS are measured as they are, and enlarged to 12 megapixels. "agrees" is how often the top label
is the one that the reference preprocessing gives (full decode, resize, crop: `wuwan tag --exact`),
with the same network in f32. Decoders that are not installed are left out.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from wuwan_worker.decoding import decode
from wuwan_worker.shared import bundle

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

MODEL = bundle.load(bundle.find("imagenet-zh"))
SPEC = MODEL.input


def box(width: int, height: int, scale_x: float = 1.0) -> tuple[float, float, float, float]:
    """The crop in pixels of an image that has been decoded at 1 / scale."""
    side = min(width, height) * SPEC.crop_fraction
    left, top = (width - side) / 2, (height - side) / 2
    return (left / scale_x, top / scale_x, (left + side) / scale_x, (top + side) / scale_x)


def pillow(data: bytes, *, draft: bool, exact: bool = False) -> Pixels:
    """`wuwan_worker.decoding.decode`, or Pillow without its reduced-scale decode."""
    if draft or exact:
        descriptor = os.memfd_create("image")
        try:
            os.write(descriptor, data)
            return decode.decode(descriptor, SPEC, exact=exact).pixels
        finally:
            os.close(descriptor)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    size = (SPEC.size, SPEC.size)
    square = image.resize(size, Image.Resampling.BICUBIC, box=box(*image.size), reducing_gap=2.0)
    return np.asarray(square)


def reduction(data: bytes) -> tuple[int, int, int]:
    """The largest of 1, 2, 4, 8 that leaves the shorter side `resize` pixels; width, height."""
    width, height = Image.open(io.BytesIO(data)).size
    factor = max(f for f in (1, 2, 4, 8) if f == 1 or min(width, height) // f >= SPEC.resize)
    return factor, width, height


def finish(cv2: Any, pixels: Pixels) -> Pixels:
    """Crop, and resize by OpenCV (area averaging when it shrinks, cubic when it grows)."""
    left, top, right, bottom = (round(v) for v in box(pixels.shape[1], pixels.shape[0]))
    crop = pixels[top:bottom, left:right]
    way = cv2.INTER_AREA if crop.shape[0] > SPEC.size else cv2.INTER_CUBIC
    resized: Pixels = cv2.resize(crop, (SPEC.size, SPEC.size), interpolation=way)
    return resized


def ways() -> dict[str, Callable[[bytes], Pixels]]:
    """The decoders that are installed."""
    found: dict[str, Callable[[bytes], Pixels]] = {
        "Pillow, exact": lambda data: pillow(data, draft=False, exact=True),
        "Pillow, full decode, one step": lambda data: pillow(data, draft=False),
        "libjpeg-turbo, scaled, one step (wuwan)": lambda data: pillow(data, draft=True),
    }
    try:
        import cv2
    except ImportError:
        return found
    cv2.setNumThreads(1)
    flags = {
        1: cv2.IMREAD_COLOR,
        2: cv2.IMREAD_REDUCED_COLOR_2,
        4: cv2.IMREAD_REDUCED_COLOR_4,
        8: cv2.IMREAD_REDUCED_COLOR_8,
    }

    def opencv(data: bytes) -> Pixels:
        factor, _, _ = reduction(data)
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags[factor])
        return np.ascontiguousarray(finish(cv2, pixels)[..., ::-1])

    found["OpenCV, reduced"] = opencv
    try:
        import simplejpeg

        def simple(data: bytes) -> Pixels:
            factor, width, height = reduction(data)
            return finish(
                cv2,
                simplejpeg.decode_jpeg(
                    data, min_width=max(1, width // factor), min_height=max(1, height // factor)
                ),
            )

        found["simplejpeg, scaled, OpenCV resize"] = simple

        def simple_pillow(data: bytes) -> Pixels:
            factor, width, height = reduction(data)
            pixels = simplejpeg.decode_jpeg(
                data, min_width=max(1, width // factor), min_height=max(1, height // factor)
            )
            image = Image.fromarray(pixels)
            size = (SPEC.size, SPEC.size)
            return np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=box(*image.size)))

        found["simplejpeg, scaled, Pillow resize"] = simple_pillow
    except ImportError:
        pass
    try:
        import pyvips

        pyvips.cache_set_max(0)

        def vips(data: bytes) -> Pixels:
            image = pyvips.Image.thumbnail_buffer(
                data, SPEC.resize, height=SPEC.resize, crop="centre", no_rotate=True
            )
            edge = (SPEC.resize - SPEC.size) // 2
            square = image.crop(edge, edge, SPEC.size, SPEC.size).colourspace("srgb")
            return np.asarray(square.numpy()[..., :3])

        found["libvips thumbnail"] = vips
    except (ImportError, OSError):
        pass
    return found


def enlarge(data: bytes) -> bytes:
    """The photo with a shorter side of 3,000 pixels."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = 3000 / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    out = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def network() -> Callable[[Pixels], int]:
    """The index of the top label, in f32."""
    import openvino as ov

    compiled = ov.Core().compile_model(
        str(MODEL.weights("onnx")), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )

    def top(pixels: Pixels) -> int:
        values = (pixels / 255 - np.asarray(SPEC.mean)) / np.asarray(SPEC.std)
        batch = values.transpose(2, 0, 1)[None].astype(np.float32)
        return int(compiled([batch])[0][0].argmax())

    return top


def table(title: str, images: list[bytes], top: Callable[[Pixels], int]) -> None:
    """Measure all decoders over these images and print."""
    print(f"\n{title}: {len(images)} images\n\n| decoder | core-ms | agrees |\n|---|---:|---:|")
    expected = [top(pillow(data, draft=False, exact=True)) for data in images]
    for name, way in ways().items():
        try:
            for data in images[:4]:
                way(data)
            times = []
            for _ in range(3):
                begin = time.process_time()
                results = [way(data) for data in images]
                times.append((time.process_time() - begin) / len(images))
        except Exception as error:  # a decoder may refuse a photo; that is a result, too
            print(f"| {name} | {type(error).__name__}: {error} | |")
            continue
        agreed = statistics.mean(
            top(pixels) == label for pixels, label in zip(results, expected, strict=True)
        )
        print(f"| {name} | {statistics.median(times) * 1e3:.2f} | {agreed:.1%} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--large", type=int, default=24, help="how many are enlarged")
    arguments = parser.parse_args()
    images = [path.read_bytes() for path in sorted(arguments.photos.glob("*.jp*g"))]
    top = network()
    table("As they are", images, top)
    table("12 megapixels", [enlarge(data) for data in images[: arguments.large]], top)


if __name__ == "__main__":
    main()
