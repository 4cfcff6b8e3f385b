"""What can be wrong with a file: so much that it has no labels, or less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wuwan_worker.shared.protocol import ErrorCode, WarningCode


class ItemError(Exception):
    """One image cannot be labelled; `code` and the message go into its record."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Flaw:
    """What was missing or repaired in a picture that has labels all the same."""

    code: WarningCode
    message: str
