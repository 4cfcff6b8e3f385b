"""Clients that share a worker share its batches; kinds of containers share the machine."""

from __future__ import annotations

import re
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.faults.support import Client, address_of
from wuwan_runner import Tagger, TagOptions, WorkerSpec
from wuwan_runner.wire import address, control
from wuwan_worker.shared.protocol import Labelled

CLIENTS = 16
EACH = 12  # photos, one under way at a time
# A worker whose inference takes a while, as on a busy machine, and that says how full batches are.
SLOW_BACKEND = """
import logging, sys, time
if "wuwan_worker" in sys.orig_argv:
    from wuwan_worker import backends
    original = backends.load
    def load(*arguments, **options):
        backend = original(*arguments, **options)
        infer = backend.infer
        def slow(batch, levels):
            time.sleep(0.1)
            logging.getLogger("wuwan_worker").info("a batch of %d", len(batch))
            return infer(batch, levels)
        backend.infer = slow
        return backend
    backends.load = load
"""


def test_batches_are_filled_across_clients(
    tools: Any, wuwan: Any, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen clients with one photo each under way: far fewer inferences than photos."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_BACKEND)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert wuwan("warm", "--runner", "local").returncode == 0
    target = address_of("local", WorkerSpec())
    photo = str(photos / "rocket.jpg")
    failures: list[BaseException] = []

    def one_by_one(client: Client) -> None:
        try:
            for number in range(EACH):
                client.send_images([number], [photo])
                (result,) = client.answers(1)
                assert isinstance(result, Labelled)
                assert result.id == number
                assert result.labels
        except BaseException as error:
            failures.append(error)

    with ExitStack() as stack:
        clients = [stack.enter_context(Client(target)) for _ in range(CLIENTS)]
        for client in clients:
            client.hello()
        threads = [threading.Thread(target=one_by_one, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert not failures
    with control.attach(target, 5.0) as worker:
        sizes = [int(n) for n in re.findall(r"a batch of (\d+)", "\n".join(worker.logs()))]
    assert sum(sizes) == CLIENTS * EACH
    assert sum(sizes) / len(sizes) >= 0.6 * max(sizes)
    assert max(sizes) > 1


@pytest.mark.docker
def test_longest_idle_container_makes_room(tools: Any, docker_image: str, photos: Path) -> None:
    """Kinds differ by --memory. One that was used again is not the one that goes."""
    specs = [WorkerSpec(image=docker_image, memory=memory) for memory in ("1g", "2g", "3g", "4g")]
    names = [address_of("docker", spec) for spec in specs]

    def use(index: int) -> None:
        with Tagger(TagOptions(spec=specs[index], runner="docker", max_cached=3)) as tagger:
            (record,) = tagger.tag([str(photos / "chelsea.png")])
        assert record.error is None

    def up() -> set[int]:
        return {names.index(target) for target in address.listed() if target in names}

    for index in (0, 1, 2):
        use(index)
        time.sleep(0.05)
    assert up() == {0, 1, 2}
    use(0)
    time.sleep(0.05)
    use(3)
    tools.eventually(lambda: up() == {0, 2, 3}, 10, "the second kind has made room")
    tools.eventually(lambda: len(tools.inventory.containers()) == 3, 15, "and its container")
