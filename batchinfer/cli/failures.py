"""Errors to messages and exit codes: what a person reads, what a scheduler reads."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback

import typer

from batchinfer.cli.told import TOLD, error_line
from batchinfer.errors import BatchinferError, ExitCode, LocalDiskError, UsageError
from batchinfer.events import RunFailed
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


def show_failure(error: BaseException, *, as_json: bool = False) -> None:
    """Print what happened, where, and the way out, to stderr; as one line of JSON where that was asked for,
    and only what the log of the run has not said."""
    if isinstance(error, (typer.Exit, SystemExit)):
        return
    if as_json:
        _show_json(error)
        return
    if isinstance(error, _WrongCommandLine):
        error.show()  # type: ignore[attr-defined]
    elif isinstance(error, BatchinferError):
        _say(f"{_red('error')}[{error.kind}]: {error}")
        if details := _details(error):
            _say(visible(details, lines=True))
    elif isinstance(error, (KeyboardInterrupt, typer.Abort)):
        _say("interrupted")
    else:
        _say(visible(_details(error), lines=True))
        _say(f"{_red('error')}[bug]: this should not happen; please report it with the lines above")


def _show_json(error: BaseException) -> None:
    if isinstance(error, _WrongCommandLine):
        failed = RunFailed(kind=UsageError.kind, message=error.format_message())  # type: ignore[attr-defined]
        _say(error_line(failed))
        return
    details = _details(error)
    if details or not TOLD.is_told:
        stopped = isinstance(error, typer.Abort)
        _say(error_line(RunFailed.of(KeyboardInterrupt() if stopped else error), details))


def _details(error: BaseException) -> str:
    """Return the traceback of a bug; of what went wrong in a worker, where somebody asks for it."""
    if isinstance(error, BatchinferError):
        return error.details if os.environ.get("BATCHINFER_DEBUG") else ""
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return ""
    return redact("".join(traceback.format_exception(error)))


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
