"""How a worker ended, in words: its error, its signal, where its threads stood."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from typing import TYPE_CHECKING

from batchinfer.errors import BY_EXIT_CODE, BatchinferError

if TYPE_CHECKING:
    from batchinfer.runner.messages import Failed

_WAITING = ("/threading.py", "/futures/thread.py", "/runner/worker.py")


def rebuild(failure: Failed) -> BatchinferError:
    """Make the error that a worker reported into one of ours again."""
    kind = BY_EXIT_CODE.get(failure.exit_code, BatchinferError)
    error = kind(failure.message, where=failure.where, hint=failure.hint)
    error.details = failure.details
    return error


def died_of(code: int) -> str:
    """Say in a few words how a process ended."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def standing(lines: Iterable[str]) -> list[str]:
    """Pick from a dump of stacks where each thread stood, those left out that wait for others."""
    found, heads = [], False
    for line in lines:
        if heads and line.lstrip().startswith("File") and not any(name in line for name in _WAITING):
            found.append(line.strip())
        heads = "most recent call first" in line
    return found


def quoted(lines: Iterable[str]) -> str:
    """Indent lines that somebody else has written."""
    return "\n".join(f"    {line}" for line in lines)
