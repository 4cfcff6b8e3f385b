"""Label photos from Python: `from wuwan import Tagger, TagOptions`.

The public names of `wuwan_runner`, loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import wuwan_runner
from wuwan_runner import __all__ as __all__
from wuwan_worker import __version__ as __version__

if TYPE_CHECKING:
    from wuwan_runner import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(wuwan_runner, name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
