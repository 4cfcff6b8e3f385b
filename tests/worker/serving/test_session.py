"""One client's conversation, as values: what it says, and what the server has to do then."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from wuwan_worker.jobs import Options
from wuwan_worker.serving.session import (
    MAX_UNREAD,
    ClientSession,
    Close,
    Greet,
    Recall,
    Send,
    StopWorker,
    Take,
    TellLogs,
    TellStatus,
    Terms,
    TurnAway,
)
from wuwan_worker.shared.protocol import (
    VERSION,
    Cancel,
    Cancelled,
    Done,
    End,
    FatalCode,
    Hello,
    ImageOptions,
    Images,
    Labelled,
    LogsRequest,
    Ready,
    Results,
    StatusRequest,
    Stop,
    Wanted,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wuwan_worker.serving.session import Action
    from wuwan_worker.shared.protocol import Result, ToWorker

TERMS = Terms(model="m", credits=4, levels=("coarse", "fine"), default_level="coarse")
TOKEN = "5e" * 32
OPTIONS = Options(top_k=5, min_score=0.0, exact=False, level="coarse")


def greeted(**fields: Any) -> ClientSession:
    """A session after its Hello."""
    session = ClientSession(TERMS)
    hello = Hello(**fields)
    assert session.received(hello, readable=True) == [Greet(hello, True)]
    return session


def tagging(count: int) -> ClientSession:
    """One that has sent the images 0 to `count`."""
    session = greeted()
    sent = session.received(Images(ids=list(range(count))), descriptors=count)
    assert sent == [Take(list(range(count)), [OPTIONS] * count)]
    return session


def results(*ids: int) -> list[Result]:
    """Answers to those images."""
    return [Labelled(id=number, width=1, height=1, labels=()) for number in ids]


def refusal(actions: Sequence[Action]) -> TurnAway:
    """The one action that there is."""
    (action,) = actions
    assert isinstance(action, TurnAway)
    return action


# ---------------------------------------------------------------- the greeting


@pytest.mark.parametrize("readable", [True, False])
def test_a_hello_is_greeted(readable: bool) -> None:
    """And whether the probe could be read goes with it."""
    session = ClientSession(TERMS)
    assert not session.tagging
    assert session.received(Hello(), readable=readable) == [Greet(Hello(), readable)]
    assert session.tagging


@pytest.mark.parametrize(
    ("hello", "code", "words"),
    [
        (Hello(version=VERSION + 1), FatalCode.PROTOCOL, f"protocol {VERSION}, the client 3"),
        (Hello(ttl=-1.0), FatalCode.PROTOCOL, "a TTL of -1.0 seconds"),
        (Hello(ttl=math.nan), FatalCode.PROTOCOL, "a TTL of nan seconds"),
        (Hello(level="mid"), FatalCode.LEVEL, "no level 'mid' (it has: coarse, fine)"),
    ],
)
def test_a_hello_that_is_refused(hello: Hello, code: FatalCode, words: str) -> None:
    """It is said why, the client counts as nobody, and nothing more is heard from it."""
    session = ClientSession(TERMS)
    turned_away = refusal(session.received(hello, readable=True))
    assert turned_away.code == code
    assert words in turned_away.message
    assert not session.tagging
    assert session.received(Hello()) == []


@pytest.mark.parametrize("version", [0, VERSION - 1, VERSION + 1])
def test_another_version_may_ask_and_command(version: int) -> None:
    """Only tagging means something else there."""
    session = greeted(version=version, tagging=False)
    assert session.received(StatusRequest()) == [TellStatus()]
    assert session.received(Stop(if_idle=True)) == [StopWorker(if_idle=True)]
    assert refusal(session.received(Images(ids=[1]), descriptors=1)).code == FatalCode.PROTOCOL


@pytest.mark.parametrize("version", [VERSION, VERSION + 1])
@pytest.mark.parametrize("token", ["", TOKEN[1:], TOKEN.upper(), "é"])
def test_nobody_without_the_token(version: int, token: str) -> None:
    """Of any version: who asks and commands has to show it, too."""
    terms = Terms(model="m", credits=4, token=TOKEN)
    hello = Hello(version=version, token=token, tagging=False)
    assert refusal(ClientSession(terms).received(hello)).code == FatalCode.FORBIDDEN
    good = Hello(version=version, token=TOKEN, tagging=False)
    assert ClientSession(terms).received(good) == [Greet(good, False)]


@pytest.mark.parametrize(
    "message",
    [Images(ids=[]), Cancel(ids=[]), End(count=0), StatusRequest(), LogsRequest(), Stop()],
)
def test_nothing_before_hello(message: ToWorker) -> None:
    """Whatever it is, it is refused."""
    turned_away = refusal(ClientSession(TERMS).received(message))
    assert turned_away == TurnAway(FatalCode.PROTOCOL, f"{type(message).__name__} before Hello")


# ---------------------------------------------------------------- images


def test_images_and_their_end() -> None:
    """What was taken is counted, and Done says how many were answered, when all are."""
    session = tagging(3)
    assert not session.idle
    assert session.answered_with(results(1)) == [Send(Results(items=results(1)))]
    assert session.received(End(count=3)) == []
    assert session.answered_with(results(0, 2)) == [
        Send(Results(items=results(0, 2))),
        Send(Done(count=3)),
        Close(),
    ]
    assert session.received(StatusRequest()) == []


def test_an_end_after_the_last_answer() -> None:
    """It is over at once."""
    session = tagging(1)
    session.answered_with(results(0))
    assert session.idle
    assert session.received(End(count=1)) == [Send(Done(count=1)), Close()]
    assert not session.idle


def test_credits_are_what_is_unanswered() -> None:
    """An answer gives one back."""
    session = tagging(4)
    session.answered_with(results(0))
    assert isinstance(session.received(Images(ids=[4]), descriptors=1)[0], Take)
    assert "more than 4" in refusal(session.received(Images(ids=[5]), descriptors=1)).message


@pytest.mark.parametrize(
    ("message", "descriptors", "words"),
    [
        (Images(ids=[7]), 0, "1 images with 0 descriptors"),
        (Images(ids=[7]), 2, "1 images with 2 descriptors"),
        (Images(ids=[7, 8, 9, 10]), 4, "more than 4 images unanswered"),
        (Images(ids=[7], options=[ImageOptions()] * 2), 1, "1 images with 2 options"),
        (End(count=2), 0, "End says 2 images, 1 came"),
        (Hello(), 1, "a second Hello"),
    ],
)
def test_what_breaks_the_protocol(message: ToWorker, descriptors: int, words: str) -> None:
    """Nothing is taken then, and what had been taken is owed to nobody."""
    session = tagging(1)
    turned_away = refusal(session.received(message, descriptors=descriptors))
    assert turned_away == TurnAway(FatalCode.PROTOCOL, words)
    assert session.unanswered == 1
    assert session.answered_with(results(0)) == []
    assert session.unanswered == 0


@pytest.mark.parametrize("message", [Images(ids=[7]), Cancel(ids=[7])])
def test_no_images_from_who_does_not_tag(message: ToWorker) -> None:
    """Nobody would wait for their answers."""
    session = greeted(tagging=False)
    assert "does not tag" in refusal(session.received(message, descriptors=1)).message


def test_no_images_after_the_end() -> None:
    """The count is final."""
    session = tagging(1)
    session.received(End(count=1))
    assert "after End" in refusal(session.received(Images(ids=[1]), descriptors=1)).message


def test_an_image_may_have_options_of_its_own() -> None:
    """What it does not say is as in Hello, and as the bundle has it."""
    session = greeted(top_k=3, min_score=0.5, level="fine")
    own = [
        ImageOptions(),
        ImageOptions(top_k=0, exact=True, wanted=Wanted(digest=True)),
        ImageOptions(level="", min_score=0.0),
    ]
    assert session.received(Images(ids=[7, 8, 9], options=own), descriptors=3) == [
        Take(
            [7, 8, 9],
            [
                Options(top_k=3, min_score=0.5, exact=False, level="fine"),
                Options(top_k=0, min_score=0.5, exact=True, level="fine"),
                Options(top_k=3, min_score=0.0, exact=False, level="coarse"),
            ],
        )
    ]


def test_an_image_at_a_level_that_the_model_lacks() -> None:
    """Labels at another level would be a silent fall-back."""
    session = greeted()
    images = Images(ids=[7], options=[ImageOptions(level="mid")])
    assert refusal(session.received(images, descriptors=1)).code == FatalCode.LEVEL
    assert session.unanswered == 0


def test_images_that_are_taken_back() -> None:
    """They are answered as others are, so the counts stay right; after End, too."""
    session = tagging(3)
    assert session.received(End(count=3)) == []
    assert session.received(Cancel(ids=[1, 2, 99])) == [Recall(frozenset({1, 2, 99}))]
    gone: list[Result] = [Cancelled(id=1), Cancelled(id=2)]
    assert session.answered_with(gone) == [Send(Results(items=gone))]
    assert session.answered_with(results(0))[1:] == [Send(Done(count=3)), Close()]


# ---------------------------------------------------------------- questions and orders


@pytest.mark.parametrize("tags", [True, False])
def test_questions(tags: bool) -> None:
    """Anybody may ask."""
    session = greeted(tagging=tags)
    assert session.received(StatusRequest()) == [TellStatus()]
    assert session.received(LogsRequest()) == [TellLogs()]
    assert session.received(Stop()) == [StopWorker(if_idle=False)]


@pytest.mark.parametrize("message", [StatusRequest(), LogsRequest(), Stop()])
def test_who_does_not_read_may_not_ask(message: ToWorker) -> None:
    """Replies that are not read count."""
    session = greeted()
    assert session.received(message, unread=MAX_UNREAD) != []
    turned_away = refusal(session.received(message, unread=MAX_UNREAD + 1))
    assert turned_away == TurnAway(FatalCode.PROTOCOL, "replies are asked for and not read")


def test_who_tags_and_does_not_read_is_made_to_wait() -> None:
    """It may be slow; nothing of it is refused. Who only asks is."""
    session = greeted()
    assert session.listened_to(MAX_UNREAD)
    assert not session.listened_to(MAX_UNREAD + 1)
    assert greeted(tagging=False).listened_to(MAX_UNREAD + 1)
    assert ClientSession(TERMS).listened_to(MAX_UNREAD + 1)
    session.close()
    assert not session.listened_to(0)


def test_who_is_let_go_has_its_trailer() -> None:
    """With what it was answered, whatever it waits for; who only asks has none."""
    session = tagging(3)
    session.answered_with(results(1))
    assert session.let_go() == [Send(Done(count=1)), Close()]
    assert session.let_go() == []
    assert session.answered_with(results(2)) == []
    assert greeted(tagging=False).let_go() == [Close()]
    assert ClientSession(TERMS).let_go() == [Close()]


def test_ready_is_for_who_was_greeted() -> None:
    """Before its Welcome nobody hears anything, and after its end neither."""
    assert ClientSession(TERMS).loaded("CPU") == []
    session = greeted()
    assert session.loaded("CPU") == [Send(Ready(device="CPU"))]
    session.close()
    assert session.loaded("CPU") == []


def test_who_is_idle() -> None:
    """Who was greeted and is owed nothing; not who has not said Hello, or is on its way out."""
    assert not ClientSession(TERMS).idle
    session = greeted()
    assert session.idle
    session.close()
    assert not session.idle


# ---------------------------------------------------------------- draining


def test_draining_answers_what_was_taken() -> None:
    """Nothing more is taken, End is not asked for, and Done says how many were answered."""
    session = tagging(2)
    assert session.drain() == []
    assert session.received(Images(ids=[7]), descriptors=1) == []
    assert session.received(End(count=3)) == []
    assert session.received(StatusRequest()) == [TellStatus()]
    assert session.received(Cancel(ids=[1])) == [Recall(frozenset({1}))]
    assert session.answered_with(results(0, 1))[1:] == [Send(Done(count=2)), Close()]


def test_draining_is_the_end_of_who_is_owed_nothing() -> None:
    """At once; who only asks may go on, and is not told a count."""
    assert greeted().drain() == [Send(Done(count=0)), Close()]
    asking = greeted(tagging=False)
    assert asking.drain() == []
    assert asking.received(StatusRequest()) == [TellStatus()]


def test_a_hello_while_draining() -> None:
    """Who comes too late learns that nothing was taken."""
    session = ClientSession(TERMS)
    assert session.drain() == []
    assert session.received(Hello(), readable=True) == [
        Greet(Hello(), True),
        Send(Done(count=0)),
        Close(),
    ]
