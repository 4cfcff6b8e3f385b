"""Networks by PyTorch, on a GPU; on the CPU to compare with, and to convert checkpoints."""

import os

# torchvision's import makes the directory that torch.compile would write to, and a worker may make
# none. Nothing is compiled here: any directory that is there will do.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", "/")
