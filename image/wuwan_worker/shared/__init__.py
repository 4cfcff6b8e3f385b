"""All that the other packages may import of the worker: the wire, models on disk, directories."""
