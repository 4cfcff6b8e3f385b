"""What a run can be told, as values. Whatever is told is checked here, once for all who tell it: a
run never begins with options that it cannot have.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from wuwan_runner import bounds
from wuwan_worker.shared import bundle

TTL = 30.0  # seconds that a worker stays warm after its last work
LAUNCHERS = ("docker", "local")  # the names in `launchers.REGISTRY`
RUNNERS = ("auto", *LAUNCHERS)
BACKENDS = ("auto", *bundle.BACKENDS)
CHANNELS = ("auto", "socket", "exec")
# What every worker gives in credits, and well under what one frame may carry in descriptors.
MAX_BATCH = 32
MAX_WORKERS = 1000  # of one run on one machine: more is a slip of the keyboard
MAX_TOP_K = 1_000_000  # no model has as many labels
# A socket's timeout ends at 2^31 ms, 24 days.
MAX_TIMEOUT = 1_000_000  # seconds
MAX_TTL = 1_000_000_000  # seconds, 31 years


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """Which worker is wanted. Two runs with an equal spec share workers."""

    model: str = "imagenet-zh"  # a bundle's name, or a directory
    backend: str = "auto"  # "auto" or one of BACKENDS
    gpus: str = "auto"  # "auto", "all", "none" or indices such as "0,1"
    image: str = ""  # the container image; empty for this version's own
    memory: str = "4g"  # the container's memory limit

    def __post_init__(self) -> None:
        """Raises OptionError."""
        bounds.text("model", self.model, path=True)
        bounds.one_of("backend", self.backend, BACKENDS)
        # Two that mean the same GPUs are equal.
        object.__setattr__(self, "gpus", bounds.gpus("gpus", self.gpus))
        bounds.text("image", self.image)
        bounds.memory("memory", self.memory)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which files of a directory are taken."""

    recursive: bool = True
    hidden: bool = False  # files and directories whose name begins with a dot
    include: tuple[str, ...] = ()  # patterns; if any, they replace the test of the extension
    exclude: tuple[str, ...] = ()  # patterns for files and directories

    def __post_init__(self) -> None:
        """Raises OptionError."""
        bounds.of_kind("selection.recursive", self.recursive, bool, "True or False")
        bounds.of_kind("selection.hidden", self.hidden, bool, "True or False")
        bounds.patterns("selection.include", self.include)
        bounds.patterns("selection.exclude", self.exclude)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Deadlines, in seconds. No wait is without one."""

    start: float = 60.0  # from the start of a worker to its first answer
    batch: float = 30.0  # without any answer while images are under way …
    per_image: float = 1.0  # … plus this for each of them
    open: float = 30.0  # to open one input
    docker: float = 30.0  # one call to the Docker daemon
    control: float = 5.0  # a question to a worker

    def __post_init__(self) -> None:
        """Raises OptionError."""
        for one in fields(self):
            option, value = f"timeouts.{one.name}", getattr(self, one.name)
            bounds.number(option, value, 0, MAX_TIMEOUT, unit="seconds", over=True)

    def silence(self, images: int) -> float:
        """How long a worker may say nothing while it has `images` images."""
        return self.batch + self.per_image * images


@dataclass(frozen=True, slots=True, kw_only=True)
class TagOptions:
    """Everything `Tagger` needs to know."""

    spec: WorkerSpec = field(default_factory=WorkerSpec)
    runner: str = "auto"  # "auto" or one of LAUNCHERS
    channel: str = "auto"  # how containers get images: "socket", "exec", or what works
    workers: int | None = None  # None: one for each chosen GPU, one on a CPU
    top_k: int = 5
    min_score: float = 0.0
    exact: bool = False
    strict: bool = False  # images whose data are damaged are errors, where they have warnings
    level: str = ""  # of the labels; empty for the bundle's default
    batch_size: int = 8  # images in one message
    ttl: float | None = None  # seconds a worker stays warm; None: its own, TTL for a new one
    selection: Selection = field(default_factory=Selection)
    timeouts: Timeouts = field(default_factory=Timeouts)
    max_cached: int = 3  # idle workers of all kinds that are kept when another one starts
    max_restarts: int = 20  # workers lost in a row, no image labelled and no culprit found

    def __post_init__(self) -> None:
        """Raises OptionError."""
        bounds.of_kind("spec", self.spec, WorkerSpec, "a WorkerSpec")
        bounds.one_of("runner", self.runner, RUNNERS)
        bounds.one_of("channel", self.channel, CHANNELS)
        if self.workers is not None:
            bounds.whole("workers", self.workers, 1, MAX_WORKERS)
        bounds.whole("top_k", self.top_k, 1, MAX_TOP_K)
        bounds.number("min_score", self.min_score, 0, 1)
        bounds.of_kind("exact", self.exact, bool, "True or False")
        bounds.of_kind("strict", self.strict, bool, "True or False")
        bounds.text("level", self.level)
        bounds.whole("batch_size", self.batch_size, 1, MAX_BATCH)
        if self.ttl is not None:
            bounds.number("ttl", self.ttl, 0, MAX_TTL, unit="seconds")
        bounds.of_kind("selection", self.selection, Selection, "a Selection")
        bounds.of_kind("timeouts", self.timeouts, Timeouts, "a Timeouts")
        bounds.whole("max_cached", self.max_cached, 1)
        bounds.whole("max_restarts", self.max_restarts, 0)
