"""The command line: arguments, progress, tables, exit codes. `commands` has one module a verb."""
