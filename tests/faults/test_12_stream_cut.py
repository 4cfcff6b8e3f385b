"""Fault 12: the stream is cut in the middle of a frame (docker-py socket.py).

docker-py's multiplexed streams end silently when the connection breaks: what came so far looks
like everything. Here a trailer says how many answers there were, and what has none is retried.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.faults.support import Plan, Proxy, address_of, frame_ends, worker_at
from wuwan_runner import Tagger, TagOptions, WorkerSpec

RUNNERS = ["local", pytest.param("docker", marks=pytest.mark.docker)]


def _spec(runner: str, request: pytest.FixtureRequest) -> WorkerSpec:
    image = request.getfixturevalue("docker_image") if runner == "docker" else ""
    return WorkerSpec(image=image)


def _tagged(options: TagOptions, album: Any, expected: Any, tools: Any) -> None:
    with Tagger(options) as tagger:
        records = [record.to_dict() for record in tagger.tag([album.root])]
    assert [record["path"] for record in records] == album.paths
    album.check(records, expected)


@pytest.mark.parametrize("runner", RUNNERS)
def test_every_cut_is_made_good(
    tools: Any, request: pytest.FixtureRequest, expected: Any, runner: str
) -> None:
    spec = _spec(runner, request)
    options = TagOptions(spec=spec, runner=runner, ttl=2.0, batch_size=2)
    album = tools.album(10)
    front, back = address_of(runner, spec), address_of(runner, spec, "real")
    plans = [Plan()]
    with (
        worker_at(back, runner, spec),
        Proxy(front, back, lambda number: plans[0] if number == first else Plan()) as proxy,
    ):
        first = 0
        _tagged(options, album, expected, tools)
        stream = bytes(proxy.passed[0])
        ends = frame_ends(stream)
        assert ends[-1] == len(stream)  # Welcome, Results …, Done
        assert len(ends) > 3
        outward = {1, 7, 8, 9, ends[0] - 1, ends[0], ends[0] + 1, ends[-2], ends[-1] - 1}
        outward |= {len(stream) * part // 8 for part in range(1, 8)}
        inward = {5, len(proxy.asked[0]) // 2, len(proxy.asked[0]) - 1}
        cuts = [Plan(outward=size) for size in sorted(outward)]
        cuts += [Plan(inward=size) for size in sorted(inward)]
        for cut in cuts:
            before = proxy.cuts
            # Answers that come in fewer frames make a shorter stream, which may end before the cut.
            for _ in range(10):
                plans[0], first = cut, proxy.connections
                _tagged(options, album, expected, tools)
                if proxy.cuts > before:
                    break
            else:
                pytest.fail(f"{cut} was never reached")


@pytest.mark.parametrize("runner", RUNNERS)
def test_cut_each_time(
    tools: Any, wuwan: Any, request: pytest.FixtureRequest, expected: Any, runner: str
) -> None:
    """Who loses every connection gets all lines all the same: through a worker of its own."""
    spec = _spec(runner, request)
    album = tools.album(12)
    front, back = address_of(runner, spec), address_of(runner, spec, "real")
    with worker_at(back, runner, spec), Proxy(front, back, lambda _: Plan(outward=700)) as proxy:
        image = ("--image", spec.image) if spec.image else ()
        done = wuwan("tag", album.root, "--runner", runner, "--ttl", 1, "--batch-size", 4, *image)
        assert proxy.cuts >= 2
    assert done.returncode == 0, done.stderr.decode()
    assert b"was lost" in done.stderr
    album.check(tools.parsed(done.stdout), expected)


def test_lines_missing_are_never_success(
    tools: Any, wuwan: Any, expected: Any, faulty_local: Any, tmp_path: Path
) -> None:
    """Each connection is cut and no other worker comes up: exit 4, whole lines, in order."""
    spec = WorkerSpec()
    album = tools.album(12)
    target = tmp_path / "tags.jsonl"
    front, back = address_of("local", spec), address_of("local", spec, "real")
    with worker_at(back, "local", spec), Proxy(front, back, lambda _: Plan(outward=1500)):
        faulty_local(WUWAN_FAULT_LOAD="raise")
        arguments = ("tag", album.root, "--runner", "local", "--batch-size", 1)
        done = wuwan(*arguments)
        into_file = wuwan(*arguments, "-o", target)
    assert done.returncode == 4, done.stderr.decode()
    assert b"the fault that was ordered" in done.stderr
    records = tools.parsed(done.stdout)
    assert [record["path"] for record in records] == album.paths[: len(records)]
    assert len(records) < 12
    album.check_good(records, expected)
    assert into_file.returncode == 4
    assert not target.exists()
