"""From a map of msgpack's types to a dataclass.

A field that is absent takes its default; one without a default must be there. What the class does
not know is ignored, so that a peer may say more than we understand. What it does know must be of
the right kind: a wrong kind is no older or newer peer, but a broken one.

The kinds are str, int, float, bool, str enumerations, dataclasses, `X | None`, and `list[X]` or
`tuple[X, ...]` of these. int passes for float, bool for neither.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any, Generic, TypeAlias, TypeVar

T = TypeVar("T")
Reader: TypeAlias = Callable[[object], Any]

_READER = "wuwan_reader"


class KindError(ValueError):
    """A field is missing, or of the wrong kind."""


class Schema(Generic[T]):
    """How one dataclass is read."""

    def __init__(self, cls: Callable[..., T]) -> None:
        """
        Raises:
            TypeError: if a field is of a kind that is not listed above, and has no `read_by`.
        """
        self._cls = cls
        self.name = getattr(cls, "__name__", "")
        self._readers: dict[str, Reader] = {}
        self._required: list[str] = []
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(typing.cast("Any", cls)):
            self._readers[field.name] = field.metadata.get(_READER) or _reader(hints[field.name])
            if field.default is field.default_factory is dataclasses.MISSING:
                self._required.append(field.name)

    def read(self, content: Mapping[Any, object]) -> T:
        """The dataclass of a map. Raises KindError."""
        values = {}
        for name, reader in self._readers.items():
            if name in content:
                try:
                    values[name] = reader(content[name])
                except KindError as error:
                    raise KindError(f"{self.name}.{name} {error}") from None
        return self._made(values)

    def read_any(self, value: object) -> T:
        """As `read`, of what may be no map. Raises KindError."""
        if not isinstance(value, dict):
            raise KindError(f"is a {type(value).__name__}")
        return self.read(value)

    def salvage(self, content: Mapping[Any, object], names: Collection[str]) -> T:
        """As `read`, but of those fields alone, and what is of the wrong kind counts as absent."""
        values = {}
        for name in names:
            try:
                values[name] = self._readers[name](content[name])
            except (KeyError, KindError):
                continue
        return self._made(values)

    def _made(self, values: dict[str, Any]) -> T:
        if missing := [name for name in self._required if name not in values]:
            raise KindError(f"{self.name} lacks {', '.join(missing)}")
        return self._cls(**values)


def read_by(reader: Reader) -> dict[str, Reader]:
    """The metadata of a field that is read by a function of its own, which raises KindError."""
    return {_READER: reader}


def as_map(value: Any) -> dict[str, object]:
    """The fields of a dataclass; those within are left to whoever meets them."""
    return {name: getattr(value, name) for name in _names(type(value))}


_NAMES: dict[type, tuple[str, ...]] = {}


def _names(cls: type) -> tuple[str, ...]:
    if (names := _NAMES.get(cls)) is None:
        names = _NAMES[cls] = tuple(field.name for field in dataclasses.fields(cls))
    return names


def _reader(hint: Any) -> Reader:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType and len(arguments) == 2 and arguments[1] is type(None):
        return _optional(_reader(arguments[0]))
    if origin in (list, tuple):
        return _sequence(origin, _reader(arguments[0]))
    if hint is float:
        return _plain(float, int)
    if hint in (str, int, bool, bytes):
        return _plain(hint)
    if isinstance(hint, type) and issubclass(hint, enum.StrEnum):
        return _enumerated(hint)
    if dataclasses.is_dataclass(hint):
        return Schema(typing.cast("Any", hint)).read_any
    raise TypeError(f"fields of kind {hint} cannot be read")


def _plain(*kinds: type) -> Reader:
    # By its very class: bool is an int to Python, but not here.
    def read(value: object) -> object:
        if type(value) not in kinds:
            raise KindError(f"is a {type(value).__name__}")
        return value

    return read


def _optional(reader: Reader) -> Reader:
    return lambda value: None if value is None else reader(value)


def _sequence(cls: type[list[Any]] | type[tuple[Any, ...]], reader: Reader) -> Reader:
    def read(value: object) -> object:
        if not isinstance(value, list | tuple):
            raise KindError(f"is a {type(value).__name__}")
        try:
            return cls(map(reader, value))
        except KindError as error:
            raise KindError(f"has an element that {error}") from None

    return read


def _enumerated(cls: type[enum.StrEnum]) -> Reader:
    def read(value: object) -> object:
        try:
            return cls(typing.cast("str", value))
        except ValueError:
            raise KindError(f"is none of its values: {value!r:.40}") from None

    return read
