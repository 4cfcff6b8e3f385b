"""Connections to workers: where they are found, and what is said."""
