"""What a run can be told, as values."""

from __future__ import annotations

from dataclasses import dataclass, field

from wuwan_runner.discover import Selection as Selection
from wuwan_runner.errors import UsageError

TTL = 30.0  # seconds that a worker stays warm after its last work


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """Which worker is wanted. Two runs with an equal spec share workers."""

    model: str = "imagenet-zh"  # a bundle's name, or a directory
    backend: str = "auto"  # "auto" or a name in `wuwan_worker.backends.REGISTRY`
    gpus: str = "auto"  # "auto", "all", "none" or indices such as "0,1"
    image: str = ""  # the container image; empty for this version's own
    memory: str = "4g"  # the container's memory limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Deadlines, in seconds. No wait is without one."""

    start: float = 60.0  # from the start of a worker to its first answer
    batch: float = 30.0  # without any answer while images are under way …
    per_image: float = 1.0  # … plus this for each of them
    docker: float = 30.0  # one call to the Docker daemon
    control: float = 5.0  # a question to a worker

    def silence(self, images: int) -> float:
        """How long a worker may say nothing while it has `images` images."""
        return self.batch + self.per_image * images


@dataclass(frozen=True, slots=True, kw_only=True)
class TagOptions:
    """Everything `Tagger` needs to know."""

    spec: WorkerSpec = field(default_factory=WorkerSpec)
    runner: str = "auto"  # "auto" or a name in `launchers.REGISTRY`
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
    max_restarts: int = 20  # workers lost in a row without one image labelled

    def __post_init__(self) -> None:
        """Raises UsageError where no image could get a label."""
        if self.top_k < 1 or not 0 <= self.min_score <= 1:
            raise UsageError(
                f"top_k {self.top_k} and min_score {self.min_score}: at least 1, and 0 to 1"
            )
