"""What `wuwan doctor` looks at. Every check has a deadline, and none starts a worker."""

from __future__ import annotations

import contextlib
import enum
import importlib.metadata
import importlib.util
import os
import platform
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wuwan_runner.containers import daemon, endpoint, images
from wuwan_runner.doctor import orphans
from wuwan_runner.errors import WorkerUnavailableError
from wuwan_runner.gpus import nvidia, placement
from wuwan_runner.launchers import local
from wuwan_runner.options import Timeouts
from wuwan_runner.wire import address, control
from wuwan_worker import __version__
from wuwan_worker.shared import bundle, labels, landlock, private_dir, protocol, seccomp
from wuwan_worker.shared.private_dir import PrivateDir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

# Packages of the extra `cpu`: the distribution's name, and the name to import.
LOCAL_LIBRARIES = {
    "openvino": "openvino",
    "numpy": "numpy",
    "pillow": "PIL",
    "pillow-heif": "pillow_heif",
}
_CURE = "have {} writable, for yourself alone"
# What becomes of it where there is no such directory, and all else works.
_WITHOUT = {
    "cache": "networks are compiled anew at each start",
    "state": "runs share no workers in containers of a daemon that remaps users",
}
# The launchers, and what each cannot do without: names of checks.
NEEDS = {
    "docker": ("Docker daemon", "container image", "sockets"),
    "local": ("local libraries", "model imagenet-zh", "sockets"),
}


