"""Named points at which a test can kill the process: `BATCHINFER_CRASH=commit.before_link:3` dies at the
third passing. Without the variable a point is one comparison; outside the project's tests it is refused.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

from batchinfer.errors import JobFileError

VARIABLE = "BATCHINFER_CRASH"
PERMISSION = "BATCHINFER_TESTING"

CRASH_POINTS = (
    "plan.before_put",
    "plan.after_put",
    "plan.readback",
    "gen.before",
    "gen.after",
    "claim.before",
    "claim.after",
    "hb.before",
    "hb.after",
    "read.open",
    "read.mid",
    "infer.before",
    "infer.mid",
    "encode.mid",
    "encode.done",
    "side.before",
    "side.after",
    "spill.before",
    "spill.after",
    "commit.tmp_half",
    "commit.before_fsync",
    "commit.before_link",
    "commit.sent",
    "commit.after",
    "count.after",
    "final.list",
    "final.manifest.before",
    "final.manifest.after",
    "final.success.before",
    "final.success.after",
    "gc.before_delete",
    "gc.after_first_delete",
)


class _Armed:
    """Counts how often its point is passed, and acts the n-th time."""

    def __init__(self, name: str, count: int) -> None:
        self.name = name
        self._left = count
        self._lock = threading.Lock()

    def due(self, name: str) -> bool:
        """Tell whether this passing is the one."""
        with self._lock:
            self._left -= name == self.name
            return name == self.name and self._left == 0


def crash_point(name: str) -> None:
    """Die here by SIGKILL, if a test has asked for it."""
    if _watch is not None:
        _watch(name)


def misuse() -> str | None:
    """Say what is wrong with the variable, if it is set and should not be."""
    asked = os.environ.get(VARIABLE)
    if not asked:
        return None
    if PERMISSION not in os.environ:
        return f"{VARIABLE} is set: it makes the process kill itself, and is for batchinfer's own tests"
    name, _, count = asked.partition(":")
    if name not in CRASH_POINTS or not (count or "1").isdigit():
        return f"{VARIABLE}={asked!r} names no crash point"
    return None


def refuse_misuse() -> None:
    """Raise JobFileError where the variable is set outside the project's tests, or names no point."""
    if (wrong := misuse()) is not None:
        raise JobFileError(wrong, hint=f"unset {VARIABLE}")


def watch(listener: Callable[[str], None] | None) -> None:
    """Let a test hear of every point that is passed, in place of the variable."""
    global _watch  # noqa: PLW0603 - one switch for the process, as the variable is
    _watch = listener


def _from_environment() -> Callable[[str], None] | None:
    asked = os.environ.get(VARIABLE)
    if not asked or misuse() is not None:
        return None
    name, _, count = asked.partition(":")
    armed = _Armed(name, int(count or "1"))

    def kill(passed: str) -> None:
        """Die at the asked passing of the asked point."""
        if armed.due(passed):
            os.kill(os.getpid(), signal.SIGKILL)

    return kill


_watch: Callable[[str], None] | None = _from_environment()
