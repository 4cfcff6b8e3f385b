"""Towards the shell: exit codes and signals."""