class Outcome(enum.StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"  # something that one may want is missing
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    name: str
    outcome: Outcome
    detail: str  # what was found
    advice: str = ""  # what to do about it


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What to look at."""

    image: str = ""
    directories: Mapping[str, Sequence[PrivateDir | Path]] = field(default_factory=dict)
    """By purpose, best first: ours alone, or where one that is ours alone will be made."""
    deadline: float = 15.0  # seconds for each group of checks; they run side by side
    timeouts: Timeouts = field(default_factory=lambda: Timeouts(docker=10.0, control=2.0))


def run(scope: Scope) -> list[Check]:
    """All checks, in a fixed order."""
    groups: list[tuple[str, Callable[[], Iterable[Check]]]] = [
        ("Python", lambda: [python()]),
        ("wuwan", lambda: [Check("wuwan", Outcome.OK, __version__)]),
        ("Docker daemon", lambda: docker(scope)),
        ("local libraries", lambda: [local_libraries()]),
        ("sandbox", lambda: [sandbox()]),
        ("local GPU", lambda: [local_gpu()]),
        ("models", models),
        ("sockets", lambda: [sockets()]),
        ("directories", lambda: [directory(*item) for item in scope.directories.items()]),
        ("warm workers", lambda: [warm_workers(scope)]),
        ("orphans", lambda: [orphaned(scope)]),
    ]
    running = [_Group(name, group) for name, group in groups]
    end = time.monotonic() + scope.deadline
    return [check for group in running for check in group.result(end)]


def usable(checks: Iterable[Check]) -> dict[str, bool]:
    """Which launchers work, by these checks."""
    good = {check.name for check in checks if check.outcome is not Outcome.FAIL}
    return {launcher: good.issuperset(needs) for launcher, needs in NEEDS.items()}


class _Group:
    """Some checks in a thread of their own, so that one that hangs cannot hold up the others."""

    def __init__(self, name: str, work: Callable[[], Iterable[Check]]) -> None:
        self._name = name
        self._work = work
        self._checks: list[Check] | None = None
        # A daemon thread: one that hangs in the kernel must not hold up the end of the process.
        self._thread = threading.Thread(target=self._run, name=f"check {name}", daemon=True)
        self._started = time.monotonic()
        self._thread.start()

    def _run(self) -> None:
        try:
            self._checks = list(self._work())
        except Exception as error:
            self._checks = [Check(self._name, Outcome.FAIL, f"{type(error).__name__}: {error}")]

    def result(self, end: float) -> list[Check]:
        """The checks, or a failed one if they are not done at the time `end`."""
        self._thread.join(max(0.0, end - time.monotonic()))
        if self._checks is not None:
            return self._checks
        waited = time.monotonic() - self._started
        return [Check(self._name, Outcome.FAIL, f"no answer within {waited:.0f} s")]


def python() -> Check:
    """The interpreter."""
    detail = f"{platform.python_version()} at {sys.executable}"
    if sys.platform != "linux":
        return Check("Python", Outcome.FAIL, f"{detail} on {sys.platform}", "wuwan needs Linux")
    return Check("Python", Outcome.OK, detail)


def docker(scope: Scope) -> list[Check]:
    """The daemon, whether it offers GPUs, and the image."""
    try:
        target = endpoint.current()
        if not target.may_answer:
            raise WorkerUnavailableError(f"no Docker daemon at {target}", hint=daemon_advice())
        with daemon.connected(scope.timeouts.docker) as client:
            version, info = client.api.version(), client.api.info()
            found = [_image(client, images.reference(scope.image))]
            if placement.offered(info, 0) and not scope.image:
                found.append(_image(client, images.own_image("gpu"), "gpu"))
    except WorkerUnavailableError as error:
        return _no_docker(error)
    detail = f"{version.get('Version')}, API {version.get('ApiVersion')}, at {target}"
    return [Check("Docker daemon", Outcome.OK, detail), gpu(info), *found]


def daemon_advice() -> str:
    """What to do where no daemon is."""
    return "install and start Docker, or set DOCKER_HOST; the local runner works without"


def _no_docker(error: WorkerUnavailableError) -> list[Check]:
    reason = "needs the Docker daemon"
    return [
        Check("Docker daemon", Outcome.FAIL, str(error), error.hint),
        Check("NVIDIA GPU", Outcome.WARN, reason),
        Check("container image", Outcome.FAIL, reason),
    ]


def gpu(info: Mapping[str, Any]) -> Check:
    """Whether the daemon can give a container a GPU, by its /info."""
    offer = placement.offered(info, 0)
    if offer is None:
        return Check(
            "NVIDIA GPU",
            Outcome.WARN,
            "the daemon offers none: no `nvidia` runtime and no CDI device",
            "for a GPU, install the NVIDIA driver and Container Toolkit, and restart Docker",
        )
    return Check("NVIDIA GPU", Outcome.OK, f"offered by the daemon ({offer.driver})")


def local_gpu() -> Check:
    """Whether a local worker would find a GPU, and what it needs there."""
    name = "local GPU"
    devices = nvidia.visible(os.environ, nvidia.count())
    if not devices:
        return Check(name, Outcome.WARN, "none is visible: local workers use the CPU")
    detail = f"visible: {', '.join(devices)}"
    if missing := local.missing("torch"):
        detail = f"{detail}; not installed: {', '.join(missing)}"
        return Check(name, Outcome.WARN, detail, "pip install 'wuwan[gpu]'")
    return Check(name, Outcome.OK, detail)


def _image(client: Any, reference: str, variant: str = "cpu") -> Check:
    import docker.errors

    # Whoever has no image for GPUs has a CPU.
    name, worst, advice = {
        "cpu": ("container image", Outcome.FAIL, images.build_hint("cpu")),
        "gpu": ("GPU image", Outcome.WARN, images.build_hint("gpu")),
    }[variant]
    try:
        found = client.api.inspect_image(reference)
    except docker.errors.ImageNotFound:
        return Check(name, worst, f"{reference} is not there", advice)
    labels = found["Config"].get("Labels") or {}
    version = labels.get("org.opencontainers.image.version", "?")
    identity = str(found["Id"]).removeprefix("sha256:")[:12]
    detail = f"{reference} ({identity}), {found['Size'] / 1e6:,.0f} MB, version {version}"
    if version != __version__:
        return Check(name, Outcome.WARN, f"{detail}; this is {__version__}", advice)
    return Check(name, Outcome.OK, detail)


def local_libraries() -> Check:
    """What the local runner imports; looked up, not imported."""
    missing = [
        name for name, module in LOCAL_LIBRARIES.items() if importlib.util.find_spec(module) is None
    ]
    if missing:
        return Check(
            "local libraries",
            Outcome.FAIL,
            f"not installed: {', '.join(missing)}",
            "pip install 'wuwan[cpu]'; the docker runner works without",
        )
    versions = []
    for name in LOCAL_LIBRARIES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:  # put there by hand
            versions.append(name)
    return Check("local libraries", Outcome.OK, ", ".join(versions))


def sandbox() -> Check:
    """What a local worker gives up on this kernel, so that a photo can take over no more."""
    filtered = f"seccomp: {seccomp.HOLDS}" if seccomp.offered() else "no seccomp"
    try:
        version = landlock.abi()
    except OSError as error:
        return Check(
            "sandbox",
            Outcome.WARN,
            f"no Landlock ({error.strerror}): a local worker could write to your files; {filtered}",
            "a kernel from 5.13 on with `landlock` in its `lsm=`; or use --runner docker",
        )
    detail = f"Landlock ABI {version}: {landlock.holds(version)}; {filtered}"
    return Check("sandbox", Outcome.OK if seccomp.offered() else Outcome.WARN, detail)


def models() -> list[Check]:
    """Each bundle against its sha256 sums."""
    if not bundle.embedded():
        return [Check("models", Outcome.FAIL, "none is installed", "install wuwan again")]
    return [_model(name) for name in bundle.installed()]


def _model(name: str) -> Check:
    try:
        model = bundle.load(bundle.find(name))
        model.verify()
        labels.read(model)
    except bundle.BundleError as error:
        cure = f"wuwan model remove {name}, and add it again"
        advice = "install wuwan again" if name in bundle.embedded() else cure
        return Check(f"model {name}", Outcome.FAIL, str(error), advice)
    size = sum((model.root / file).stat().st_size for file in model.files)
    detail = f"version {model.version}, {model.classes:,} outputs, {size / 1e6:.0f} MB, sums right"
    return Check(f"model {name}", Outcome.OK, detail)


def sockets() -> Check:
    """Whether a descriptor travels through an abstract Unix socket and can be read after."""
    target = address.private("doctor")
    listener = address.listen(target)
    if listener is None:
        return Check("sockets", Outcome.FAIL, "no abstract Unix socket can be bound")
    probe = protocol.probe_descriptor()
    try:
        sender = address.connect(target, 2.0, bound=True)
        if sender is None:
            return Check("sockets", Outcome.FAIL, "an abstract Unix socket cannot be connected to")
        listener.settimeout(2.0)
        receiver, _ = listener.accept()
        with sender, receiver:
            socket.send_fds(sender, [b"x"], [probe])
            receiver.settimeout(2.0)
            _, received, _, _ = socket.recv_fds(receiver, 1, 1)
            content = os.pread(received[0], len(protocol.PROBE), 0) if received else b""
            for descriptor in received:
                os.close(descriptor)
    except OSError as error:
        return Check("sockets", Outcome.FAIL, f"descriptors cannot be passed: {error}")
    finally:
        os.close(probe)
        listener.close()
    if content != protocol.PROBE:
        return Check("sockets", Outcome.FAIL, "a passed descriptor does not arrive readable")
    return Check("sockets", Outcome.OK, "file descriptors can be passed")


def directory(purpose: str, candidates: Sequence[PrivateDir | Path]) -> Check:
    """Which of `candidates` is used, as the program finds it; nothing is made."""
    name = f"{purpose} directory"
    problems = []
    for candidate in candidates:
        if problem := _problem(candidate):
            problems.append(problem)
        elif problems:
            detail = f"{'; '.join(problems)}; {candidate} is used"
            return Check(name, Outcome.WARN, detail, _CURE.format(candidates[0]))
        else:
            return Check(name, Outcome.OK, str(candidate))
    detail, advice = "; ".join(problems), _CURE.format(candidates[0])
    if purpose in _WITHOUT:
        return Check(name, Outcome.WARN, f"{detail}: {_WITHOUT[purpose]}", advice)
    return Check(name, Outcome.FAIL, f"none can be used: {detail}", advice)


def _problem(candidate: PrivateDir | Path) -> str:
    if isinstance(candidate, PrivateDir):
        return candidate.problem()
    return private_dir.exposed(candidate)


def warm_workers(scope: Scope) -> Check:
    """Workers that are up and would serve the next run."""
    seen = control.survey(scope.timeouts.control)
    silent = [worker for worker in seen if worker.status is None]
    if silent:
        return Check(
            "warm workers",
            Outcome.WARN,
            f"{len(seen)}, of which {len(silent)} do not answer: {silent[0].problem}",
            "a run replaces a worker that hangs",
        )
    kinds = [f"{one.status.model} on {one.status.device}" for one in seen if one.status]
    detail = f"{len(seen)}: {', '.join(kinds)}" if kinds else "none"
    return Check("warm workers", Outcome.OK, detail)


def orphaned(scope: Scope) -> Check:
    """What dead runs have left."""
    found = all_orphans(scope.timeouts)
    if not found:
        return Check("orphans", Outcome.OK, "none")
    detail = "; ".join(f"{item.kind} {item.name}: {item.reason}" for item in found)
    return Check("orphans", Outcome.WARN, detail, "wuwan doctor --clean removes them")


def all_orphans(timeouts: Timeouts) -> list[orphans.Orphan]:
    """Orphan directories, and containers if a daemon answers."""
    found = orphans.directories() + orphans.unfinished_models()
    with contextlib.suppress(WorkerUnavailableError):  # the check of the daemon says so
        if daemon.may_answer():
            found += orphans.containers(timeouts)
    return found
