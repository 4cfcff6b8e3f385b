"""Which GPUs there are, and which of them the workers of a run get."""
