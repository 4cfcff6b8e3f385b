"""Fault 8: a worker that stops answering in the middle of a batch (nvidia-docker 1553)."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from wuwan_runner import Tagger, TagOptions
from wuwan_runner.options import Timeouts, WorkerSpec

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.docker
@pytest.mark.parametrize(
    ("channel", "origin"), [("socket", "started"), ("socket", "warm"), ("exec", "started")]
)
def test_paused_worker_is_replaced(
    tools: Any, wuwan: Any, fault_image_with: Any, created: Any, channel: str, origin: str
) -> None:
    image = fault_image_with(WUWAN_FAULT_DECODE="0.5")
    album = tools.album(5)
    worker = ("--runner", "docker", "--image", image, "--channel", channel, "--ttl", 2)
    if origin == "warm":
        assert wuwan("warm", *worker[:-1], 20).returncode == 0
    run = tools.start("tag", album.root, *worker, "--batch-size", 1, "--timeout", 2)
    written = run.lines(1)
    (name,) = tools.inventory.containers()
    hung = tools.docker("inspect", "--format", "{{.Id}}", name)
    tools.docker("pause", name)
    paused = time.monotonic()
    code, rest, messages = run.finish(60)
    # 2 s, and 1 s for each of the images that it had.
    assert time.monotonic() - paused < 2 + 5 + 20
    assert code == 0, messages
    album.check(tools.parsed(written + rest), tools.expected)
    assert "gave no answer" in messages
    # Over the exec channel the successor has the same name.
    assert hung not in tools.docker("ps", "-a", "-q", "--no-trunc")
    assert len(created.names()) == 2


@pytest.mark.docker
def test_warm_worker_that_does_not_even_greet(
    tools: Any, wuwan: Any, docker_image: str, created: Any
) -> None:
    """Nothing is known of it, not even its name: another one is started beside it."""
    worker = ("--runner", "docker", "--image", docker_image, "--channel", "socket")
    assert wuwan("warm", *worker, "--ttl", 60).returncode == 0
    (name,) = tools.inventory.containers()
    tools.docker("pause", name)
    album = tools.album(4)
    options = TagOptions(
        spec=WorkerSpec(image=docker_image),
        runner="docker",
        channel="socket",
        ttl=2,
        timeouts=Timeouts(start=4.0),
    )
    said: list[str] = []
    started = time.monotonic()
    with Tagger(options, notify=said.append) as tagger:
        records = [record.to_dict() for record in tagger.tag([album.root])]
    assert time.monotonic() - started < 20
    album.check(records, tools.expected)
    assert any("gave no answer" in line for line in said)
    assert len(created.names()) == 2
    tools.docker("unpause", name)


_TWO_FIRST_INFERENCES = """
import os, sys, threading
import numpy as np
from wuwan_worker import backends
from wuwan_worker.shared import bundle, labels
model = bundle.load(bundle.find("imagenet-zh"))
backend = backends.load("openvino", model, labels.read(model), device="cpu", threads=2)
pixels = np.zeros((1, model.input.size, model.input.size, 3), np.uint8)
sys.setswitchinterval(1e-6)
together = threading.Barrier(2)
def infer():
    together.wait()
    backend.infer(pixels, [""])
threads = [threading.Thread(target=infer, daemon=True) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join(10) for thread in threads]
os._exit(sum(thread.is_alive() for thread in threads))
"""


def test_first_inferences_of_two_threads_do_not_lock_each_other_out() -> None:
    """In OpenVINO's bindings they do, two times in five under these conditions."""
    for _ in range(4):
        done = subprocess.run(
            [sys.executable, "-c", _TWO_FIRST_INFERENCES],
            capture_output=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()


class _NoRemoval:
    """A way to the real daemon on which containers can be neither removed nor killed."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(64)
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                daemon = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                daemon.connect("/var/run/docker.sock")
                self._open += [client, daemon]
                threading.Thread(target=self._requests, args=(client, daemon), daemon=True).start()
                threading.Thread(target=self._copy, args=(daemon, client), daemon=True).start()

    def _requests(self, client: socket.socket, daemon: socket.socket) -> None:
        body = b'{"message":"driver failed to remove: device or resource busy"}'
        head = b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\n"
        refusal = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if data.startswith(b"DELETE /"):
                    client.sendall(refusal)
                else:
                    daemon.sendall(data)
        with contextlib.suppress(OSError):
            daemon.shutdown(socket.SHUT_WR)

    @staticmethod
    def _copy(daemon: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := daemon.recv(65536):
                client.sendall(data)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for sock in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


@pytest.fixture
def no_removal() -> Iterator[_NoRemoval]:
    with tempfile.TemporaryDirectory(prefix="wuwan-faults-") as directory:
        proxy = _NoRemoval(os.path.join(directory, "docker.sock"))
        yield proxy
        proxy.close()


@pytest.mark.docker
@pytest.mark.skipif(
    bool(os.environ.get("DOCKER_HOST")) or not Path("/var/run/docker.sock").exists(),
    reason="the daemon is not at its usual socket",
)
def test_leftover_that_cannot_be_removed_is_named(
    tools: Any, fault_image_with: Any, no_removal: _NoRemoval
) -> None:
    image = fault_image_with(WUWAN_FAULT_DECODE="0.5")
    album = tools.album(5)
    run = tools.start(
        *("tag", album.root, "--runner", "docker", "--image", image, "--channel", "socket"),
        *("--ttl", 2, "--batch-size", 1, "--timeout", 2),
        env=os.environ | {"DOCKER_HOST": f"unix://{no_removal.path}"},
    )
    written = run.lines(1)
    (name,) = tools.inventory.containers()
    tools.docker("pause", name)
    # It is thawed when its removal is tried. Frozen again, it is as stuck as it gets.
    over = threading.Event()

    def keep_frozen() -> None:
        while not over.wait(0.05):
            subprocess.run(
                ["docker", "pause", name],
                capture_output=True,
                timeout=30,
                check=False,
            )

    thread = threading.Thread(target=keep_frozen)
    thread.start()
    try:
        code, rest, messages = run.finish(60)
    finally:
        over.set()
        thread.join(30)
    try:
        assert code == 0, messages
        album.check(tools.parsed(written + rest), tools.expected)
        assert f"docker rm -f {name}" in messages
        assert "device or resource busy" in messages
        assert name in tools.inventory.containers()
    finally:
        tools.docker("unpause", name, check=False)
        tools.docker("rm", "-f", name, check=False)  # its removal may be under way
