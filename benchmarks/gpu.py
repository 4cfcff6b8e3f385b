"""The torch backend on an NVIDIA GPU: does it agree, how fast is it, what limits it. One table.

    python benchmarks/gpu.py [--photos DIRECTORY] [--labels meta_info.txt] [--images 20000]

It needs no network, no Docker and no installation of wuwan: the packages of
`image/requirements-gpu.txt` and a driver. The model is `general-zh`'s architecture with random
weights (`random_bundle.py`) unless `--bundle` names another; the photos are generated unless there
are some. openvino takes part in the comparison if it is installed.

The worker is the real one, a process that is spoken to through its socket. `--device cpu` goes the
same way with a small network, to try this program; its figures say nothing about a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "image"), str(ROOT / "benchmarks")]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

NEEDED = ("msgpack", "numpy", "PIL", "safetensors", "timm", "torch", "torchvision")
CLIENTS = 12
PARK_AFTER = 1.0  # seconds
DEADLINE = 120.0  # seconds; of every wait
SMALL = ("resnest14d", 500)
_MIB = 2**20


@dataclass
class Table:
    """Rows of what, figure, note; printed as Markdown."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, what: str, figure: str, note: str = "") -> None:
        """Add a row, and say it at once: the whole takes minutes."""
        self.rows.append((what, figure, note))
        print(f"  {what}: {figure}  {note}", file=sys.stderr, flush=True)

    def __str__(self) -> str:
        lines = ["| what | figure | note |", "|---|---:|---|"]
        return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in self.rows)])


# ---------------------------------------------------------------- a worker to speak to


