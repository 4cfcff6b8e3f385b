"""Who is to blame for a lost worker: the table of ARCHITECTURE.md ("When a worker is lost")."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from wuwan_runner.errors import EndedByHandError, NoSharedFilesError, WorkerUnavailableError
from wuwan_runner.run.blame import TRUST, Cause, Loss, Standing, Verdict, decide
from wuwan_runner.worker import WorkerExit

CRASH = WorkerExit("signal SIGSEGV", "the last line")
TTL = WorkerExit("exit code 0", in_order=True)
STOPPED = WorkerExit("signal SIGTERM", by_hand=True)
UNKNOWN = WorkerExit()

UP = {"welcomed": True, "ready": True}
SHARED = UP | {"started_here": True, "outstanding": 3, "images": 3}
PRIVATE = UP | {"started_here": True, "private": True, "outstanding": 1, "images": 1}

TABLE: list[tuple[str, dict[str, Any], Verdict]] = [
    # It never answered.
    ("no shared files", {"start_error": NoSharedFilesError("no")}, Verdict.USE_EXEC),
    ("ended by hand as it starts", {"start_error": EndedByHandError("no")}, Verdict.LOOK_AGAIN),
    ("cannot start", {"start_error": WorkerUnavailableError("no")}, Verdict.START_FAILED),
    ("a warm one's TTL ends", {"exit": UNKNOWN}, Verdict.LOOK_AGAIN),
    ("a warm one crashes first", {"exit": CRASH}, Verdict.LOOK_AGAIN),
    ("ours ends in order first", {"started_here": True, "exit": TTL}, Verdict.LOOK_AGAIN),
    ("ours is stopped first", {"started_here": True, "exit": STOPPED}, Verdict.LOOK_AGAIN),
    ("ours crashes first", {"started_here": True, "exit": CRASH}, Verdict.NOT_UP),
    # It answered, and its model was not loaded yet.
    (
        "ours crashes as it loads",
        {"welcomed": True, "started_here": True, "exit": CRASH},
        Verdict.NOT_LOADED,
    ),
    (
        "a private one crashes as it loads",
        {"welcomed": True, "private": True, "exit": CRASH},
        Verdict.NOT_LOADED,
    ),
    (
        "ours hangs as it loads",
        {"welcomed": True, "started_here": True, "cause": Cause.SILENT},
        Verdict.NOT_LOADED,
    ),
    (
        "ours is stopped as it loads",
        {"welcomed": True, "started_here": True, "exit": STOPPED},
        Verdict.ELSEWHERE,
    ),
    ("another's crashes as it loads", {"welcomed": True, "exit": CRASH}, Verdict.SUSPECT),
    (
        "ours crashes as it loads, with images that were sent ahead",
        SHARED | {"ready": False, "exit": CRASH},
        Verdict.SUSPECT,
    ),
    # It worked, for several.
    ("crashed", SHARED | {"exit": CRASH}, Verdict.SUSPECT),
    ("gone without a trace", SHARED | {"exit": UNKNOWN}, Verdict.SUSPECT),
    ("it says that its backend failed", SHARED | {"cause": Cause.TOLD}, Verdict.SUSPECT),
    ("it broke the protocol", SHARED | {"cause": Cause.NONSENSE}, Verdict.SUSPECT),
    ("hung", SHARED | {"cause": Cause.SILENT}, Verdict.SUSPECT),
    ("stopped", SHARED | {"exit": STOPPED}, Verdict.ELSEWHERE),
    ("crashed with nothing to do", UP | {"started_here": True, "exit": CRASH}, Verdict.SUSPECT),
    # It was private.
    ("its first image kills it", PRIVATE | {"exit": CRASH}, Verdict.CULPRIT),
    ("its first image, no trace", PRIVATE | {"exit": UNKNOWN}, Verdict.CULPRIT),
    ("its first image, told", PRIVATE | {"cause": Cause.TOLD}, Verdict.CULPRIT),
    ("its first image, nonsense", PRIVATE | {"cause": Cause.NONSENSE}, Verdict.CULPRIT),
    ("its second image", PRIVATE | {"answered": 1, "exit": CRASH}, Verdict.SUSPECT),
    (
        "it hangs on its second image",
        PRIVATE | {"answered": 1, "cause": Cause.SILENT},
        Verdict.CULPRIT,
    ),
    ("stopped with its first image", PRIVATE | {"exit": STOPPED}, Verdict.ELSEWHERE),
    ("the known picture kills it", PRIVATE | {"images": 0, "exit": CRASH}, Verdict.SUSPECT),
    (
        "it hangs on the known picture",
        PRIVATE | {"images": 0, "cause": Cause.SILENT},
        Verdict.SUSPECT,
    ),
]


@pytest.mark.parametrize(
    ("known", "verdict"), [row[1:] for row in TABLE], ids=[r[0] for r in TABLE]
)
def test_the_table(known: dict[str, Any], verdict: Verdict) -> None:
    """Each row has its verdict."""
    assert decide(Loss(**{"cause": Cause.ENDED} | known)) is verdict


def test_every_verdict_is_in_the_table() -> None:
    """A verdict that no row has would be one that nobody has thought of."""
    assert {verdict for _, _, verdict in TABLE} == set(Verdict)


def losses() -> list[Loss]:
    """All kinds of losses there are."""
    flags = ("started_here", "welcomed", "ready", "private")
    return [
        Loss(
            cause=cause,
            exit=exit_,
            answered=answered,
            outstanding=outstanding,
            images=images,
            **dict(zip(flags, values, strict=True)),
        )
        for cause, exit_, answered, (outstanding, images) in itertools.product(
            Cause, (UNKNOWN, CRASH, TTL, STOPPED), (0, 5), ((0, 0), (1, 0), (1, 1))
        )
        for values in itertools.product((False, True), repeat=4)
    ]


def test_no_image_is_blamed_that_was_not_alone() -> None:
    """Nor for the end of a worker that somebody has stopped, or that was never up."""
    for loss in losses():
        if decide(loss) is Verdict.CULPRIT:
            assert loss.private
            assert loss.images == 1
            assert loss.welcomed
            assert not loss.exit.by_hand


def test_a_stop_by_hand_counts_against_nothing() -> None:
    """Whatever the worker was doing: it is no image's fault, and no reason to give up."""
    for loss in losses():
        if loss.exit.by_hand and loss.cause is not Cause.SILENT:
            assert decide(loss) in (Verdict.LOOK_AGAIN, Verdict.ELSEWHERE)


def test_images_are_never_forgotten() -> None:
    """A verdict that ends the run, or looks for another worker, has no image that was sent."""
    for loss in losses():
        if loss.welcomed and loss.images:
            assert decide(loss) in (Verdict.CULPRIT, Verdict.SUSPECT, Verdict.ELSEWHERE)
        started = dataclasses.replace(loss, start_error=NoSharedFilesError("no"))
        assert decide(started) is Verdict.USE_EXEC


def test_standing() -> None:
    """One label is enough to blame ten images; a culprit is progress; a loss is none."""
    standing = Standing()
    assert standing.trust == 0
    standing.lost()
    standing.labelled()
    assert (standing.losses, standing.trust) == (0, TRUST)
    for _ in range(3):
        standing.lost()
        standing.blamed()
    assert (standing.losses, standing.trust) == (0, TRUST - 3)
    standing.lost()
    standing.lost()
    assert standing.losses == 2
