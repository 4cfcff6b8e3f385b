"""What a run wants of its workers, looked up once: the bundle that its model's name stands for.

Whatever is decided by the model afterwards (the worker's key, its backend, what is mounted into a
container) is decided by this value, so a bundle that is replaced meanwhile cannot make a worker of
two halves.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wuwan_runner.errors import UsageError, WorkerUnavailableError
from wuwan_worker.shared import bundle

if TYPE_CHECKING:
    from wuwan_runner.options import WorkerSpec
    from wuwan_worker.shared.bundle import Bundle


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model by its name, and the bundle that this is on this machine."""

    name: str  # as `WorkerSpec.model`: a bundle's name, or a directory
    found: Bundle | None  # None: it is not here; a container's image may hold it
    problem: str  # why it is not here
    embedded: bool  # it comes with wuwan, so it is in every image, too

    @property
    def required(self) -> Bundle:
        """The bundle, for those who cannot do without. Raises WorkerUnavailableError."""
        if self.found is None:
            raise WorkerUnavailableError(
                self.problem, hint="`wuwan model list` shows the models"
            ) from None
        return self.found

    @property
    def names(self) -> set[str]:
        """What records may call it; empty if that is not known here."""
        if self.found is None:
            return set()
        # Records of inputs that no worker has seen have it from the option.
        return {self.found.name, os.path.basename(self.name)}

    def check_level(self, level: str) -> None:
        """Raises UsageError if it is known here and has no such level of labels."""
        if not level or self.found is None:  # a worker that finds it in its image says so if not
            return
        if level not in self.found.levels:
            known = ", ".join(filter(None, self.found.levels))
            raise UsageError(
                f"model {self.found.name} has no level {level!r}",
                hint=f"its levels: {known}" if known else "its labels have no levels",
            )


@dataclass(frozen=True, slots=True)
class ResolvedSpec:
    """A `WorkerSpec`, and what its model is."""

    spec: WorkerSpec
    model: ResolvedModel


def model(name: str) -> ResolvedModel:
    """The model of that name; one that cannot be read is one that is not here."""
    embedded = name in bundle.embedded()
    try:
        return ResolvedModel(name, bundle.load(bundle.find(name)), "", embedded)
    except bundle.BundleError as error:
        return ResolvedModel(name, None, str(error), embedded)


def resolve(spec: WorkerSpec) -> ResolvedSpec:
    """What `spec` is here and now."""
    return ResolvedSpec(spec, model(spec.model))
