"""The fair queue."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from wuwan_worker.jobs import FairQueue, Job, Options

OPTIONS = Options(top_k=5, min_score=0.0, exact=False, level="")


def _jobs(client: int, count: int, start: int = 0) -> list[Job]:
    return [Job(client, start + number, -1, OPTIONS) for number in range(count)]


def _next(queue: FairQueue) -> Job:
    job = queue.get()
    assert job is not None
    return job


def test_a_small_client_does_not_wait_behind_a_huge_one() -> None:
    """With 10,000 jobs of one client queued, another one's job is served within two."""
    queue = FairQueue()
    queue.put(1, _jobs(1, 10_000))
    for _ in range(5):
        _next(queue)
    queue.put(2, _jobs(2, 1))
    assert 2 in (_next(queue).client, _next(queue).client)


def test_clients_take_turns() -> None:
    """Each client gets one job a turn, in its own order."""
    queue = FairQueue()
    for client in (1, 2, 3):
        queue.put(client, _jobs(client, 2))
    served = [(job.client, job.id) for job in (_next(queue) for _ in range(6))]
    assert served == [(1, 0), (2, 0), (3, 0), (1, 1), (2, 1), (3, 1)]


def test_length_counts_what_waits() -> None:
    """The length is the number of jobs of all clients."""
    queue = FairQueue()
    queue.put(1, _jobs(1, 3))
    queue.put(2, _jobs(2, 2))
    queue.put(3, [])
    _next(queue)
    assert len(queue) == 4


def test_discard_returns_what_one_client_has_waiting() -> None:
    """Only that client's jobs go, and they come back to be closed."""
    queue = FairQueue()
    queue.put(1, _jobs(1, 3))
    queue.put(2, _jobs(2, 2))
    assert _next(queue).client == 1
    assert queue.discard(1) == _jobs(1, 2, start=1)
    assert queue.discard(1) == []
    assert len(queue) == 2
    assert [_next(queue).client, _next(queue).client] == [2, 2]


def test_discard_of_some_leaves_the_others_in_their_order() -> None:
    """Only those ids of that client go; its turn stays where it was."""
    queue = FairQueue()
    for client in (1, 2):
        queue.put(client, _jobs(client, 4))
    assert [job.id for job in queue.discard(1, {0, 2, 99})] == [0, 2]
    assert queue.discard(1, ()) == []
    assert queue.discard(3, {0}) == []
    assert len(queue) == 6
    assert [(job.client, job.id) for job in (_next(queue) for _ in range(4))] == [
        (1, 1),
        (2, 0),
        (1, 3),
        (2, 1),
    ]
    assert queue.discard(2, {2, 3}) == _jobs(2, 2, start=2)
    assert len(queue) == 0
    queue.put(2, _jobs(2, 1))
    assert _next(queue).client == 2


def test_close_lets_what_waits_be_taken() -> None:
    """After `close` the queue is emptied first, and then ends for everyone."""
    queue = FairQueue()
    queue.put(1, _jobs(1, 1))
    queue.close()
    assert _next(queue).id == 0
    assert queue.get() is None
    assert queue.get() is None


def test_waiting_threads_are_woken() -> None:
    """Every thread that waits gets a job, or the end."""
    queue = FairQueue()
    taken: list[Job | None] = []
    threads = [threading.Thread(target=lambda: taken.append(queue.get())) for _ in range(5)]
    for thread in threads:
        thread.start()
    queue.put(1, _jobs(1, 2))
    queue.put(2, _jobs(2, 1))
    queue.close()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert len([job for job in taken if job is not None]) == 3
    assert taken.count(None) == 2


def test_many_are_taken_only_where_many_are() -> None:
    """Fewer than the least are left to whoever takes one at a time; clients take turns."""
    queue = FairQueue()
    taken: list[list[Job]] = []
    thread = threading.Thread(target=lambda: taken.append(queue.get_many(4, 5)))
    thread.start()
    queue.put(1, _jobs(1, 3))
    thread.join(0.1)
    assert thread.is_alive()
    _next(queue)
    queue.put(1, _jobs(1, 1, start=3))
    thread.join(0.1)
    assert thread.is_alive()
    queue.put(2, _jobs(2, 4))
    thread.join(10)
    assert [(job.client, job.id) for job in taken[0]] == [(1, 1), (2, 0), (1, 2), (2, 1), (1, 3)]
    assert len(queue) == 2


def test_who_waits_for_many_takes_nobodys_call() -> None:
    """One job wakes somebody who wants one, however many wait for more."""
    queue = FairQueue()
    taken: list[Job | None] = []
    many = threading.Thread(target=lambda: queue.get_many(8, 8))
    one = threading.Thread(target=lambda: taken.append(queue.get()))
    many.start()
    one.start()
    queue.put(1, _jobs(1, 1))
    one.join(10)
    assert taken == _jobs(1, 1)
    queue.close()
    many.join(10)
    assert not many.is_alive()


def test_the_end_comes_to_who_waits_for_many() -> None:
    """What is left is taken, then nothing."""
    queue = FairQueue()
    queue.put(1, _jobs(1, 2))
    queue.close()
    assert queue.get_many(8, 8) == _jobs(1, 2)
    assert queue.get_many(8, 8) == []


@given(st.lists(st.tuples(st.sampled_from("pgd"), st.integers(0, 3), st.integers(0, 4))))
def test_no_job_is_lost_or_served_twice(steps: list[tuple[str, int, int]]) -> None:
    """Whatever is done in whatever order, each job comes out once, each client's in order."""
    queue = FairQueue()
    put = 0
    out: list[Job] = []
    for action, client, count in steps:
        if action == "p":
            queue.put(client, _jobs(client, count, start=put))
            put += count
        elif action == "d":
            out += queue.discard(client)
        elif len(queue):
            out.append(_next(queue))
    while len(queue):
        out.append(_next(queue))
    assert sorted(job.id for job in out) == list(range(put))
    for client in range(4):
        mine = [job.id for job in out if job.client == client]
        assert mine == sorted(mine)
