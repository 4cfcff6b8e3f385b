"""Dataclasses from maps; what holds for the messages is in `test_protocol`."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

import pytest

from wuwan_worker.shared.schema import KindError, Schema, as_map, read_by


class Colour(enum.StrEnum):
    """Two of them."""

    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Wheel:
    """A part."""

    colour: Colour
    spokes: int = 32


def _doubled(value: object) -> int:
    if not isinstance(value, int):
        raise KindError("is no number")
    return 2 * value


@dataclass(frozen=True)
class Bicycle:
    """Something of many kinds."""

    name: str
    wheels: tuple[Wheel, ...] = ()
    spare: Wheel | None = None
    bells: list[str] = field(default_factory=list)
    twice: int = field(default=0, metadata=read_by(_doubled))


SCHEMA = Schema(Bicycle)
RED = {"colour": "red"}


def test_parts_are_read_as_deep_as_they_are() -> None:
    """Arrays become what the field says, whichever they came as."""
    content = {"name": "a", "wheels": [RED, RED], "spare": RED, "bells": ("x",), "twice": 4}
    wheel = Wheel(Colour.RED)
    assert SCHEMA.read(content) == Bicycle("a", (wheel, wheel), wheel, ["x"], 8)


def test_defaults_are_not_shared() -> None:
    """A list that is absent is a new one each time."""
    assert SCHEMA.read({"name": "a"}).bells is not SCHEMA.read({"name": "a"}).bells


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "Bicycle lacks name"),
        ({"name": 1}, "Bicycle.name is a int"),
        ({"name": "a", "wheels": RED}, "Bicycle.wheels is a dict"),
        ({"name": "a", "wheels": [{}]}, "Bicycle.wheels has an element that Wheel lacks colour"),
        ({"name": "a", "spare": {"colour": "green"}}, "Wheel.colour is none of its values"),
        ({"name": "a", "spare": {"colour": ["red"]}}, "Wheel.colour is none of its values"),
        ({"name": "a", "spare": RED | {"spokes": True}}, "Wheel.spokes is a bool"),
        ({"name": "a", "twice": "x"}, "Bicycle.twice is no number"),
    ],
)
def test_what_is_wrong_is_named(content: dict[str, Any], words: str) -> None:
    """The field, however deep, and what it is instead."""
    with pytest.raises(KindError, match=words):
        SCHEMA.read(content)


def test_salvage() -> None:
    """Only what is asked for, and only what is understood."""
    content = {"name": "a", "bells": [1], "wheels": [RED], "twice": 1}
    assert SCHEMA.salvage(content, ("name", "bells", "spare", "twice")) == Bicycle("a", twice=2)
    with pytest.raises(KindError, match="lacks name"):
        SCHEMA.salvage({"name": 1}, ("name",))


def test_a_kind_that_nobody_can_read_is_found_at_once() -> None:
    """When the schema is made, and not when the first message comes."""

    @dataclass
    class Odd:
        made: complex

    with pytest.raises(TypeError, match="complex"):
        Schema(Odd)


def test_as_map_leaves_parts_to_others() -> None:
    """One level, by the fields' names."""
    wheel = Wheel(Colour.BLUE)
    made = as_map(Bicycle("a", spare=wheel))
    assert made == {"name": "a", "wheels": (), "spare": wheel, "bells": [], "twice": 0}
