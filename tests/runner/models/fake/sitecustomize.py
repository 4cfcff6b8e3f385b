"""On the path of a `wuwan` process: `fake_convert` reads checkpoints; no hub is waited for."""

from __future__ import annotations

from wuwan_runner.models import conversion, modelscope

conversion.MODULE = "fake_convert"
conversion.REQUIRED = ()
modelscope._PAUSE = 0.01