class Worker:
    """A worker process."""

    def __init__(self, bundle: Path, device: str) -> None:
        self.name = f"\0wuwan-gpu-{secrets.token_hex(8)}"
        command = [sys.executable, "-m", "wuwan_worker", "--name", "gpu", "--model", str(bundle)]
        command += [
            "--backend",
            "torch",
            "--device",
            device,
            "--ttl",
            "600",
            "--first-client-timeout",
            "600",
        ]
        self.began = time.perf_counter()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(self.name)
            listener.listen(64)
            self.process = subprocess.Popen(
                [
                    *command,
                    f"--listen-fd={listener.fileno()}",
                    f"--park-after={PARK_AFTER}",
                ],
                pass_fds=[listener.fileno()],
                env=os.environ | {"PYTHONPATH": str(ROOT / "image")},
            )

    def close(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.process.kill()
        self.process.wait()


class Client:
    """A connection to it."""

    def __init__(self, worker: Worker) -> None:
        from wuwan_worker.shared import protocol

        self._protocol = protocol
        self._decoder = protocol.FrameDecoder(protocol.CLIENT)
        self._messages: list[Any] = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(DEADLINE)
        self._sock.connect(worker.name)
        probe = protocol.probe_descriptor()
        protocol.send_frame(self._sock, protocol.Hello(), [probe])
        os.close(probe)
        self._credits = self._take(protocol.Welcome).credits

    def close(self) -> None:
        """Leave."""
        self._sock.close()

    def status(self) -> Any:
        """What `wuwan ps` would show."""
        self._protocol.send_frame(self._sock, self._protocol.StatusRequest())
        return self._take(self._protocol.Status)

    def tag(self, photos: Sequence[int], count: int) -> tuple[float, float]:
        """Have `count` images labelled, the open files in turns; seconds to the first, to all."""
        begin, first = time.perf_counter(), 0.0
        sent = answered = 0
        while answered < count:
            while sent < count and sent - answered <= self._credits - 8:
                ids = list(range(sent, min(sent + 8, count)))
                files = [photos[number % len(photos)] for number in ids]
                self._protocol.send_frame(self._sock, self._protocol.Images(ids=ids), files)
                sent += len(ids)
            items = self._take(self._protocol.Results).items
            first = first or time.perf_counter() - begin
            answered += len(items)
            if broken := [item for item in items if isinstance(item, self._protocol.Failed)]:
                raise SystemExit(f"a photo was not labelled: {broken[0].error.message}")
        return first, time.perf_counter() - begin

    def _take(self, kind: type[Any]) -> Any:
        while True:
            while not self._messages:
                data, _ = self._protocol.receive(self._sock)
                if not data:
                    raise SystemExit("the worker has ended; its log is above")
                self._messages += [frame.message for frame in self._decoder.feed(data)]
            message = self._messages.pop(0)
            if isinstance(message, self._protocol.Fatal):
                raise SystemExit(f"the worker gave up: {message.message}")
            if isinstance(message, kind):
                return message


@contextlib.contextmanager
def opened(worker: Worker) -> Iterator[Client]:
    """A connection for a while."""
    client = Client(worker)
    try:
        yield client
    finally:
        client.close()


# ---------------------------------------------------------------- what is measured


def parity(table: Table, bundle: Any, photos: Sequence[int], device: str) -> None:
    """How often the top label is that of torch on the CPU in f32, and how far scores are off."""
    import numpy as np
    import torch

    from wuwan_worker import backends, cores
    from wuwan_worker.backends.torch import backend as pytorch
    from wuwan_worker.backends.torch.jpegs import JpegDecoder
    from wuwan_worker.decoding import decode
    from wuwan_worker.jobs import Job, Options
    from wuwan_worker.shared import labels

    levels, level = labels.read(bundle), bundle.default_level
    pixels = [decode.decode(photo, bundle.input).pixels for photo in photos]
    threads = cores.available()

    def scores(backend: Any, pixels: list[Any] = pixels) -> Any:
        size = min(backend.batch_size, 16)
        parts = [pixels[first : first + size] for first in range(0, len(pixels), size)]
        return np.concatenate([backend.infer(np.stack(p), [level])[level].copy() for p in parts])

    def add(name: str, expected: Any, found: Any, note: str) -> None:
        agree = np.mean(found.argmax(axis=1) == expected.argmax(axis=1))
        off = np.abs(found - expected).max()
        table.add(name, f"{agree:.1%}", f"{len(photos)} photos, scores within {off:.4f}; {note}")

    reference = pytorch.load(bundle, levels, device="cpu", threads=threads)
    expected = scores(reference)
    exact = scores(
        reference, [decode.decode(photo, bundle.input, exact=True).pixels for photo in photos]
    )
    options = Options(top_k=5, min_score=0.0, exact=False, level="")
    decoder = JpegDecoder(bundle.input, torch.device(device))
    jobs = [Job(0, n, photo, options) for n, photo in enumerate(photos)]
    with ThreadPoolExecutor(threads) as pool:
        squares = decoder.decode(
            jobs, lambda job: pool.submit(decode.attempt, job.descriptor, bundle.input)
        )
    for name, found in (
        ("decoded in batches", scores(reference, [square.pixels for square in squares])),
        ("decoded on the CPU", expected),
    ):
        add(f"{name}: same top label as --exact", exact, found, "torch, CPU, f32")
    others: dict[str, Callable[[], Any]] = {}
    if device == "cuda":
        others["torch, GPU"] = lambda: pytorch.load(bundle, levels, device=device, threads=threads)
        others["torch, GPU, f32"] = lambda: pytorch.load(
            bundle, levels, device=device, threads=threads, precision="f32"
        )
    if "openvino" in bundle.backends:
        others["openvino, CPU"] = lambda: backends.load(
            "openvino", bundle, levels, device="cpu", threads=threads
        )
    for name, load in others.items():
        backend = load()
        what = f"{name}: same top label as torch, CPU, f32"
        add(what, expected, scores(backend), backend.device)


def alone(table: Table, bundle: Any, photos: Sequence[int], device: str) -> dict[str, float]:
    """Each stage with the machine to itself, images a second."""
    import numpy as np
    import torch

    from wuwan_worker import cores
    from wuwan_worker.backends.torch import backend as pytorch
    from wuwan_worker.backends.torch.jpegs import JpegDecoder
    from wuwan_worker.beside import Beside
    from wuwan_worker.decoding import decode
    from wuwan_worker.decoding.patience import Limits
    from wuwan_worker.jobs import Job, Options
    from wuwan_worker.overdue import Overdue
    from wuwan_worker.programs.stages import rate
    from wuwan_worker.shared import labels

    threads, spec = cores.available(), bundle.input
    on = torch.device(device)
    backend = pytorch.load(bundle, labels.read(bundle), device=device, threads=threads)
    batch = backend.batch_size
    shape = (batch, spec.size, spec.size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    found: dict[str, float] = {}

    def measure(name: str, team: int, step: Callable[[int], int], note: str) -> None:
        step(0)  # what only the first one does
        found[name] = statistics.median(rate(team, 1.0, step)[0] for _ in range(3))
        table.add(f"{name} alone", f"{found[name]:.0f} img/s", note)

    def decode_one(turn: int) -> int:
        decode.decode(photos[turn % len(photos)], spec)
        return 1

    measure("decode, CPU", threads, decode_one, f"{threads} threads")
    options = Options(top_k=5, min_score=0.0, exact=False, level="")
    jpegs = JpegDecoder(spec, on)
    jobs = [Job(0, n, photos[n % len(photos)], options) for n in range(jpegs.most)]
    on_cpu = Beside(Overdue(Limits(), lambda _count, _stuck: None), spec, threads).submit
    where = "nvJPEG and scaling" if device == "cuda" else "as on a GPU"
    measure("decode in batches", 1, lambda _: len(jpegs.decode(jobs, on_cpu)), where)
    if device == "cuda":
        host = torch.from_numpy(pixels).pin_memory()

        def copy(_turn: int) -> int:
            host.to(on, non_blocking=True)
            torch.cuda.synchronize()
            return batch

        measure("copy to the GPU", 1, copy, f"batches of {batch}, pinned")
    there = torch.from_numpy(pixels).to(on)

    def compute(_turn: int) -> int:
        with torch.inference_mode():
            backend.compute(there)
        return batch

    measure("compute", 1, compute, f"batches of {batch}, on the device already")
    measure(
        "infer",
        backend.streams,
        lambda _: len(backend.infer(pixels, (bundle.default_level,))[bundle.default_level]),
        f"{backend.streams} threads: copies and computing",
    )
    return found


def serve(table: Table, root: Path, photos: Sequence[int], device: str, images: int) -> float:
    """A worker's life: cold start, throughput, 12 clients, rest, parked, awake."""
    before = gpu_used()
    worker = Worker(root, device)
    try:
        with opened(worker) as client:
            client.tag(photos, 1)
            table.add(
                "cold start: the worker's process to its first label",
                f"{time.perf_counter() - worker.began:.2f} s",
                client.status().device,
            )
            client.tag(photos, max(64, images // 20))  # records the batch sizes
            warm = statistics.median(client.tag(photos, 1)[0] for _ in range(20))
            table.add("one photo, warm", f"{warm * 1e3:.1f} ms")
            with watched(worker) as peaks:
                runs = [client.tag(photos, images)[1] for _ in range(3)]
            throughput = images / statistics.median(runs)
            table.add(
                "throughput, one client", f"{throughput:.0f} img/s", f"{images} images, 3 runs"
            )
        many(table, worker, photos, images)
        with opened(worker) as client:
            client.tag(photos, 1)
            status = client.status()
            table.add("worker's host memory", f"{status.memory / _MIB:.0f} MiB", "resident")
            if device == "cuda":
                memory(table, "at rest", status.gpu_memory, before)
                table.add("GPU memory, busy", *_figures(peaks, before))
                parking(table, client, photos, warm, before)
    finally:
        worker.close()
    return throughput


def many(table: Table, worker: Worker, photos: Sequence[int], images: int) -> None:
    """12 clients that come at once."""
    share = images // CLIENTS

    def work(_number: int) -> tuple[float, float]:
        with opened(worker) as client:
            return client.tag(photos, share)

    begin = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        times = list(pool.map(work, range(CLIENTS)))
    total = time.perf_counter() - begin
    slowest, fastest = max(t for _, t in times), min(t for _, t in times)
    table.add(
        f"{CLIENTS} clients at once",
        f"{CLIENTS * share / total:.0f} img/s",
        f"one worker; first labels within {max(f for f, _ in times):.2f} s, "
        f"all within {fastest:.1f} to {slowest:.1f} s",
    )


def parking(
    table: Table, client: Client, photos: Sequence[int], warm: float, before: int | None
) -> None:
    """Parked memory, and what waking adds to the first photo."""
    woken = []
    for number in range(5):
        deadline = time.monotonic() + DEADLINE
        while (status := client.status()).state != "parked":
            if time.monotonic() > deadline:
                raise SystemExit(f"the worker does not park; it is {status.state}")
            time.sleep(0.05)
        if number == 0:
            memory(table, "parked", status.gpu_memory, before)
        woken.append(client.tag(photos, 1)[0])
    table.add(
        "wake: what a parked worker's first photo takes longer",
        f"{(statistics.median(woken) - warm) * 1e3:.0f} ms",
        f"{min(woken) * 1e3:.0f} to {max(woken) * 1e3:.0f} ms with the photo itself",
    )


# ---------------------------------------------------------------- GPU memory


def gpu_used() -> int | None:
    """Bytes in use on the first visible GPU, by whomever; None where nvidia-smi does not say."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    index = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    query = [program, "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", index]
    done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    try:
        return int(done.stdout.strip()) * _MIB
    except ValueError:
        return None


def memory(table: Table, when: str, held: int, before: int | None) -> None:
    """A row."""
    table.add(f"GPU memory, {when}", *_figures({"torch": held, "gpu": gpu_used() or 0}, before))


def _figures(found: dict[str, int], before: int | None) -> tuple[str, str]:
    if before is None or not found["gpu"]:
        return f"{found['torch'] / _MIB:.0f} MiB", "held by torch, without CUDA itself"
    grown = (found["gpu"] - before) / _MIB
    return f"{grown:.0f} MiB", f"CUDA's context included; torch: {found['torch'] / _MIB:.0f} MiB"


@contextlib.contextmanager
def watched(worker: Worker) -> Iterator[dict[str, int]]:
    """The most memory that is held meanwhile."""
    peaks = {"torch": 0, "gpu": 0}
    over = threading.Event()

    def look() -> None:
        with opened(worker) as client:
            while not over.wait(0.2):
                peaks["torch"] = max(peaks["torch"], client.status().gpu_memory)
                peaks["gpu"] = max(peaks["gpu"], gpu_used() or 0)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peaks
    finally:
        over.set()
        thread.join()


# ---------------------------------------------------------------- the whole


def opened_photos(directory: Path | None, scratch: Path, count: int) -> list[int]:
    """Open files: those of a directory, or generated ones of 500 x 375 pixels."""
    if directory is None:
        import numpy as np
        from PIL import Image

        directory = scratch / "photos"
        directory.mkdir()
        random = np.random.default_rng(0)
        for number in range(min(count, 48)):
            coarse = random.integers(0, 256, (12, 16, 3), np.uint8)
            smooth = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
            values = np.asarray(smooth) + random.normal(0, 12, (375, 500, 3))
            picture = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
            picture.save(directory / f"{number:03d}.jpg", quality=85)
    paths = [path for path in sorted(directory.iterdir()) if path.is_file()][:count]
    if not paths:
        raise SystemExit(f"{directory} holds no photos")
    return [os.open(path, os.O_RDONLY) for path in paths]


def no_gpu() -> str | None:
    """Why the GPU cannot be used; None if it can."""
    from wuwan_worker.backends import BackendError
    from wuwan_worker.backends.torch import backend as pytorch

    try:
        pytorch.cuda()
    except BackendError as error:
        return str(error)
    return None


def run(arguments: argparse.Namespace, scratch: Path) -> Table:
    """Measure everything."""
    import random_bundle
    import torch

    from wuwan_worker.shared import bundle as bundles

    small = arguments.device == "cpu"
    root = arguments.bundle
    if root is None:
        root = scratch / "bundle"
        print("making the model", file=sys.stderr)
        architecture, classes = SMALL if small else random_bundle.GENERAL_ZH
        with_onnx = all(importlib.util.find_spec(name) for name in ("onnx", "openvino"))
        random_bundle.make(
            root,
            architecture,
            classes,
            labels=None if small else arguments.labels,
            with_onnx=with_onnx,
            device=arguments.device,
        )
        if not small:
            torch.cuda.empty_cache()
    images = min(arguments.images, 48) if small else arguments.images
    photos = opened_photos(arguments.photos, scratch, 16 if small else 200)
    bundle = bundles.load(root)
    table = Table()
    table.add("model", bundle.architecture, f"{bundle.classes} classes")
    # The worker first: this process holds no GPU memory yet that would be counted with it.
    throughput = serve(table, root, photos, arguments.device, images)
    stages = alone(table, bundle, photos, arguments.device)
    decoding = stages["decode, CPU"] + (0.0 if small else stages["decode in batches"])
    slowest = min(decoding, stages["compute"], stages.get("copy to the GPU", decoding))
    table.add(
        "throughput / slowest stage",
        f"{throughput / slowest:.0%}",
        f"slowest: {slowest:.0f} img/s" + ("; on a CPU they share the cores" if small else ""),
    )
    parity(table, bundle, photos, arguments.device)
    return table


def main() -> int:
    """Print the table; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--photos", type=Path, help="directory with photos")
    parser.add_argument("--labels", type=Path, help="ModelScope's meta_info.txt")
    parser.add_argument("--bundle", type=Path, help="a model bundle instead of random weights")
    parser.add_argument("--images", type=int, default=20_000, help="in one throughput run")
    arguments = parser.parse_args()
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        print(
            f"not installed: {', '.join(missing)}; pip install -r image/requirements-gpu.txt",
            file=sys.stderr,
        )
        return 1
    if arguments.device == "cuda" and (reason := no_gpu()) is not None:
        print(
            f"{reason}\nNothing was measured. --device cpu tries this program without a GPU.",
            file=sys.stderr,
        )
        return 1
    with tempfile.TemporaryDirectory(prefix="wuwan-gpu-") as scratch:
        print(run(arguments, Path(scratch)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
