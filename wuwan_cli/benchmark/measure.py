"""Measurements of the real program, as processes: what `wuwan bench` runs."""

from __future__ import annotations

import json
import os
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wuwan_runner import launchers
from wuwan_runner.containers import daemon, images, model_mount
from wuwan_runner.containers.program import Program, run
from wuwan_runner.errors import WorkerUnavailableError, WuwanError
from wuwan_runner.gpus import placement
from wuwan_runner.options import Timeouts, WorkerSpec
from wuwan_runner.pool import registry
from wuwan_runner.resolved import resolve
from wuwan_runner.wire import address
from wuwan_runner.wire.address import Address
from wuwan_worker.shared import blobs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PROGRAM = (sys.executable, "-m", "wuwan_cli")
STAGES = "wuwan_worker.programs.stages"
STUB = "wuwan_worker.programs.stub"
_TIMEOUT = 3600.0  # seconds for one run


@dataclass(frozen=True, slots=True)
class Run:
    """One run of `wuwan tag`, seen from outside."""

    first: float  # seconds from the start of the process to the first record
    last: float  # … to the last record
    total: float  # … to the end of the process
    records: int
    peak_memory: int  # of the process, bytes

    @property
    def rate(self) -> float:
        """Images a second between the first and the last record."""
        return (self.records - 1) / (self.last - self.first) if self.records > 1 else 0.0


@contextmanager
def apart() -> Iterator[None]:
    """A namespace of its own: nobody else's workers are found, and none of ours is left."""
    before = os.environ.get(address.NAMESPACE_VARIABLE)
    os.environ[address.NAMESPACE_VARIABLE] = f"wuwan-bench-{secrets.token_hex(4)}"
    try:
        yield
    finally:
        stop_all()
        if before is None:
            del os.environ[address.NAMESPACE_VARIABLE]
        else:
            os.environ[address.NAMESPACE_VARIABLE] = before


def stop_all() -> None:
    """End this namespace's workers."""
    timeouts = Timeouts()
    for member in registry.members(timeouts):
        registry.stop(member, timeouts, drain=10.0)


def tag(arguments: Sequence[str], paths: Sequence[str] | None = None) -> Run:
    """Run `wuwan tag`, with a list of paths on its standard input if one is given.

    Raises:
        WuwanError: if it fails; its own message is on stderr.
    """
    with tempfile.TemporaryFile() as listed:
        if paths is not None:
            arguments = [*arguments, "--files-from", "-", "-0"]
            listed.write("\0".join(paths).encode("utf-8", "surrogateescape"))
            listed.seek(0)
        begin = time.perf_counter()
        process = subprocess.Popen(
            [*PROGRAM, "tag", "--progress", "none", *arguments],
            stdin=listed,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None  # noqa: S101  # for the type checker
        first = last = 0.0
        records = 0
        # Read as it comes, and count lines: parsing would take the cores that are measured.
        with process.stdout as stdout:
            while data := os.read(stdout.fileno(), 1 << 20):
                last = time.perf_counter()
                first = first or last
                records += data.count(b"\n")
        _, status, usage = os.wait4(process.pid, 0)
        total = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 3):
        raise WuwanError(f"wuwan tag failed with exit code {process.returncode}")
    return Run(first - begin, last - begin, total, records, usage.ru_maxrss * 1024)


def first_record(arguments: Sequence[str]) -> float:
    """Seconds from the start of `wuwan tag` to its first record; it is ended then.

    Raises:
        WuwanError: if there is none.
    """
    begin = time.perf_counter()
    process = subprocess.Popen(
        [*PROGRAM, "tag", "--progress", "none", *arguments], stdout=subprocess.PIPE
    )
    assert process.stdout is not None  # noqa: S101  # for the type checker
    with process.stdout as stdout:
        found = os.read(stdout.fileno(), 1 << 20)
        taken = time.perf_counter() - begin
    process.wait(timeout=60)
    if not found:
        raise WuwanError("wuwan tag gave no record")
    return taken


