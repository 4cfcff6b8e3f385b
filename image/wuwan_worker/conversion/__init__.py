"""From a checkpoint to a bundle, where torch is."""
