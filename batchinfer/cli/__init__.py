"""The command line: one file per verb, errors to exit codes."""

from __future__ import annotations


def main() -> None:
    """Run the command line and exit with a code of the table in `errors`."""
    from batchinfer.cli.app import run_app

    run_app()
