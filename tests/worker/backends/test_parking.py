"""Parking: an idle worker gives its GPU memory back, and the next image wakes it.

The server and the engine are real; the backend is one of our own that says what it was told.
"""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from wuwan_worker.engine import Engine
from wuwan_worker.ranking import Ranking
from wuwan_worker.shared.bundle import InputSpec
from wuwan_worker.shared.labels import Label
from wuwan_worker.shared.protocol import (
    End,
    ErrorCode,
    Failed,
    FatalCode,
    State,
    Status,
    StatusRequest,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from conftest import Client, InProcess
    from numpy.typing import NDArray

    Connect = Callable[[str], Client]
    Serve = Callable[..., InProcess]

SPEC = InputSpec(
    name="images", size=8, resize=8, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1)
)


class Gpu:
    """A backend with memory that can be given back."""

    device = "GPU"
    batch_size = 4
    streams = 2
    decoder: Any = None

    def __init__(self) -> None:
        self.parked = False
        self.told: list[str] = []
        self.may_park, self.may_infer = threading.Event(), threading.Event()
        self.may_park.set()
        self.may_infer.set()
        self.broken = False

    def infer(
        self, batch: NDArray[np.uint8], levels: Collection[str]
    ) -> dict[str, NDArray[np.float32]]:
        self.told.append("infer")
        assert self.may_infer.wait(20)
        self.parked = False
        return {level: np.ones((len(batch), 1), np.float32) for level in levels}

    def park(self) -> None:
        assert self.may_park.wait(20)
        self.told.append("park")
        if self.broken:
            raise RuntimeError("the GPU has fallen off the bus")
        self.parked = True

    def gpu_memory(self) -> int:
        return 1 if self.parked else 1000


@pytest.fixture
def photo() -> bytes:
    """A PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return buffer.getvalue()


def _run(running: InProcess, backend: Gpu) -> Engine:
    engine = Engine(
        running.server.jobs,
        spec=SPEC,
        rankings={"": Ranking([Label("红", "1")])},
        decode_threads=1,
        answer=running.server.answer,
        failed=lambda error: running.server.fail(FatalCode.BACKEND, str(error), 70),
    )
    engine.start_decoding()
    engine.start(backend)
    running.server.loaded(
        backend.device, backend.gpu_memory, parked=lambda: backend.parked, park=engine.park
    )
    return engine


def _status(client: Client) -> Status:
    client.send(StatusRequest())
    return client.take(Status)


def test_an_idle_worker_parks_and_an_image_wakes_it(
    serve: Serve, connect: Connect, photo: bytes
) -> None:
    """READY, PARKED with a client present, READY again with the image's labels; then once more."""
    running, backend = serve(park_after=0.1), Gpu()
    engine = _run(running, backend)
    client = connect(running.name)
    client.hello()
    for number in range(2):
        running.wait_to_be(lambda: _status(client).state, State.PARKED)
        assert _status(client).gpu_memory == 1
        client.send_images([number], photo)
        assert client.labelled(1)[number].labels[0].label == "红"
    running.wait_to_be(lambda: backend.told, ["park", "infer", "park", "infer", "park"])
    engine.close(5)


def test_damage_does_not_wake_a_parked_worker(serve: Serve, connect: Connect, photo: bytes) -> None:
    """What no decoder can read needs no weights."""
    running, backend = serve(park_after=0.1), Gpu()
    engine = _run(running, backend)
    client = connect(running.name)
    client.hello()
    running.wait_to_be(lambda: backend.told, ["park"])
    client.send_images([0], photo[:20])
    failed = client.items(1)[0]
    assert isinstance(failed, Failed)
    assert failed.error.code == ErrorCode.TRUNCATED
    running.wait_to_be(lambda: backend.told, ["park", "park"])  # asked again; nothing to it
    assert _status(client).state == State.PARKED
    engine.close(5)


def test_an_image_that_comes_while_it_parks_is_answered(
    serve: Serve, connect: Connect, photo: bytes
) -> None:
    """Whoever parks has one thread, and the other ones take the image."""
    running, backend = serve(park_after=0.0), Gpu()
    backend.may_park.clear()
    engine = _run(running, backend)
    client = connect(running.name)
    client.hello()
    client.send_images([0, 1], photo)
    client.items(2)
    backend.may_park.set()
    client.send(End(count=2))
    running.wait_to_be(lambda: backend.told[-1], "park")
    engine.close(5)


def test_an_order_that_an_image_overtakes_is_void(
    serve: Serve, connect: Connect, photo: bytes
) -> None:
    """Weights do not leave because it was quiet before the image came."""
    running, backend = serve(), Gpu()
    backend.streams = 1
    backend.may_infer.clear()
    engine = _run(running, backend)
    client = connect(running.name)
    client.hello()
    client.send_images([0], photo)
    running.wait_to_be(lambda: backend.told, ["infer"])
    engine.park()
    client.send_images([1], photo)
    running.wait_for(lambda: bool(engine._open and engine._open.rows))
    backend.may_infer.set()
    client.items(2)
    client.send_images([2], photo)
    client.items(1)
    assert backend.told == ["infer"] * 3
    engine.close(5)


def test_a_gpu_that_fails_while_parking_ends_the_worker(serve: Serve) -> None:
    """Its state is not known any more: it must not take another image."""
    running, backend = serve(park_after=0.05), Gpu()
    backend.broken = True
    _run(running, backend)
    assert running.join() == 70
