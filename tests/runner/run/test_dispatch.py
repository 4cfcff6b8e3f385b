"""What a run does with workers that answer, refuse, die and hang: all of it against fake ones."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.runner.run.fake_worker import World
from wuwan_runner.errors import WorkerUnavailableError
from wuwan_runner.inputs.files import Found
from wuwan_runner.options import (
    BACKENDS,
    CHANNELS,
    MAX_BATCH,
    RUNNERS,
    Selection,
    TagOptions,
    Timeouts,
    WorkerSpec,
)
from wuwan_runner.run.blame import TRUST
from wuwan_runner.run.dispatch import Dispatch
from wuwan_worker.shared import protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from wuwan_runner.records import Record

KINDS = ("label", "error", "die", "hang", "drain")
QUICK = Timeouts(batch=0.2, per_image=0.001)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """By what a worker does with it: an image. One that is missing is among them."""
    root = tmp_path_factory.mktemp("images")
    for kind in KINDS:
        (root / kind).write_text(kind)
    return {kind: str(root / kind) for kind in (*KINDS, "missing")}


def ordered(content: bytes) -> str:
    """A worker that does what is in the image; any other image it can label."""
    kind = content.decode("ascii", "replace")
    return kind if kind in KINDS else "label"


def run(
    world: World, options: TagOptions, paths: Sequence[str], records: list[Record] | None = None
) -> list[Record]:
    """All records of a run, whose workers have all ended afterwards.

    They are in `records`, too, for a run that ends with an error.
    """
    found = (Found(path) for path in paths)
    records = [] if records is None else records
    try:
        for batch in Dispatch(found, lambda _: world.pool(options), options).run():
            records += [outcome.record for outcome in batch]
        return records
    finally:
        for worker in world.workers:
            worker.release()


def codes(records: Sequence[Record]) -> list[str]:
    """The outcome of each."""
    return [str(record.error.code) if record.error else "label" for record in records]


EXPECTED = {
    "label": "label",
    "error": "not_an_image",
    "die": "worker_crashed",
    "missing": "unreadable",
}

# Everything that `TagOptions` takes, but for deadlines too short for any machine.
OPTIONS = st.builds(
    TagOptions,
    spec=st.builds(
        WorkerSpec,
        backend=st.sampled_from(BACKENDS),
        gpus=st.sampled_from(["auto", "all", "none", "0", "1,0"]),
        memory=st.sampled_from(["1", "512m", "4G"]),
    ),
    runner=st.sampled_from(RUNNERS),
    channel=st.sampled_from(CHANNELS),
    workers=st.integers(1, 4),
    top_k=st.integers(1, 1_000_000),
    min_score=st.floats(0, 1) | st.integers(0, 1),
    exact=st.booleans(),
    level=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=1000),
    batch_size=st.integers(1, MAX_BATCH),
    ttl=st.none() | st.floats(0, 1e9) | st.integers(0, 10**9),
    selection=st.builds(Selection, recursive=st.booleans(), hidden=st.booleans()),
    timeouts=st.builds(
        Timeouts,
        start=st.sampled_from([10, 1_000_000]),
        batch=st.sampled_from([10, 1_000_000]),
        per_image=st.sampled_from([1e-300, 1_000_000]),
    ),
    max_cached=st.integers(1),
    max_restarts=st.integers(20),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(options=OPTIONS, credits_=st.sampled_from([32, 256]), count=st.integers(0, 150))
def test_whatever_options_there_can_be(
    files: dict[str, str], options: TagOptions, credits_: int, count: int
) -> None:
    """A run ends, with one record for each image, and no frame breaks the protocol."""
    world = World(ordered, credits=credits_)
    records = run(world, options, [files["label"]] * count)
    assert codes(records) == ["label"] * count
    sizes = [size for worker in world.workers for size in worker.batches]
    assert sum(sizes) == count
    assert max(sizes, default=0) <= options.batch_size
    for worker in world.workers:
        assert worker.hello is not None
        assert worker.hello.level == options.level
        assert worker.hello.top_k == options.top_k


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kinds=st.lists(st.sampled_from(list(EXPECTED)), max_size=70),
    workers=st.integers(1, 3),
    batch_size=st.sampled_from([1, 8, 32]),
)
def test_any_mixture(
    files: dict[str, str], kinds: list[str], workers: int, batch_size: int
) -> None:
    """Each input has the record that it should have, in order, whatever its neighbours do."""
    world = World(ordered)
    options = TagOptions(workers=workers, batch_size=batch_size)
    records = run(world, options, [files[kind] for kind in kinds])
    assert [record.path for record in records] == [files[kind] for kind in kinds]
    assert codes(records) == [EXPECTED[kind] for kind in kinds]
    # One worker for each culprit, or two if it was not its first image; and the proofs.
    culprits = kinds.count("die")
    assert world.private <= 2 * culprits + culprits // TRUST + 2


@pytest.mark.parametrize("count", [1, 30, 300])
def test_culprits_only(files: dict[str, str], count: int) -> None:
    """They are no reason to give up, since the workers could label something else."""
    world = World(ordered)
    records = run(world, TagOptions(), [files["die"]] * count)
    assert codes(records) == ["worker_crashed"] * count
    assert {record.error.message for record in records if record.error} == {
        "the worker died on this image: signal SIGSEGV"
    }


@pytest.mark.parametrize("max_restarts", [0, 3, 20])
@pytest.mark.parametrize("way", ["die", "garbage", "cancel", "hang"])
def test_workers_that_can_do_nothing(files: dict[str, str], max_restarts: int, way: str) -> None:
    """The run ends after so many of them, and no image is blamed."""
    world = World(lambda _: way)
    options = TagOptions(max_restarts=max_restarts, timeouts=QUICK)
    begin = time.monotonic()
    with pytest.raises(
        WorkerUnavailableError, match=f"{max_restarts + 1} workers were lost"
    ) as caught:
        run(world, options, [files["label"]] * 100_000)
    assert caught.value.hint
    assert len(world.workers) <= max_restarts + 3
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize("way", ["garbage", "cancel"])
def test_a_worker_that_answers_nonsense_once(files: dict[str, str], way: str) -> None:
    """What it had goes to another one, the image of the nonsense too."""
    ways = iter([way])
    world = World(lambda _: next(ways, "label"))
    assert codes(run(world, TagOptions(), [files["label"]] * 100)) == ["label"] * 100
    assert len(world.workers) == 2


def test_workers_that_can_do_nothing_any_more(files: dict[str, str]) -> None:
    """A GPU that is lost in the middle costs a few images a wrong record, and not all the rest."""
    labelled = 0

    def until_then(_: bytes) -> str:
        nonlocal labelled
        labelled += 1
        return "label" if labelled <= 100 else "die"

    records: list[Record] = []
    world = World(until_then)
    with pytest.raises(WorkerUnavailableError, match="workers were lost"):
        run(world, TagOptions(), [files["label"]] * 100_000, records)
    outcomes = codes(records)
    assert outcomes.count("worker_crashed") <= TRUST
    # How many depends on how much each had been given when it died; far fewer than images.
    assert len(world.workers) <= 3 * (TRUST + 21)


def test_a_worker_that_finds_fault_with_the_proof(files: dict[str, str]) -> None:
    """It is broken, though it lives: no image may be blamed on its word."""
    world = World(lambda content: "die" if content == b"die" else "error")
    with pytest.raises(WorkerUnavailableError, match="cannot label any picture: no image"):
        run(world, TagOptions(), [files["die"]] * 5)


def test_a_worker_that_drains_with_the_proof(files: dict[str, str]) -> None:
    """The proof is no image of the run: it is not handed on, nor has it a record."""
    proofs = 0

    def act(content: bytes) -> str:
        nonlocal proofs
        if content.startswith(b"\x89PNG"):
            proofs += 1
            return "drain" if proofs == 1 else "label"
        return ordered(content)

    records = run(World(act), TagOptions(), [files["die"]])
    assert codes(records) == ["worker_crashed"]
    assert proofs == 2


def test_an_image_that_hangs_is_told_from_its_neighbours(files: dict[str, str]) -> None:
    """It gets `timeout`, they get their labels."""
    kinds = ["label", "hang", "label", "hang", "die", "label"]
    options = TagOptions(timeouts=Timeouts(batch=1.0, per_image=0.001))
    records = run(World(ordered), options, [files[kind] for kind in kinds])
    expected = ["label", "timeout", "label", "timeout", "worker_crashed", "label"]
    assert codes(records) == expected


def test_a_worker_that_drains_is_nobodys_fault(files: dict[str, str]) -> None:
    """What it has not answered goes to another worker, as often as it takes."""
    answers = 0

    def act(_: bytes) -> str:
        nonlocal answers
        answers += 1
        return "drain" if answers % 10 == 0 else "label"

    world = World(act)
    records = run(world, TagOptions(max_restarts=0), [files["label"]] * 100)
    assert codes(records) == ["label"] * 100
    assert world.private == 0
    assert not any("was lost" in line for line in world.told)


def test_a_consumer_that_stops_stops_the_run(files: dict[str, str]) -> None:
    """No more inputs are taken up than the window, whoever reads how slowly."""
    taken = 0

    def endless() -> Iterator[Found]:
        nonlocal taken
        while True:
            taken += 1
            yield Found(files["label"])

    world, options = World(ordered), TagOptions()
    batches = Dispatch(endless(), lambda _: world.pool(options), options).run()
    next(batches)
    time.sleep(0.2)
    assert taken <= 512 + MAX_BATCH
    batches.close()
    for worker in world.workers:
        worker.release()


def test_a_source_that_breaks_off(files: dict[str, str]) -> None:
    """What it gave before has its records, all of it; then its error ends the run."""

    def source() -> Iterator[Found]:
        for _ in range(100):
            yield Found(files["label"])
        raise OSError("the list cannot be read any more")

    world, options = World(ordered), TagOptions()
    records: list[Record] = []

    def tag() -> None:
        for batch in Dispatch(source(), lambda _: world.pool(options), options).run():
            records.extend(outcome.record for outcome in batch)

    with pytest.raises(OSError, match="cannot be read any more"):
        tag()
    for worker in world.workers:
        worker.release()
    assert codes(records) == ["label"] * 100


def test_warming_up_does_not_spin(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may take a minute to load; whoever waits for it sleeps."""
    world, options = World(ordered), TagOptions()
    waits = 0
    wait = Dispatch._wait

    def counted(self: Dispatch) -> None:
        nonlocal waits
        waits += 1
        wait(self)

    monkeypatch.setattr(Dispatch, "_wait", counted)
    assert Dispatch(iter(()), lambda _: world.pool(options), options).warm()
    assert waits < 10
    for worker in world.workers:
        worker.release()


def test_the_proof_is_a_picture(tmp_path: Path) -> None:
    """The real decoder takes it, and it is not of one colour."""
    image = pytest.importorskip("PIL.Image")
    from wuwan_runner.run import known_picture

    (tmp_path / "proof.png").write_bytes(known_picture.picture())
    with image.open(tmp_path / "proof.png") as opened:
        opened.load()
        assert opened.size == (64, 64)
        assert opened.getextrema() == (0, 126)
    descriptor = known_picture.KnownPicture().open().descriptor
    protocol.close_all([descriptor])
