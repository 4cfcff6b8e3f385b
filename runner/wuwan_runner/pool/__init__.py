"""The workers that are up: found, started, listed, and stopped to make room."""
