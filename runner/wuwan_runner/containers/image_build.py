"""Builds the container image, from a checkout or from an installed wheel."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import wuwan_worker
from wuwan_runner.containers import daemon, images, model_mount
from wuwan_runner.errors import ModelError, UsageError, WorkerUnavailableError, WuwanError
from wuwan_worker.shared import bundle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import docker

    from wuwan_worker.shared.bundle import Bundle

_PACKAGE = Path(__file__).resolve().parents[1]
VARIANTS = ("cpu", "gpu")
_FILES = (
    "Dockerfile",
    *(f"image/requirements-{variant}.txt" for variant in VARIANTS),
    "image/推理.py",
)
_WORKER = "image/wuwan_worker"
_TAIL = 25  # log lines shown when a build fails


class BuildError(WuwanError):
    """The image could not be built."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """How to build."""

    tag: str = ""  # empty for this version's and variant's own name
    variant: str = "cpu"  # one of VARIANTS
    base: str = ""  # empty for the Dockerfile's default
    arguments: Mapping[str, str] | None = None
    models: tuple[str, ...] = ()  # bundles to put into it
    network: str | None = None  # of the build's steps, as `docker build --network`
    pull: bool = False  # look for a newer base image
    cache: bool = True
    silence: int = 900  # seconds without a word from the builder; a slow download is silent
    docker: float = 30.0  # seconds for any other call to the daemon


@dataclass(frozen=True, slots=True)
class Built:
    """The image."""

    reference: str
    id: str
    size: int  # bytes


def parse_arguments(values: list[str]) -> dict[str, str]:
    """`--build-arg` as docker's: NAME=VALUE, or NAME for the environment's value if it has one.

    Nothing else of the environment reaches the build, since an index URL may hold a password.

    Raises:
        UsageError: if there is no name.
    """
    arguments: dict[str, str] = {}
    for value in values:
        name, equals, content = value.partition("=")
        if not name:
            raise UsageError(f"--build-arg {value!r} has no name", hint="--build-arg NAME=VALUE")
        if equals:
            arguments[name] = content
        elif name in os.environ:
            arguments[name] = os.environ[name]
    return arguments


def context_files() -> dict[str, Path]:
    """What the Dockerfile copies: the name in the build context, and the file.

    Raises:
        BuildError: if this installation has no Dockerfile.
    """
    # The installed package carries the files, a checkout has them in their places.
    for root in (_PACKAGE / "build_context", _PACKAGE.parents[1]):
        if all((root / name).is_file() for name in _FILES):
            break
    else:
        raise BuildError(
            "this installation of wuwan lacks the files of the container image",
            hint="install the wheel, or work in a checkout of the repository",
        )
    worker = Path(wuwan_worker.__file__).resolve().parent
    files = {name: root / name for name in _FILES}
    for path in worker.rglob("*"):
        if path.is_file() and path.suffix != ".pyc" and "__pycache__" not in path.parts:
            files[f"{_WORKER}/{path.relative_to(worker).as_posix()}"] = path
    return dict(sorted(files.items()))


def write_context(file: IO[bytes]) -> None:
    """Write the build context as a tar archive that depends on the files' content alone.

    Owner, mode and time of the checkout stay out of it, so that Docker's cache hits.
    """
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, path in context_files().items():
            with path.open("rb") as content:
                _add(archive, name, content)


def build(options: BuildOptions, report: Callable[[str], None]) -> Built:
    """Build the image; `report` gets the builder's lines as they come.

    Raises:
        BuildError: if a step fails; the message ends with the log's last lines.
        UsageError: if the image cannot have that name.
        ModelError: if a bundle that is to be put into it is not there.
        WorkerUnavailableError: if there is no daemon, or it goes silent.
    """
    from docker.utils.build import match_tag

    bundles = [_bundle(model) for model in options.models]
    reference = options.tag or images.own_image(options.variant)
    if not match_tag(reference):
        raise UsageError(f"--tag {reference!r} is no name for an image", hint="for example wuwan:1")
    arguments = {
        "VERSION": wuwan_worker.__version__,
        "VARIANT": options.variant,
        **(options.arguments or {}),
    }
    if options.base:
        arguments["BASE"] = options.base
    with daemon.connected(options.docker) as client:
        identity = _build(
            client,
            write_context,
            options,
            report,
            # The name goes to the complete image alone.
            tag=None if bundles else reference,
            buildargs=arguments,
            network_mode=options.network,
            pull=options.pull,
            nocache=not options.cache,
            use_config_proxy=True,
        )
        if bundles:
            _build(
                client,
                lambda file: write_models(file, identity, bundles),
                options,
                report,
                tag=reference,
                labels={images.LABEL_MODELS: model_mount.label(bundles)},
            )
        image = client.images.get(reference)
    return Built(reference, str(image.id), int(image.attrs["Size"]))


def write_models(file: IO[bytes], base: str, bundles: Sequence[Bundle]) -> None:
    """Write the build context that puts bundles on top of the image `base`.

    A layer of its own, so that neither the worker nor another model is built anew for it.
    """
    lines = [f"FROM {base}", f"COPY models {model_mount.INSIDE}"]
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        _add(archive, "Dockerfile", io.BytesIO("\n".join(lines).encode()))
        for found in bundles:
            for name in sorted({bundle.MANIFEST, *found.files}):
                with (found.root / name).open("rb") as content:
                    _add(archive, f"models/{model_mount.name(found)}/{name}", content)


def _add(archive: tarfile.TarFile, name: str, content: IO[bytes]) -> None:
    info = tarfile.TarInfo(name)
    info.size = content.seek(0, os.SEEK_END)
    info.mode = 0o644
    content.seek(0)
    archive.addfile(info, content)


def _bundle(model: str) -> Bundle:
    try:
        found = bundle.load(bundle.find(model))
        found.verify()
    except bundle.BundleError as error:
        raise ModelError(str(error), hint="`wuwan model list` shows the models") from None
    return found


def _build(
    client: docker.DockerClient,
    write: Callable[[IO[bytes]], None],
    options: BuildOptions,
    report: Callable[[str], None],
    **settings: Any,
) -> str:
    """Run one build, whose context `write` writes; the image's id."""
    with tempfile.TemporaryFile() as context:
        write(context)
        context.seek(0)
        events = client.api.build(
            fileobj=context,
            custom_context=True,
            rm=True,
            forcerm=True,
            decode=True,
            timeout=options.silence,  # of each read, so: of a silence
            **settings,
        )
        return _follow(_watched(events, options.silence), report)


