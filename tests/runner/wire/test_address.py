"""Addresses: names that are locks, and leave nothing behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from wuwan_runner.wire import address
from wuwan_runner.wire.address import Address


def test_binding_is_a_lock() -> None:
    """Of two that want a name one gets it, and the other may have it afterwards."""
    target = Address("key", "0")
    first = address.listen(target)
    assert first is not None
    with first:
        assert address.listen(target) is None
    again = address.listen(target)
    assert again is not None
    again.close()


def test_many_at_once_get_one_name() -> None:
    """Of twenty threads that bind at the same moment one wins."""
    barrier = threading.Barrier(20)
    found: list[socket.socket | None] = []

    def bind() -> None:
        barrier.wait(10)
        found.append(address.listen(Address("key", "0")))

    threads = [threading.Thread(target=bind) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    (winner,) = [sock for sock in found if sock is not None]
    assert len(found) == 20
    winner.close()


def test_clients_queue_before_anybody_accepts() -> None:
    """A connection is there at once, and what is sent waits for whoever accepts."""
    target = Address("key", "0")
    listener = address.listen(target)
    assert listener is not None
    with listener:
        client = address.connect(target, 1.0)
        assert client is not None
        with client:
            client.sendall(b"hello")
            listener.settimeout(5)
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.recv(9) == b"hello"


def test_connecting_to_nothing_is_none() -> None:
    """Where nobody listens there is no worker, at once."""
    begin = time.monotonic()
    assert address.connect(Address("nobody", "0"), 5.0) is None
    assert time.monotonic() - begin < 1


def test_a_name_ends_with_its_process() -> None:
    """After SIGKILL of the holder the name is free; there is no stale file."""
    target = Address("key", "0")
    listener = address.listen(target)
    assert listener is not None
    with listener:
        holder = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=[listener.fileno()]
        )
    assert address.listen(target) is None
    client = address.connect(target, 1.0)
    assert client is not None
    client.close()
    holder.kill()
    holder.wait(10)
    assert address.connect(target, 1.0) is None
    assert address.listed() == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_a_listener_of_another_user_is_nobody() -> None:
    """Images are handed to no worker but one's own, whatever name it has taken."""
    target = Address("key", "0")
    name = target.name
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setresuid(65534, 65534, 65534)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.bind(name)
                sock.listen(5)
                os.write(writer, b"x")
                time.sleep(30)
        finally:
            os._exit(1)
    try:
        assert os.read(reader, 1) == b"x"
        assert address.connect(target, 1.0) is None
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)


def test_listed() -> None:
    """All workers of this user and namespace, in order, each once, whoever is connected."""
    assert address.listed() == []
    places = [Address("b", "0"), Address("a", "1"), Address("a", "0")]
    listeners = [address.listen(target) for target in places]
    client = address.connect(places[0], 1.0)
    assert client is not None
    assert listeners[0] is not None
    accepted, _ = listeners[0].accept()
    assert address.listed() == [Address("a", "0"), Address("a", "1"), Address("b", "0")]
    for sock in (client, accepted, *listeners):
        assert sock is not None
        sock.close()
    assert address.listed() == []


def test_other_names_are_not_listed(monkeypatch: pytest.MonkeyPatch, namespace: str) -> None:
    """Another namespace's workers, and names that only begin alike, are not ours."""
    odd = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    odd.bind(f"\0{namespace}/{os.getuid()}/a/b/c")
    odd.listen(1)
    monkeypatch.setenv(address.NAMESPACE_VARIABLE, f"{namespace}-other")
    other = address.listen(Address("key", "0"))
    assert other is not None
    assert address.listed() == [Address("key", "0")]
    monkeypatch.setenv(address.NAMESPACE_VARIABLE, namespace)
    assert address.listed() == []
    odd.close()
    other.close()


def test_names_tell_users_apart() -> None:
    """The user's id is part of the name, and every name fits into an address."""
    name = address.private(address.key("docker", {"model": "x" * 500})).name
    assert f"/{os.getuid()}/" in name
    assert name[0] == "\0"
    assert len(name) < 108


def test_private_addresses_differ() -> None:
    """Nobody else finds a private worker."""
    assert address.private("key") != address.private("key")


def test_keys_tell_workers_apart() -> None:
    """What a worker is makes its key, in whatever order it is said."""
    assert address.key("local", {"a": "1", "b": "2"}) == address.key("local", {"b": "2", "a": "1"})
    different = {
        address.key("local", {"a": "1"}),
        address.key("docker", {"a": "1"}),
        address.key("local", {"a": "2"}),
        address.key("local", {"b": "1"}),
    }
    assert len(different) == 4
