"""Turns a checkpoint into a bundle's weights, where torch is: in a process here, or in a container.

`python -m wuwan_worker.conversion.convert` does the work and says in one line of JSON what it has
done. Only that program reads checkpoints, so nothing is ever unpickled in this process.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from wuwan_runner.containers import daemon, images
from wuwan_runner.containers.program import Program, run
from wuwan_runner.errors import ModelError, WorkerUnavailableError
from wuwan_worker.shared import bundle, labels

if TYPE_CHECKING:
    from collections.abc import Callable

MODULE = "wuwan_worker.conversion.convert"
REQUIRED = ("torch", "torchvision", "timm", "safetensors", "onnx")
DEADLINE = 1800.0  # seconds
_MEMORY = "16g"  # of a container: far over what a checkpoint takes, far under a bomb
_IN, _OUT = "/in", "/out"
_TAIL = 4000  # bytes of a failed conversion's messages that are shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A file with trained weights, and what it must be."""

    weights: Path
    architecture: str  # timm's name
    classes: int
    activation: str  # of its output: "softmax" or "sigmoid"


@dataclass(frozen=True, slots=True)
class Converted:
    """What a conversion says of its result."""

    files: dict[str, str]  # backend -> file name
    input: dict[str, Any]  # as `bundle.InputSpec`
    output_name: str
    activation: str  # still to be applied


class Converter(Protocol):
    """Makes a bundle's weights."""

    def __call__(self, checkpoint: Checkpoint, directory: Path) -> Converted:
        """Write them into `directory`. Raises ModelError, WorkerUnavailableError."""
        ...


def choose(runner: str, image: str, notify: Callable[[str], None]) -> Converter:
    """Where to convert: "local", "docker", or for "auto" here if torch is here.

    Raises:
        WorkerUnavailableError: if that cannot be done, saying what is needed.
    """
    missing = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    if runner == "local" or (runner == "auto" and not missing and not image):
        if missing:
            raise WorkerUnavailableError(
                f"reading a checkpoint needs {', '.join(missing)}, which is not installed",
                hint="pip install 'wuwan[gpu]', or use --runner docker with a GPU image",
            )
        notify("reading the checkpoint in a process here")
        return local
    try:
        reference = _image(image)
    except WorkerUnavailableError as error:
        if runner == "docker":
            raise
        raise WorkerUnavailableError(
            f"reading a checkpoint needs {', '.join(missing) or 'torch'}, which is not installed "
            f"here, or a container that has it: {error}",
            hint="pip install 'wuwan[gpu]', or `wuwan image build --variant gpu`",
        ) from None
    notify(f"reading the checkpoint in a container from {reference}")
    return InContainer(reference)


def local(checkpoint: Checkpoint, directory: Path) -> Converted:
    """See `Converter`: in a process here."""
    arguments = _arguments(checkpoint, str(checkpoint.weights.resolve()), str(directory))
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            cwd="/",  # Python looks for modules in the current directory first
        )
        with process:
            try:
                output, _ = process.communicate(timeout=DEADLINE)
            except subprocess.TimeoutExpired:
                raise WorkerUnavailableError(
                    f"the conversion was not done within {DEADLINE:.0f} s"
                ) from None
            finally:
                with contextlib.suppress(ProcessLookupError):  # it may have children of its own
                    os.killpg(process.pid, signal.SIGKILL)
        log.seek(max(0, log.tell() - _TAIL))
        return understand(output, log.read(), checkpoint, directory)


@dataclass(frozen=True, slots=True)
class InContainer:
    """See `Converter`: in a container without network, which sees the checkpoint and the result."""

    image: str

    def __call__(self, checkpoint: Checkpoint, directory: Path) -> Converted:
        """See `Converter`."""
        from docker.types import Mount

        weights = checkpoint.weights.resolve()
        inside = f"{_IN}/{weights.name}"
        mounts = [
            Mount(target=inside, source=str(weights), type="bind", read_only=True),
            Mount(target=_OUT, source=str(directory), type="bind"),
        ]
        program = Program(
            image=self.image,
            command=("python", *_arguments(checkpoint, inside, _OUT)),
            memory=_MEMORY,
            mounts=tuple(mounts),
            ours=True,
        )
        with daemon.connected(30.0) as client:
            done = run(client, program, deadline=DEADLINE)
        if done is None:
            raise WorkerUnavailableError(f"the conversion was not done within {DEADLINE:.0f} s")
        return understand(done.output, done.errors[-_TAIL:], checkpoint, directory)


def _arguments(checkpoint: Checkpoint, weights: str, out: str) -> list[str]:
    return [
        "-m",
        MODULE,
        f"--weights={weights}",
        f"--arch={checkpoint.architecture}",
        f"--classes={checkpoint.classes}",
        f"--activation={checkpoint.activation}",
        f"--out={out}",
    ]


def understand(output: bytes, log: bytes, checkpoint: Checkpoint, directory: Path) -> Converted:
    """The result of a conversion, by its last line.

    Raises:
        ModelError: if the checkpoint was refused, with the reason.
        WorkerUnavailableError: if the conversion broke off, with its last messages.
    """
    last = output.decode(errors="replace").strip().rpartition("\n")[2]
    try:
        said = json.loads(last)
        if "error" in said:
            name, reason = checkpoint.weights.name, str(said["error"])
            about = "" if name in reason else f"{name} with {checkpoint.classes:,} labels: "
            raise ModelError(f"{about}{reason}")
        converted = Converted(
            files={str(key): str(value) for key, value in said["files"].items()},
            input=dict(said["input"]),
            output_name=str(said["output_name"]),
            activation=str(said["activation"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        tail = log.decode(errors="replace").strip()
        raise WorkerUnavailableError(
            f"the conversion broke off without a result (out of memory?)\n{tail}".rstrip()
        ) from None
    for name in converted.files.values():
        path = directory / name
        # A checkpoint may have taken the container over: no link leads anywhere from here.
        plain = Path(name).name == name and not path.is_symlink() and path.is_file()
        if not plain or name in (labels.FILE, bundle.MANIFEST):
            raise ModelError(f"the conversion wrote no file {name!r}")
    return converted


def _image(image: str) -> str:
    """The image to convert in: the named one, or this version's own with GPU support.

    Raises:
        WorkerUnavailableError: if there is none here.
    """
    if daemon.is_remote():
        raise WorkerUnavailableError(
            "the Docker daemon is on another machine and does not see the checkpoint",
            hint="use a daemon on this machine, or pip install 'wuwan[gpu]'",
        )
    if not daemon.may_answer():
        raise WorkerUnavailableError("no Docker daemon here", hint="pip install 'wuwan[gpu]'")
    import docker.errors

    reference = image or images.own_image("gpu")
    with daemon.connected(30.0) as client:
        try:
            client.images.get(reference)
        except docker.errors.ImageNotFound:
            raise WorkerUnavailableError(
                f"the image {reference} is not there", hint=images.build_hint("gpu")
            ) from None
    return reference
