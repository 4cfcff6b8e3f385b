"""On the path of a `wuwan` process: checkpoints are converted by `fake_convert`."""

from __future__ import annotations

from wuwan_runner import conversion

conversion.MODULE = "fake_convert"
conversion.REQUIRED = ()
