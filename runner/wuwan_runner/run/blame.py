"""What a lost worker means: who is to blame, and what is done. Pure: values in, a verdict out.

ARCHITECTURE.md has the table ("When a worker is lost"), and so has the test of this module.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wuwan_runner.errors import EndedByHandError, NoSharedFilesError
from wuwan_runner.worker import WorkerExit

if TYPE_CHECKING:
    from wuwan_runner.errors import WorkerUnavailableError

# Workers lost with an image before it is suspected of being the cause.
QUARANTINE_AFTER = 2
# Images that may be blamed for a worker's death on the strength of one label. Then it has to be
# seen again that workers label anything: if the GPU is lost, every image would be a culprit.
TRUST = 10


class Cause(enum.Enum):
    """How a loss is noticed."""

    ENDED = "the connection ended"
    TOLD = "the worker said why it cannot go on"
    SILENT = "no answer within the deadline; it has been killed"
    NONSENSE = "it broke the protocol"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What is known of a worker that is lost to a run."""

    cause: Cause
    exit: WorkerExit = field(default_factory=WorkerExit)  # empty if it lives, or is not known
    start_error: WorkerUnavailableError | None = None  # why this run could not start it
    started_here: bool = False  # this run has started it, or tried to
    welcomed: bool = False  # it has answered
    ready: bool = False  # its model was loaded
    private: bool = False  # it had one image at a time, of this run alone
    answered: int = 0  # images
    outstanding: int = 0  # images without an answer, the known picture among them
    images: int = 0  # the same without it

    @property
    def orderly(self) -> bool:
        """Whether it may have ended as workers do: by its TTL, or because somebody stopped it."""
        ended = not self.exit.reason or self.exit.in_order or self.exit.by_hand
        return ended and self.cause is not Cause.SILENT


class Verdict(enum.Enum):
    """What is done about a loss."""

    USE_EXEC = "descriptors do not reach workers of its kind: go over to the exec channel"
    START_FAILED = "it could not be started: the run ends with that error"
    LOOK_AGAIN = "nobody is to blame: find or start another one"
    NOT_UP = "it ended before it was up: the run ends"
    NOT_LOADED = "it ended while it loaded its model: the run ends"
    CULPRIT = "its one image is to blame: an error record"
    SUSPECT = "its images go elsewhere; each has lost one worker more"
    ELSEWHERE = "its images go elsewhere; somebody ended it, so they are not to blame"


def decide(loss: Loss) -> Verdict:
    """What a loss means."""
    if isinstance(loss.start_error, NoSharedFilesError):
        return Verdict.USE_EXEC
    if isinstance(loss.start_error, EndedByHandError):
        return Verdict.LOOK_AGAIN
    if loss.start_error is not None:
        return Verdict.START_FAILED
    if not loss.welcomed:
        return Verdict.LOOK_AGAIN if loss.orderly or not loss.started_here else Verdict.NOT_UP
    at_rest = not loss.ready and not loss.outstanding
    if at_rest and (loss.private or loss.started_here) and not loss.orderly:
        return Verdict.NOT_LOADED
    # There is proof against an image that was a private worker's first, unless somebody ended the
    # worker. One that hangs needs no such proof: it is the only one that has no answer.
    first = not loss.answered or loss.cause is Cause.SILENT
    if loss.private and loss.images and first and not loss.exit.by_hand:
        return Verdict.CULPRIT
    return Verdict.ELSEWHERE if loss.exit.by_hand else Verdict.SUSPECT


@dataclass(slots=True)
class Standing:
    """What speaks for the workers of a run, and what against them."""

    losses: int = 0
    """Workers lost in a row: since an image was labelled, or found to be the cause."""
    trust: int = 0
    """Images that may be blamed before the next label."""

    def labelled(self) -> None:
        """An image has labels: workers work."""
        self.losses = 0
        self.trust = TRUST

    def blamed(self) -> None:
        """An image was found to be the cause; that is progress."""
        self.losses = 0
        self.trust -= 1

    def lost(self) -> None:
        """A worker was lost, and no image is known to be the cause."""
        self.losses += 1