def start_up(arguments: Sequence[str], repeats: int) -> float:
    """Seconds that `wuwan ARGUMENTS…` takes, median."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        subprocess.run([*PROGRAM, *arguments], stdout=subprocess.DEVNULL, check=True, timeout=60)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


# What `wuwan tag` imports on the way to a warm worker.
_IMPORTS = (
    "import wuwan_cli.main, wuwan_cli.app, wuwan_cli.commands.tag, wuwan_cli.inputs, "
    "wuwan_cli.screen.progress, wuwan_runner.outputs.choose, wuwan_runner.tagger"
)


def imports(repeats: int) -> tuple[float, float]:
    """Seconds for the interpreter alone, and for the imports of `wuwan tag` after that; medians."""
    times: dict[str, list[float]] = {"pass": [], _IMPORTS: []}
    for _ in range(repeats):
        for code, taken in times.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
            taken.append(time.perf_counter() - begin)
    bare, full = (statistics.median(taken) for taken in times.values())
    return bare, full - bare


def stages(
    photos: Sequence[str], runner: str, spec: WorkerSpec, seconds: float, *, on_gpu: bool
) -> dict[str, float]:
    """What `wuwan_worker.programs.stages` says of these photos, in the environment of that runner.

    Raises:
        WorkerUnavailableError: if it cannot be run there.
    """
    stream = bytearray()
    for photo in photos:
        data = Path(photo).read_bytes()
        stream += blobs.HEADER.pack(len(data)) + data
    arguments = [f"--backend={spec.backend}", f"--seconds={seconds}"]
    arguments += [f"--device={'cuda' if on_gpu else 'cpu'}"]
    if runner == "docker":
        output, errors = _in_container(spec, arguments, bytes(stream), on_gpu=on_gpu)
    else:
        done = subprocess.run(
            [sys.executable, "-m", STAGES, f"--model={spec.model}", *arguments],
            input=stream,
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
        )
        output, errors = done.stdout, done.stderr
    try:
        found: dict[str, float] = json.loads(output)
    except ValueError:
        lines = errors.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else "it ended without a word"
        raise WorkerUnavailableError(f"the stages cannot be measured: {reason}") from None
    return found


def _in_container(
    spec: WorkerSpec, arguments: Sequence[str], stdin: bytes, *, on_gpu: bool
) -> tuple[bytes, bytes]:
    """Standard output and standard error of the stages in a container like a worker's."""
    from docker.types import Mount

    wanted = resolve(spec)
    with daemon.connected(Timeouts().docker) as client:
        placed = images.image_for(client, wanted)
        model, directory = model_mount.mount(wanted.model, placed.image, {})
        mount = Mount(target=model, source=str(directory), type="bind", read_only=True)
        program = Program(
            image=placed.image,
            command=("python", "-m", STAGES, f"--model={model}", *arguments),
            memory=spec.memory,
            mounts=(mount,) if directory else (),
            devices=tuple(
                placement.device_requests(placed.driver, placed.device(0) if on_gpu else None)
            ),
            stdin=stdin,
        )
        done = run(client, program, deadline=_TIMEOUT)
    if done is None:
        raise WorkerUnavailableError(f"the stages were not done within {_TIMEOUT:.0f} s")
    return done.output, done.errors


@contextmanager
def stub_worker(spec: WorkerSpec) -> Iterator[None]:
    """A worker that answers at once, where `wuwan tag --runner local` looks for one."""
    target = Address(launchers.get("local").key(resolve(spec)), "0")
    listener = address.listen(target)
    if listener is None:
        raise WorkerUnavailableError(f"the name {target.name[1:]} is taken")
    with listener:
        process = subprocess.Popen(
            [sys.executable, "-m", STUB, f"--listen-fd={listener.fileno()}"],
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def linked_tree(root: Path, photos: Sequence[str], count: int, per_directory: int = 1000) -> None:
    """`count` links to a few photos, in directories of a thousand."""
    for number in range(count):
        directory = root / f"{number // per_directory:06d}"
        if number % per_directory == 0:
            directory.mkdir()
        target = photos[number % len(photos)]
        os.symlink(target, f"{directory}/{number:08d}.jpg")
