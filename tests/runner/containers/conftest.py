"""What the tests of containers share: a client of the real daemon, and containers that go."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from wuwan_runner.containers import daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import docker


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[docker.DockerClient]:
    """Of this machine's daemon."""
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    with daemon.connected(30) as connected:
        yield connected


@pytest.fixture
def make_container(
    client: docker.DockerClient, docker_image: str, namespace: str
) -> Iterator[Callable[..., str]]:
    """`make_container(COMMAND…, start=…, KEYWORDS…)` makes one of the test image; its name.

    As ours do they run under an init and remove themselves; none is left after the test.
    """
    made: list[str] = []

    def make(*command: str, start: bool = True, name: str = "", **settings: Any) -> str:
        name = name or f"{namespace}-{len(made)}"
        ours = client.api.create_host_config(network_mode="none", init=True, auto_remove=True)
        client.api.create_container(
            docker_image, list(command), name=name, **({"host_config": ours} | settings)
        )
        made.append(name)
        if start:
            client.api.start(name)
        return name

    yield make
    for name in made:
        with contextlib.suppress(Exception):
            client.api.remove_container(name, force=True, v=True)


@pytest.fixture
def gone(client: docker.DockerClient) -> Callable[[str], None]:
    """`gone(NAME)` waits until the daemon has no such container."""

    def wait(name: str) -> None:
        wait_until(lambda: not client.api.containers(all=True, filters={"name": f"^/{name}$"}))

    return wait


@pytest.fixture
def descriptors() -> Iterator[None]:
    """As many descriptors of this process are open after the test as before it."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) <= before


def wait_until(condition: Callable[[], Any], seconds: float = 20) -> None:
    """Fails if it does not hold in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, condition
        time.sleep(0.02)
