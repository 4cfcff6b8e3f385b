"""From what the user names to open files."""
