"""Errors to messages and exit codes: what a person reads, what a scheduler reads."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback

import typer

from batchinfer.errors import BatchinferError, ExitCode, LocalDiskError
from batchinfer.redact import redact, visible

_WrongCommandLine: type[Exception] = typer.BadParameter.__mro__[2]
"""click's ClickException, or that of the click that newer typers carry inside."""


def in_our_words(error: BaseException) -> BaseException:
    """Turn what the system says of this process's limits into an error of ours."""
    if isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}:
        return BatchinferError(
            "this process may not open more files",
            where=error.filename,
            hint="raise its limit: ulimit -n 4096",
        )
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT} and not error.filename:
        _forget_output()
        return LocalDiskError(
            f"what was to be printed cannot be written: {error.strerror}",
            hint="send the output of the command to a disk with room",
        )
    return error


def exit_code_of(error: BaseException) -> int:
    """Return the exit code for whatever ended the command."""
    if isinstance(error, BatchinferError):
        return error.exit_code
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, _WrongCommandLine):
        return ExitCode.USAGE
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else ExitCode.CRASH
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return 130
    return ExitCode.CRASH


def show_failure(error: BaseException) -> None:
    """Print what happened, where, and the way out, to stderr."""
    if isinstance(error, (typer.Exit, SystemExit)):
        return
    if isinstance(error, _WrongCommandLine):
        error.show()  # type: ignore[attr-defined]
    elif isinstance(error, BatchinferError):
        _say(f"{_red('error')}[{error.kind}]: {error}")
        if error.details and os.environ.get("BATCHINFER_DEBUG"):
            _say(visible(error.details, lines=True))
    elif isinstance(error, (KeyboardInterrupt, typer.Abort)):
        _say("interrupted")
    else:
        _say(visible(redact("".join(traceback.format_exception(error))), lines=True))
        _say(f"{_red('error')}[bug]: this should not happen; please report it with the lines above")


def _forget_output() -> None:
    """Give standard output nowhere to go: what Python still keeps for it would fail again at exit, and
    change the exit code."""
    with contextlib.suppress(OSError, ValueError, AttributeError), open(os.devnull, "w") as nowhere:  # noqa: PTH123 - no path
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _red(text: str) -> str:
    plain = not sys.stderr.isatty() or "NO_COLOR" in os.environ
    return text if plain else f"\x1b[1;31m{text}\x1b[0m"


def _say(text: str) -> None:
    # Where stderr is closed or full, the exit code still tells.
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - this is the place that prints
