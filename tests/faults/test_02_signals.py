"""Fault 2: SIGTERM and SIGINT, while the worker starts, while it loads, while it tags.

Seen wherever a program waits for a container: a signal that arrives before the container's id is
known leaves the container behind; one that arrives later loses finished results.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from typing import Any

import pytest

BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
TTL = 1


def _died_of(number: int, code: int) -> bool:
    """As a shell sees it: 128 + number."""
    return code == -number


def _nothing_left(tools: Any) -> None:
    tools.eventually(lambda: not tools.inventory.all(), TTL + 6, "all is gone")


@pytest.mark.docker
@BOTH
def test_while_a_container_loads(tools: Any, fault_image_with: Any, number: int) -> None:
    image = fault_image_with(WUWAN_FAULT_LOAD="sleep:30")
    album = tools.album(8)
    run = tools.start(*("tag", album.root, "--runner", "docker", "--image", image, "--ttl", TTL))
    tools.eventually(tools.inventory.containers, 30, "the container is there")
    time.sleep(1.0)
    sent = time.monotonic()
    run.send(number)
    code, output, messages = run.finish(15)
    assert _died_of(number, code), messages
    assert time.monotonic() - sent < 10
    assert output == b""
    assert "Traceback" not in messages
    _nothing_left(tools)


@BOTH
def test_while_a_local_worker_loads(tools: Any, faulty_local: Any, number: int) -> None:
    faulty_local(WUWAN_FAULT_LOAD="sleep:30")
    run = tools.start("tag", tools.album(8).root, "--runner", "local", "--ttl", TTL)
    tools.eventually(lambda: len(tools.inventory.processes()) > 1, 20, "the worker is there")
    time.sleep(0.5)
    run.send(number)
    code, output, messages = run.finish(10)
    assert _died_of(number, code), messages
    assert output == b""
    assert "Traceback" not in messages
    _nothing_left(tools)


@pytest.mark.docker
@pytest.mark.parametrize("channel", ["socket", "exec"])
def test_at_every_moment_of_a_start(tools: Any, fault_image: str, channel: str) -> None:
    """Between the daemon's answers nobody else knows the container: none may be left."""
    album = tools.album(8)
    for step in range(7):
        run = tools.start(
            *("tag", album.root, "--runner", "docker", "--image", fault_image),
            *("--ttl", 0.2, "--channel", channel),
        )
        time.sleep(0.3 + 0.15 * step)
        run.send(signal.SIGTERM)
        code, output, messages = run.finish(20)
        assert _died_of(signal.SIGTERM, code) or code == 0, messages
        assert "Traceback" not in messages
        tools.parsed(output)
    _nothing_left(tools)


@pytest.mark.docker
@BOTH
def test_while_a_container_tags(tools: Any, fault_image_with: Any, number: int) -> None:
    image = fault_image_with(WUWAN_FAULT_DECODE="0.15")
    _while_tagging(tools, number, "docker", "--image", image)


@BOTH
def test_while_a_local_worker_tags(tools: Any, faulty_local: Any, number: int) -> None:
    faulty_local(WUWAN_FAULT_DECODE="0.15")
    _while_tagging(tools, number, "local")


def _while_tagging(tools: Any, number: int, *runner: object) -> None:
    album = tools.album(60)
    run = tools.start(*("tag", album.root, "--batch-size", 1, "--ttl", TTL, "--runner", *runner))
    written = run.lines(3)
    run.send(number)
    code, rest, messages = run.finish(10)
    assert _died_of(number, code), messages
    records = tools.parsed(written + rest)
    assert 3 <= len(records) < 60
    assert [record["path"] for record in records] == album.paths[: len(records)]
    album.check_good(records, tools.expected)
    # What is said of the records is what has been written.
    assert f"interrupted: {len(records)} records written" in messages
    _nothing_left(tools)


def test_second_signal_forces(tools: Any) -> None:
    """A reader that does not read holds up the first one (for a short while), never the second."""
    album = tools.album(24)
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)  # less than one record of all labels
    run = tools.start(
        *("tag", album.root, "--runner", "local", "--ttl", TTL, "--top-k", 1000),
        stdout=writer,
    )
    os.close(writer)
    try:
        tools.eventually(lambda: _unread(reader) >= 4096, 30, "the pipe is full")
        run.send(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            run.process.wait(0.5)  # the record that is being written gets a little time
        sent = time.monotonic()
        run.send(signal.SIGINT)
        code, _, _ = run.finish(5)
        assert time.monotonic() - sent < 1.0
        assert _died_of(signal.SIGINT, code)
    finally:
        os.close(reader)
    _nothing_left(tools)


def test_one_signal_is_enough_if_nobody_reads(tools: Any) -> None:
    album = tools.album(24)
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    run = tools.start(
        *("tag", album.root, "--runner", "local", "--ttl", TTL, "--top-k", 1000),
        stdout=writer,
    )
    os.close(writer)
    try:
        tools.eventually(lambda: _unread(reader) >= 4096, 30, "the pipe is full")
        run.send(signal.SIGTERM)
        code, _, messages = run.finish(10)
        assert _died_of(signal.SIGTERM, code), messages
    finally:
        os.close(reader)
    _nothing_left(tools)


def _unread(descriptor: int) -> int:
    import array
    import termios

    count = array.array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, count)
    return count[0]