def _watched(events: Iterator[dict[str, Any]], silence: int) -> Iterator[dict[str, Any]]:
    """The events; a silence or a cut connection in their midst becomes a WorkerUnavailableError."""
    import urllib3.exceptions

    try:
        yield from events
    except urllib3.exceptions.ReadTimeoutError:
        raise WorkerUnavailableError(
            f"the build said nothing for {silence} s, so it was given up",
            hint="is the package index reachable from a container? see --build-arg and --network",
        ) from None
    except urllib3.exceptions.HTTPError as error:
        raise WorkerUnavailableError(f"the Docker daemon broke off the build: {error}") from None


def _follow(events: Iterator[dict[str, Any]], report: Callable[[str], None]) -> str:
    """Report what the builder says; the id of the image that it has built."""
    tail: deque[str] = deque(maxlen=_TAIL)
    identity = ""
    for event in events:
        identity = str((event.get("aux") or {}).get("ID") or identity)
        if error := event.get("error"):
            lines = "\n".join(f"  {line}" for line in tail)
            raise BuildError(
                f"the image was not built: {str(error).strip()}\n{lines}".rstrip(),
                hint="--no-cache builds every step anew; --base and --build-arg help behind a "
                "proxy or a private index",
            )
        # Layers being downloaded come with a moving bar; only their first and last words are lines.
        text = event.get("stream") or ("" if event.get("progressDetail") else _status(event))
        for line in text.splitlines():
            if line.strip():
                tail.append(line.rstrip())
                report(line.rstrip())
    return identity


def _status(event: dict[str, Any]) -> str:
    status = str(event.get("status", ""))
    return f"{event['id']}: {status}" if status and event.get("id") else status
