"""Networks by PyTorch, on a GPU; on the CPU to compare with, and to convert checkpoints."""

import os
import tempfile

# Its import looks for a directory for temporary files, by writing to it, and makes one for what it
# would compile. A worker may write nothing (`serving.sandbox`), and nothing is compiled: a name is
# enough for the one, and for the other a directory that is there.
if tempfile.tempdir is None:
    tempfile.tempdir = os.environ.get("TMPDIR") or "/tmp"  # noqa: S108
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.dirname(os.path.abspath(__file__)))
