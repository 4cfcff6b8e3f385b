"""What one client may say, and what has to be done then; sans-IO.

A session knows its client's Hello and its counts. It takes the client's messages, and what becomes
of its images, and gives *actions*: what the server, who has the sockets, the queue and the
lifecycle, has to do, in that order. So each rule of the conversation can be tested by values.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, assert_never

from wuwan_worker.jobs import Options
from wuwan_worker.shared import protocol
from wuwan_worker.shared.protocol import (
    Cancel,
    Done,
    End,
    FatalCode,
    Hello,
    ImageOptions,
    Images,
    LogsRequest,
    Ready,
    Result,
    Results,
    StatusRequest,
    Stop,
    ToClient,
    ToWorker,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

# Bytes of answers that a client may leave unread and still be listened to. An answer has some
# hundred bytes, so no client falls behind as far; one that never reads can make the worker keep
# this, and the answers to what it may have unanswered.
MAX_UNREAD = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On what terms a worker serves its clients."""

    model: str
    credits: int  # images that a client may have unanswered
    levels: tuple[str, ...] = ("",)  # that labels can be asked for at
    default_level: str = ""
    token: str = ""  # what clients have to show, if anything


# ---------------------------------------------------------------- actions


@dataclass(frozen=True, slots=True)
class Greet:
    """The client is served from now on; it is to have its Welcome."""

    hello: Hello
    readable: bool  # whether its probe could be read


@dataclass(frozen=True, slots=True)
class Send:
    """A message for the client."""

    message: ToClient


@dataclass(frozen=True, slots=True)
class Take:
    """Images to queue: the message's descriptors are theirs. Without this they are to be closed."""

    ids: Sequence[int]
    options: Sequence[Options]  # of each


@dataclass(frozen=True, slots=True)
class Recall:
    """Images to take out of the queue, where they are still there, and to answer as `Cancelled`."""

    ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class TellStatus:
    """The client asks for Status."""


@dataclass(frozen=True, slots=True)
class TellLogs:
    """The client asks for Logs."""


@dataclass(frozen=True, slots=True)
class StopWorker:
    """The client wants the worker to end, and to have its Stopping."""

    if_idle: bool


@dataclass(frozen=True, slots=True)
class TurnAway:
    """The connection ends with this Fatal; nothing else of the client counts."""

    code: FatalCode
    message: str


@dataclass(frozen=True, slots=True)
class Close:
    """All is said; the connection ends when the client has been sent it."""


Action: TypeAlias = (
    Greet | Send | Take | Recall | TellStatus | TellLogs | StopWorker | TurnAway | Close
)


# ---------------------------------------------------------------- the session


