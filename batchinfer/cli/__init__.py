"""The command line: one file per verb, errors to exit codes."""
