"""What a walk has seen besides the images that it gave."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, field

KINDS = 100  # extensions that are counted apart: names are the user's, memory is ours
_SHOWN = 5
# A dot and up to four letters or digits. `2024.08` and `St. Moritz` are albums.
_EXTENSION = re.compile(r"\.(?=\d*[a-z])[a-z0-9]{1,4}", re.IGNORECASE)


def may_be_directory(name: str) -> bool:
    """Whether something of that name, which cannot be looked at, may be a directory.

    Nearly no directory has a file's extension, and nearly every file of another kind has one.
    """
    return not _EXTENSION.fullmatch(os.path.splitext(name)[1])


@dataclass(slots=True)
class Survey:
    """Counts as the walk goes on; complete when the walk is."""

    own: frozenset[str] = frozenset()  # names of files that this run itself writes
    kinds: Counter[str] = field(default_factory=Counter)  # by extension, in lower case
    passed_over: int = 0  # files of directories whose extension is not an image's
    absent: list[str] = field(default_factory=list)  # see `miss`; the first few
    missed: int = 0  # how many there were

    def pass_over(self, name: str) -> None:
        """A directory's file is not taken, though nobody asked for it to be left out."""
        if name in self.own:
            return
        self.passed_over += 1
        kind = os.path.splitext(name)[1].lower()
        if _EXTENSION.fullmatch(kind) and (kind in self.kinds or len(self.kinds) < KINDS):
            self.kinds[kind] += 1

    def miss(self, what: str) -> None:
        """Something that was named is not there or gave no input: a directory, or a list.

        Args:
            what: its name and what is the matter with it.
        """
        self.missed += 1
        if len(self.absent) < _SHOWN:
            self.absent.append(what)

    def describe_passed_over(self) -> str:
        """For example "12 .cr3, 3 .mov, 40 others", the most frequent first; "" for none."""
        if not self.passed_over:
            return ""
        shown = self.kinds.most_common(_SHOWN)
        parts = [f"{count:,} {kind}" for kind, count in shown]
        others = self.passed_over - sum(count for _, count in shown)
        if others:
            noun = "other" if shown else "file"
            parts.append(f"{others:,} {noun}{'' if others == 1 else 's'}")
        return ", ".join(parts)

    def describe_absent(self) -> str:
        """What `miss` was told; "" for nothing."""
        more = self.missed - len(self.absent)
        return "; ".join([*self.absent, *([f"and {more:,} more"] if more else [])])
