"""`wuwan bench`: how fast this installation is on this machine, and how far from its limit."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wuwan_cli import options as opts
from wuwan_runner.errors import UsageError
from wuwan_runner.options import Selection, TagOptions, Timeouts, WorkerSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from wuwan_cli.benchmark.measure_gpu import GpuFigures

_DEFAULTS = TagOptions()
SIZES = (100, 1_000, 10_000, 100_000, 1_000_000)
GENERATED = 48  # photos
PLOTS = (".svg", ".png")
_STAGE_PHOTOS = 64
_MEBIBYTE = 2**20
_FIRSTS = 5  # runs for the time to the first record

app = opts.application()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The figures. Times in seconds, rates in images a second, memory in bytes; medians."""

    runner: str
    photos: int
    help_start: float  # of `wuwan --help`
    interpreter: float  # Python's own start
    imports: float  # of `wuwan tag`, after that
    cold_first: float  # from nothing to the first record
    warm_first: float
    warm_total: float  # the whole command on one photo
    throughput: float  # through the whole program, warm
    decode: float  # each stage alone, over all cores
    infer: float
    decode_core: float  # CPU seconds for an image
    infer_core: float
    limit: float  # with perfect overlap and nothing else to do
    gpu: GpuFigures | None  # None on a CPU
    efficiency: float  # throughput / limit
    client_memory: int  # peak
    worker_memory: int
    device: str
    cores: int
    sizes: list[dict[str, float]] = field(default_factory=list)


@app.command()
def bench(
    directory: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DIRECTORY]",
            help="Photos to measure with.  [default: 500-pixel photos are generated]",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        int, typer.Option("--images", min=100, help="Images in one throughput run.")
    ] = 2000,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Runs for each figure.")] = 5,
    runner: opts.Runner = "local",
    model: opts.Model = _DEFAULTS.spec.model,
    backend: opts.Backend = _DEFAULTS.spec.backend,
    image: opts.Image = _DEFAULTS.spec.image,
    sizes: Annotated[
        bool,
        typer.Option(
            "--sizes",
            help="Also how time and memory grow from 100 to 1,000,000 paths, with a worker that "
            "answers at once. Takes minutes.",
        ),
    ] = False,
    largest: Annotated[int, typer.Option("--largest", min=100, help="Where --sizes ends.")] = SIZES[
        -1
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw it: .svg, .png (needs matplotlib)."),
    ] = None,
) -> None:
    """Measure cold and warm start, throughput and its limit, by running the real program."""
    from wuwan_cli.benchmark import measure
    from wuwan_cli.shell.boundary import say

    if runner == "auto":
        raise UsageError("--runner auto: name the runner to measure", hint="local or docker")
    if plot is not None:
        _check_plot(plot)  # now, and not after minutes
    spec = WorkerSpec(model=model, backend=backend, image=image)
    with tempfile.TemporaryDirectory(prefix="wuwan-bench-") as scratch, measure.apart():
        photos = _photos(directory, Path(scratch))
        report = _measure(photos, images, repeats, runner, spec, say)
        if sizes:
            wanted = [size for size in SIZES if size <= largest]
            report.sizes.extend(_sizes(photos, wanted, spec, Path(scratch), say))
    if as_json:
        typer.echo(json.dumps(asdict(report)))
    else:
        _show(report)
    if plot is not None:
        _plot(report, plot)


def _photos(directory: Path | None, scratch: Path) -> list[str]:
    """Absolute paths of the photos to measure with."""
    from wuwan_runner.inputs.discover import discover

    if directory is None:
        return _generated(scratch)
    entries = discover([str(directory)], Selection())
    found = [os.path.abspath(entry.path) for entry in entries]
    found = [path for path in found if os.path.isfile(path) and os.access(path, os.R_OK)]
    if not found:
        raise UsageError(f"{directory} holds no images that can be read")
    return found


