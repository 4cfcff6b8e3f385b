"""Networks by PyTorch, on a GPU; on the CPU to compare with, and to convert checkpoints."""
