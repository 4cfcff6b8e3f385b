"""The command line: arguments, progress, tables, exit codes. One module a verb."""
