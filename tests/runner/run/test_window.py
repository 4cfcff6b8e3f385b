"""Outcomes leave in the order of their inputs, and no input is taken up too early."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wuwan_runner.records import Record
from wuwan_runner.run.outcome import Outcome
from wuwan_runner.run.window import LEAST, Window


def outcome(number: int) -> Outcome:
    """Of the input with that number."""
    return Outcome(Record(path=str(number), model="m"))


@given(st.permutations(range(30)), st.data())
def test_any_order_comes_out_in_order(order: list[int], data: st.DataObject) -> None:
    """Each once, as early as possible, whenever somebody looks."""
    window, taken, put = Window(), list[int](), set[int]()
    for number in order:
        window.put(number, outcome(number))
        put.add(number)
        if data.draw(st.booleans()):
            assert window.ready == (len(taken) in put)
            taken += [int(one.record.path) for one in window.take()]
            assert not window.ready
            assert window.emitted == len(taken)
            assert len(taken) not in put
    taken += [int(one.record.path) for one in window.take()]
    assert taken == list(range(30))


def test_the_limit_moves_with_what_is_taken() -> None:
    """What waits behind a slow image is bounded."""
    window = Window()
    assert window.limit == LEAST
    for number in range(1, LEAST):
        window.put(number, outcome(number))
    assert window.take() == []
    assert window.limit == LEAST
    window.put(0, outcome(0))
    assert len(window.take()) == LEAST
    assert window.limit == 2 * LEAST


def test_there_is_room_for_what_workers_take() -> None:
    """Twice as many as all of them may have; fewer than the least are no reason for less."""
    window = Window()
    window.fit(32)
    assert window.limit == LEAST
    window.fit(4 * 256)
    assert window.limit == 2048