class ClientSession:
    """One client's side of the conversation, from its connection to its end."""

    def __init__(self, terms: Terms) -> None:
        self.hello: Hello | None = None
        self.unanswered = 0  # images that were taken
        self.answered = 0
        self.ended = False  # it has sent all its images
        self.closing = False  # it is not listened to any more
        self._terms = terms
        self._draining = False

    @property
    def tagging(self) -> bool:
        """Whether it counts as a client: who only asks or commands does not."""
        return self.hello is not None and self.hello.tagging

    @property
    def idle(self) -> bool:
        """Greeted, and owed nothing: whom it costs least to lose where places are short."""
        return self.hello is not None and not self.unanswered and not self.closing

    def listened_to(self, unread: int) -> bool:
        """Whether what the client sends is taken up now, with so many bytes unread by it.

        Who tags and does not read is made to wait: it may be slow, and has nothing done wrong. Who
        only asks is refused by `received`: a question has no flow control that would hold it up.
        """
        return not self.closing and (not self.tagging or unread <= MAX_UNREAD)

    def received(
        self, message: ToWorker, *, descriptors: int = 0, readable: bool = False, unread: int = 0
    ) -> list[Action]:
        """The client has sent a message.

        Args:
            message: what it says.
            descriptors: how many came with it.
            readable: whether the probe is among them, and nothing else.
            unread: bytes that the client has not taken yet of what it was sent.
        """
        if self.closing:
            return []
        if (hello := self.hello) is None:
            if isinstance(message, Hello):
                return self._greeted(message, readable)
            return self._broken(f"{type(message).__name__} before Hello")
        match message:
            case Hello():
                return self._broken("a second Hello")
            case Images() | End() if self._draining:
                # Nothing more is taken; what Done does not count, the client takes elsewhere.
                return []
            case Images():
                return self._images(hello, message, descriptors)
            case Cancel():
                if not hello.tagging:
                    return self._broken("Cancel from a client that does not tag")
                return [Recall(frozenset(message.ids))]
            case End():
                if message.count != (came := self.answered + self.unanswered):
                    return self._broken(f"End says {message.count} images, {came} came")
                self.ended = True
                return self._finished()
            case StatusRequest() | LogsRequest() | Stop() if unread > MAX_UNREAD:
                return self._broken("replies are asked for and not read")
            case StatusRequest():
                return [TellStatus()]
            case LogsRequest():
                return [TellLogs()]
            case Stop():
                return [StopWorker(message.if_idle)]
            case _:
                assert_never(message)

    def answered_with(self, results: Sequence[Result]) -> list[Action]:
        """Images of this client have their results."""
        self.unanswered -= len(results)
        self.answered += len(results)
        if self.closing:
            return []
        return [Send(Results(items=list(results))), *self._finished()]

    def loaded(self, device: str) -> list[Action]:
        """The model is there."""
        if self.hello is None or self.closing:
            return []
        return [Send(Ready(device=device))]

    def drain(self) -> list[Action]:
        """The worker takes nothing more."""
        self._draining = True
        return self._finished()

    def let_go(self) -> list[Action]:
        """The client is to go elsewhere, with what it has unanswered: it has its Done at once."""
        if self.closing:
            return []
        self.closing = True
        trailer = [Send(Done(count=self.answered))] if self.tagging else []
        return [*trailer, Close()]

    def close(self) -> None:
        """The server ends the connection for a reason of its own."""
        self.closing = True

    def _greeted(self, hello: Hello, readable: bool) -> list[Action]:
        terms = self._terms
        # A client of another version may ask and command, see `protocol`.
        if hello.version != protocol.VERSION and hello.tagging:
            return self._broken(
                f"this worker speaks protocol {protocol.VERSION}, the client {hello.version}"
            )
        if terms.token and not hmac.compare_digest(hello.token.encode(), terms.token.encode()):
            return self._turned_away(
                FatalCode.FORBIDDEN, "this worker asks for a proof that the client is its user's"
            )
        if hello.ttl is not None and not hello.ttl >= 0:  # nan, too
            return self._broken(f"a TTL of {hello.ttl} seconds")
        if unknown := self._without_level(hello.level):
            return unknown
        self.hello = hello
        return [Greet(hello, readable), *self._finished()]  # at once, if it came too late

    def _images(self, hello: Hello, images: Images, descriptors: int) -> list[Action]:
        if not hello.tagging or self.ended:
            return self._broken("Images from a client that does not tag, or after End")
        if len(images.ids) != descriptors:
            return self._broken(f"{len(images.ids)} images with {descriptors} descriptors")
        if self.unanswered + len(images.ids) > self._terms.credits:
            return self._broken(f"more than {self._terms.credits} images unanswered")
        if images.options and len(images.options) != len(images.ids):
            return self._broken(f"{len(images.ids)} images with {len(images.options)} options")
        for own in images.options:
            if unknown := self._without_level(own.level or ""):
                return unknown
        self.unanswered += len(images.ids)
        each = images.options or [ImageOptions()] * len(images.ids)
        return [Take(images.ids, [self._options(hello, own) for own in each])]

    def _options(self, hello: Hello, own: ImageOptions) -> Options:
        level = hello.level if own.level is None else own.level
        return Options(
            top_k=hello.top_k if own.top_k is None else own.top_k,
            min_score=hello.min_score if own.min_score is None else own.min_score,
            exact=hello.exact if own.exact is None else own.exact,
            level=level or self._terms.default_level,
        )

    def _without_level(self, level: str) -> list[Action]:
        """The refusal where the model has no such level."""
        terms = self._terms
        if (level or terms.default_level) in terms.levels:
            return []
        known = ", ".join(filter(None, terms.levels)) or "no levels"
        return self._turned_away(
            FatalCode.LEVEL, f"model {terms.model} has no level {level!r} (it has: {known})"
        )

    def _finished(self) -> list[Action]:
        over = self.tagging and not self.unanswered and (self.ended or self._draining)
        if not over or self.closing:
            return []
        self.closing = True
        return [Send(Done(count=self.answered)), Close()]

    def _broken(self, how: str) -> list[Action]:
        return self._turned_away(FatalCode.PROTOCOL, how)

    def _turned_away(self, code: FatalCode, message: str) -> list[Action]:
        self.closing = True
        return [TurnAway(code, message)]
