"""The user's models: made from checkpoints, kept, and removed."""
