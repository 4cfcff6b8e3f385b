"""Fault 1: the CLI is killed and cannot clean up (moby 20171, cog 2799).

Nobody is left who could stop the container or finish a line: the worker must end by its own TTL,
what was written must be whole lines, and the next run must be able to go on from there.
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

TTL = 2
SLOW = "0.15"  # seconds for each image, so that the run is still going when it is killed


def _gone_in_time(tools: Any, killed: float) -> None:
    tools.eventually(
        lambda: not tools.inventory.all(),
        TTL + 5 - (time.monotonic() - killed),
        "the worker ends by its TTL",
    )


@pytest.mark.docker
@pytest.mark.parametrize("channel", ["socket", "exec"])
def test_container_ends_and_lines_are_whole(
    tools: Any, fault_image_with: Any, channel: str
) -> None:
    image = fault_image_with(WUWAN_FAULT_DECODE=SLOW)
    album = tools.album(60)
    run = tools.start(
        *("tag", album.root, "--runner", "docker", "--image", image, "--ttl", TTL),
        *("--batch-size", 1, "--channel", channel),
    )
    written = run.lines(3)
    assert tools.inventory.containers()
    run.send(signal.SIGKILL)
    killed = time.monotonic()
    code, rest, _ = run.finish()
    assert code == -signal.SIGKILL
    records = tools.parsed(written + rest)
    assert 3 <= len(records) < 60
    assert [record["path"] for record in records] == album.paths[: len(records)]
    album.check_good(records, tools.expected)
    _gone_in_time(tools, killed)


def test_local_worker_ends(tools: Any, faulty_local: Any) -> None:
    faulty_local(WUWAN_FAULT_DECODE=SLOW)
    album = tools.album(60)
    run = tools.start("tag", album.root, "--runner", "local", "--ttl", TTL, "--batch-size", 1)
    run.lines(3)
    run.send(signal.SIGKILL)
    killed = time.monotonic()
    run.finish()
    _gone_in_time(tools, killed)


@pytest.mark.docker
@pytest.mark.parametrize("channel", ["socket", "exec"])
def test_container_that_hangs_ends(tools: Any, fault_image: str, channel: str) -> None:
    """Work that nobody waits for any more does not keep a worker: its decoder may never return."""
    album = tools.album(12, {4: "sleep:600"})
    run = tools.start(
        *("tag", album.root, "--runner", "docker", "--image", fault_image, "--ttl", TTL),
        *("--batch-size", 1, "--channel", channel),
    )
    run.lines(4)
    run.send(signal.SIGKILL)
    killed = time.monotonic()
    run.finish()
    _gone_in_time(tools, killed)


def _kill_after_lines(tools: Any, run: Any, partial: Path, count: int) -> bytes:
    """SIGKILL once that many lines are in the file; what is in it then."""
    tools.eventually(
        lambda: partial.exists() and partial.read_bytes().count(b"\n") >= count,
        60,
        f"{count} lines in {partial}",
    )
    run.send(signal.SIGKILL)
    run.finish()
    return partial.read_bytes()


def test_resumed_run_has_no_duplicate_and_no_gap(
    tools: Any, wuwan: Any, faulty_local: Any, tmp_path: Path
) -> None:
    if b"--resume" not in wuwan("tag", "--help").stdout:
        pytest.skip("this version has no --resume")
    faulty_local(WUWAN_FAULT_DECODE="0.05")
    album = tools.album(60)
    target, partial = tmp_path / "tags.jsonl", tmp_path / "tags.jsonl.partial"
    arguments = ("tag", album.root, "-o", target, "--runner", "local", "--ttl", TTL)
    arguments += ("--batch-size", 2)
    first = _kill_after_lines(tools, tools.start(*arguments), partial, 3)
    assert not target.exists()
    # Killed again while it is resumed: that must not lose what the first run has done.
    again = tools.start(*arguments, "--resume")
    second = _kill_after_lines(tools, again, partial, first.count(b"\n") + 5)
    assert second.startswith(first)
    done = wuwan(*arguments, "--resume")
    assert done.returncode == 0, done.stderr.decode()
    assert not partial.exists()
    assert target.read_bytes().startswith(second)
    album.check(tools.parsed(target.read_bytes()), tools.expected)