def _generated(scratch: Path) -> list[str]:
    """Photo-like JPEGs of 500 x 375 pixels: smooth shapes and some noise, about 60 KB each."""
    try:
        import numpy as np
        from PIL import Image
    except ImportError as error:
        raise UsageError(
            f"generating photos needs {error.name}", hint="name a directory, or install wuwan[cpu]"
        ) from None
    random = np.random.default_rng(0)
    paths = []
    for number in range(GENERATED):
        coarse = random.integers(0, 256, (12, 16, 3), np.uint8)
        smooth = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
        noise = random.normal(0, 12, (375, 500, 3))
        pixels = np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)
        path = scratch / f"photo{number:03d}.jpg"
        Image.fromarray(pixels).save(path, quality=85)
        paths.append(str(path))
    return paths


def _measure(
    photos: Sequence[str], images: int, repeats: int, runner: str, spec: WorkerSpec, say: Any
) -> Report:
    from wuwan_cli.benchmark import measure, measure_gpu
    from wuwan_runner.pool import registry

    common_options = ["--runner", runner, "--quiet", "--model", spec.model]
    common_options += ["--backend", spec.backend]
    if spec.image:
        common_options += ["--image", spec.image]
    one = [*common_options, photos[0]]
    say("start-up")
    help_start = measure.start_up(["--help"], repeats)
    interpreter, imports = measure.imports(2 * repeats)
    say(f"cold start, {repeats} times")
    cold = []
    for _ in range(repeats):
        measure.stop_all()
        cold.append(measure.tag(one))
    say(f"warm start, {2 * repeats} times")
    warm = [measure.tag(one) for _ in range(2 * repeats)]
    many = [photos[number % len(photos)] for number in range(images)]
    sample = photos[:: max(1, len(photos) // _STAGE_PHOTOS)][:_STAGE_PHOTOS]
    measure.tag(common_options, many[: images // 4])  # warms files and allocators
    on_gpu = measure_gpu.held() > 0
    runs, alone, busy = [], [], 0
    # In turns: on a machine whose speed changes, both see the same of it.
    for number in range(repeats):
        say(f"throughput and stages, {number + 1} of {repeats}")
        with measure_gpu.watched() as peak:
            runs.append(measure.tag(common_options, many))
        busy = max(busy, peak.bytes)
        alone.append(measure.stages(sample, runner, spec, 1.0, on_gpu=on_gpu))
    if on_gpu:
        say(f"parking, {repeats} times")
    gpu = measure_gpu.figures(one, busy, repeats) if on_gpu else None
    memory = [m.status.memory for m in registry.members(Timeouts()) if m.status]
    decode, infer = (
        statistics.median(stage[key] for stage in alone) for key in ("decode", "infer")
    )
    limits = [_limit(stage["decode"], stage["infer"], on_gpu) for stage in alone]
    ratios = [run.rate / bound for run, bound in zip(runs, limits, strict=True)]
    return Report(
        runner=runner,
        photos=len(photos),
        help_start=help_start,
        interpreter=interpreter,
        imports=imports,
        cold_first=statistics.median(run.first for run in cold),
        warm_first=statistics.median(run.first for run in warm),
        warm_total=statistics.median(run.total for run in warm),
        throughput=statistics.median(run.rate for run in runs),
        decode=decode,
        infer=infer,
        decode_core=statistics.median(stage["decode_core_s"] for stage in alone),
        infer_core=statistics.median(stage["infer_core_s"] for stage in alone),
        limit=_limit(decode, infer, on_gpu),
        gpu=gpu,
        efficiency=statistics.median(ratios),
        client_memory=max(run.peak_memory for run in runs),
        worker_memory=max(memory, default=0),
        device=str(alone[0]["device"]),
        cores=int(alone[0]["cores"]),
    )


def _limit(decode: float, infer: float, on_gpu: bool) -> float:
    """Images a second. On a CPU both stages take the same cores, a GPU has its own."""
    return min(decode, infer) if on_gpu else 1 / (1 / decode + 1 / infer)


def _sizes(
    photos: Sequence[str], wanted: Sequence[int], spec: WorkerSpec, scratch: Path, say: Any
) -> list[dict[str, float]]:
    from wuwan_cli.benchmark import measure

    rows = []
    measure.stop_all()
    for count in wanted:
        say(f"{count:,} paths")
        root = scratch / f"tree{count}"
        root.mkdir()
        measure.linked_tree(root, photos[:16], count)
        with measure.stub_worker(spec):
            options = ["--runner", "local", "--model", spec.model, "--quiet", str(root)]
            run = measure.tag(options)
            # Apart from the long run: that one comes while the new links are on their way to disk.
            first = statistics.median(measure.first_record(options) for _ in range(_FIRSTS))
        rows.append(
            {
                "paths": run.records,
                "first": first,
                "total": run.total,
                "peak_memory": run.peak_memory,
            }
        )
    return rows


def _show(report: Report) -> None:
    from wuwan_cli.screen.tables import Column, show

    show(
        (Column("what"), Column("figure", right=True), Column("note")),
        _figures(report),
        title=f"wuwan bench: {report.runner}, {report.device}, {report.cores} cores",
        headings=False,
    )
    if report.sizes:
        headings = ("PATHS", "FIRST RECORD", "TOTAL", "µs A PATH", "PEAK MEMORY")
        show(
            [Column(heading, right=True) for heading in headings],
            map(_growth, report.sizes),
            title="How it grows (a worker that answers at once)",
        )


def _figures(report: Report) -> Iterator[tuple[str, str, str]]:
    yield from (
        ("wuwan --help", f"{report.help_start:.3f} s", ""),
        ("cold start to the first record", f"{report.cold_first:.3f} s", ""),
        ("warm, to the first record", f"{report.warm_first:.3f} s", ""),
        ("warm, whole command", f"{report.warm_total:.3f} s", "one photo"),
        ("  of that: the interpreter", f"{report.interpreter:.3f} s", ""),
        ("  of that: imports", f"{report.imports:.3f} s", ""),
        (
            "  of that: the work itself",
            f"{max(0.0, report.warm_total - report.interpreter - report.imports):.3f} s",
            "",
        ),
        ("decode alone", f"{report.decode:.0f} img/s", f"{report.decode_core * 1e3:.2f} core-ms"),
        ("inference alone", f"{report.infer:.0f} img/s", f"{report.infer_core * 1e3:.2f} core-ms"),
        (
            "limit, perfect overlap",
            f"{report.limit:.0f} img/s",
            "the slower one" if report.gpu else "1 / (1/decode + 1/inference)",
        ),
        ("throughput, whole program", f"{report.throughput:.0f} img/s", "warm"),
        ("efficiency", f"{report.efficiency:.1%}", "throughput / limit, in turns"),
        ("client's peak memory", f"{report.client_memory / _MEBIBYTE:.0f} MiB", ""),
        ("worker's memory", f"{report.worker_memory / _MEBIBYTE:.0f} MiB", ""),
    )
    if report.gpu is not None:
        for state in ("rest", "busy", "parked"):
            held = getattr(report.gpu, state) / _MEBIBYTE
            yield (f"GPU memory, {state}", f"{held:.0f} MiB", "without CUDA's own")
        yield ("time to wake", f"{report.gpu.wake:.3f} s", "beyond a warm first record")


def _growth(entry: dict[str, float]) -> Sequence[str]:
    return (
        f"{entry['paths']:,.0f}",
        f"{entry['first']:.3f} s",
        f"{entry['total']:.2f} s",
        f"{entry['total'] / entry['paths'] * 1e6:.0f}",
        f"{entry['peak_memory'] / _MEBIBYTE:.0f} MiB",
    )


def _check_plot(path: Path) -> None:
    if path.suffix not in PLOTS:
        raise UsageError(f"--plot {path}: a name that ends in {' or '.join(PLOTS)} is needed")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"--plot {path}: {path.parent} cannot be written to")
    if find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib", hint="pip install 'wuwan[plot]'")


def _plot(report: Report, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    names = ["decode alone", "inference alone", "limit", "wuwan"]
    values = [report.decode, report.infer, report.limit, report.throughput]
    bars = axes.barh(names, values, color=["#9aa", "#9aa", "#467", "#2a7"])
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.invert_yaxis()
    axes.set_xlabel("images a second")
    axes.set_title(f"{report.runner}, {report.device}, {report.cores} cores")
    axes.margins(x=0.1)
    figure.savefig(path)
