"""Entry points beside the worker: what builds and measurements run."""
