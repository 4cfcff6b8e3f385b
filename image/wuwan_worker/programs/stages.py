"""`python -m wuwan_worker.programs.stages`: how fast each stage is alone, with all cores to itself.

Decoding and inference share the cores, so with perfect overlap and no other work the throughput
is limited to ``1 / (1 / decode + 1 / inference)``, both in images a second over all cores. `wuwan
bench` compares itself with that.

Images come on standard input as blobs (`shared.blobs`), so it works in a container that
sees no files. The answer is one JSON object on standard output.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from typing import TYPE_CHECKING

import numpy as np

from wuwan_worker import backends, cores
from wuwan_worker.beside import Beside
from wuwan_worker.decoding import decode
from wuwan_worker.decoding.patience import Limits
from wuwan_worker.jobs import Job, Options
from wuwan_worker.overdue import Overdue
from wuwan_worker.shared import blobs, bundle, labels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from wuwan_worker.backends import Backend, BatchDecoder
    from wuwan_worker.shared.bundle import Bundle


def rate(threads: int, seconds: float, step: Callable[[int], int]) -> tuple[float, float]:
    """Images a second and CPU seconds an image, with `threads` threads calling `step(n)`.

    `step` returns how many images it has done.
    """
    done = [0] * threads
    begin, cpu = time.perf_counter(), time.process_time()
    end = begin + seconds

    def work(number: int) -> None:
        turn = number
        while time.perf_counter() < end:
            done[number] += step(turn)
            turn += threads

    team = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in team:
        thread.start()
    for thread in team:
        thread.join()
    images = sum(done)
    elapsed, used = time.perf_counter() - begin, time.process_time() - cpu
    return images / elapsed, used / max(1, images)


def measure(
    images: Sequence[int], model: Bundle, backend: Backend, threads: int, seconds: float
) -> dict[str, float]:
    """Rates of decoding and inference alone, in turns, medians of three.

    Where the backend decodes, too, its rate is added to that of the CPU.
    """
    spec, levels = model.input, (model.default_level,)
    shape = (backend.batch_size, spec.size, spec.size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)  # zeros may run faster

    def decode_one(turn: int) -> int:
        decode.decode(images[turn % len(images)], spec)
        return 1

    def infer_one(_turn: int) -> int:
        backend.infer(pixels, levels)
        return len(pixels)

    on_cpu = Beside(Overdue(Limits(), lambda _count, _stuck: None), spec, threads)
    rounds = []
    for _ in range(3):
        decoded, core = rate(threads, seconds, decode_one)
        if backend.decoder is not None:
            decoded += rate(1, seconds, _in_batches(backend.decoder, images, on_cpu))[0]
        rounds.append((decoded, core, *rate(backend.streams, seconds, infer_one)))
    medians = [sorted(column)[1] for column in zip(*rounds, strict=True)]
    return dict(zip(("decode", "decode_core_s", "infer", "infer_core_s"), medians, strict=True))


def _in_batches(
    decoder: BatchDecoder, images: Sequence[int], on_cpu: Beside
) -> Callable[[int], int]:
    options = Options(top_k=1, min_score=0.0, exact=False, level="")

    def step(turn: int) -> int:
        chosen = range(turn * decoder.most, (turn + 1) * decoder.most)
        jobs = [Job(0, number, images[number % len(images)], options) for number in chosen]
        return len(decoder.decode(jobs, on_cpu.submit))

    return step


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what comes on standard input; the exit code."""
    parser = argparse.ArgumentParser(prog="wuwan_worker.programs.stages")
    parser.add_argument("--model", default="imagenet-zh")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each measurement")
    arguments = parser.parse_args(argv)
    images: list[int] = []
    while (descriptor := blobs.read(sys.stdin.buffer)) is not None:
        images.append(descriptor)
    model = bundle.load(bundle.find(arguments.model))
    threads = cores.available()
    backend = backends.load(
        arguments.backend, model, labels.read(model), device=arguments.device, threads=threads
    )
    found = measure(images, model, backend, threads, arguments.seconds)
    json.dump(found | {"cores": threads, "device": backend.device}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.stdout.flush()
    code = main()
    sys.stdout.flush()
    os._exit(code)
