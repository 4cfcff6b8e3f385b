"""One run: images out to workers, records back in order."""
