"""When a worker changes its state, and when it ends. The one place that says so.

::

                 model loaded        image arrives          no client, no work
    (start) ► STARTING ─────────► READY ─────────► BUSY ──┐  for `ttl` seconds
                  │                 ▲ ▲              │     │        │
                  │                 │ └──────────────┘     │        ▼
                  │                 │   all answered       │      GONE
                  │     image       │                      │        ▲
                  │     arrives   PARKED ◄── idle `park_after` s    │
                  │   (weights up)  (GPU only)                      │ all answered
                  └───────────── SIGTERM, Stop ──────► DRAINING ────┘

STARTING  the socket takes clients and images; the model is being loaded.
READY     the model is loaded, nothing to do.
BUSY      images are queued, in decoders or in inference.
PARKED    (GPU) the weights wait in host memory, the GPU's memory is given back.
DRAINING  no new client, no new image; what was received is answered.
GONE      the process has ended. Nothing of it is left: its name was an abstract socket.

The TTL counts from the last completion or the last client's leaving, whichever is later, and
never with an image or a client present. A worker that no client ever came to ends after
`FIRST_CLIENT_TIMEOUT` seconds: its launcher may have died.

Decode threads that were written off hold memory and a core until the process ends. So a worker that
has any drains as soon as nothing is unanswered; one that has more than `MOST_HANGING`, or in which
somebody waits for what they hold, ends at once: what is unanswered its clients take elsewhere.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wuwan_worker.shared.protocol import State

if TYPE_CHECKING:
    from collections.abc import Callable

# A launcher connects before its worker is even up, so half a minute without anyone means that the
# launcher is gone. Longer than the TTL default would keep an orphan longer than a used worker.
FIRST_CLIENT_TIMEOUT = 30.0
# Between two commands that somebody types the network stays up; a forgotten worker is no burden.
PARK_AFTER = 5.0
# Two of a machine's cores, or two pictures' memory; a directory with one bomb costs no restart.
MOST_HANGING = 2


@dataclass(slots=True, kw_only=True)
class Lifecycle:
    """The state of one worker. Owned by the server's thread; nobody else touches it."""

    ttl: float  # seconds
    first_client_timeout: float = FIRST_CLIENT_TIMEOUT  # seconds
    park_after: float = math.inf  # seconds; finite where there is a GPU
    parked: Callable[[], bool] = lambda: False  # the backend knows: any inference wakes it
    now: Callable[[], float] = time.monotonic
    clients: int = 0  # that are connected to tag
    unanswered: int = 0  # images received and not answered
    hanging: int = 0  # decode threads that were written off and have not ended
    stuck: bool = False  # somebody waits for what those hold
    _loaded: bool = False
    _asked_to_park: bool = False
    _draining: bool = False
    _visited: bool = False
    _idle_since: float = field(default=0.0)
    _resting_since: float = field(default=0.0)  # idle or not: a client may be here and wait

    def __post_init__(self) -> None:
        self._idle_since = self._resting_since = self.now()

    @property
    def state(self) -> State:
        """Where the worker is in its life."""
        if self._draining:
            return State.DRAINING
        if not self._loaded:
            return State.STARTING
        if self.unanswered:
            return State.BUSY
        return State.PARKED if self.parked() else State.READY

    @property
    def idle(self) -> bool:
        """Nobody is here and nothing is to be done."""
        return not self.clients and not self.unanswered

    @property
    def idle_for(self) -> float | None:
        """Seconds since the worker became idle; None while it is not."""
        return self.now() - self._idle_since if self.idle else None

    @property
    def ttl_left(self) -> float | None:
        """Seconds until an idle worker ends; None while it is not idle."""
        idle_for = self.idle_for
        if idle_for is None:
            return None
        limit = self.ttl if self._visited else max(self.ttl, self.first_client_timeout)
        return max(0.0, limit - idle_for)

    @property
    def park_left(self) -> float | None:
        """Seconds until the weights should leave the GPU; None where nothing is to be done."""
        if not self._loaded or self._draining or self._asked_to_park or self.unanswered:
            return None
        left = self._resting_since + self.park_after - self.now()
        return None if left == math.inf else max(0.0, left)

    @property
    def worn(self) -> bool:
        """Whether the worker should drain: nothing is lost by it, and something held comes back."""
        return bool(self.hanging) and not self.unanswered and not self._draining

    @property
    def spent(self) -> bool:
        """Whether it should end without answering what it has: that would take too long here."""
        return self.stuck or self.hanging > MOST_HANGING

    @property
    def over(self) -> bool:
        """Whether the worker should end now."""
        if self._draining:
            return self.unanswered == 0
        return self.ttl_left == 0.0

    def loaded(self) -> None:
        """The model is there. An idle worker's TTL begins anew: loading is not idling."""
        self._loaded = True
        self._idle_since = self._resting_since = self.now()

    def client_came(self, ttl: float | None) -> None:
        """A client begins to tag; the newest client's TTL holds."""
        self.clients += 1
        self._visited = True
        if ttl is not None:
            self.ttl = ttl

    def client_left(self) -> None:
        """A tagging client's connection has ended."""
        self.clients -= 1
        self._idle_since = self.now()

    def images_came(self, count: int) -> None:
        """Images were received."""
        self.unanswered += count
        self._asked_to_park = False

    def images_done(self, count: int) -> None:
        """Images were answered, or forgotten with their client."""
        if not count:  # somebody who only asked for the status has left; that is no work
            return
        self.unanswered -= count
        self._idle_since = self._resting_since = self.now()

    def asked_to_park(self) -> None:
        """The engine was told; once is enough until images come again."""
        self._asked_to_park = True

    def drain(self) -> None:
        """End as soon as everything received is answered."""
        self._draining = True
