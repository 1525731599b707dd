"""Named points at which a test can kill the process: `BATCHINFER_CRASH=commit.before_link:3` dies at the
third passing; with `:FILE` behind it, only the first process that can create the file does. Without
the variable a point is one comparison; outside the project's tests it is refused.
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
    "errors.before",
    "errors.after",
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
    """Counts how often its point is passed, and dies the n-th time."""

    def __init__(self, name: str, count: int, once: str) -> None:
        self._name = name
        self._left = count
        self._once = once
        self._lock = threading.Lock()

    def __call__(self, passed: str) -> None:
        """Die if this passing is the one."""
        if passed != self._name:
            return
        with self._lock:
            self._left -= 1
            if self._left == 0 and (not self._once or self._is_first()):
                os.kill(os.getpid(), signal.SIGKILL)

    def _is_first(self) -> bool:
        try:
            os.close(os.open(self._once, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


_watch: Callable[[str], None] | None = None


def crash_point(name: str) -> None:
    """Die here by SIGKILL, if a test has asked for it."""
    if _watch is not None:
        _watch(name)


def arm() -> None:
    """Read the variable, once, when a process begins.

    Raises JobFileError where it is set outside the project's tests, or names no point.
    """
    asked = os.environ.get(VARIABLE)
    if not asked:
        return
    name, _, rest = asked.partition(":")
    count, _, once = rest.partition(":")
    if PERMISSION not in os.environ:
        raise JobFileError(
            f"{VARIABLE} is set: it makes the process kill itself, and is for batchinfer's own tests",
            hint=f"unset {VARIABLE}",
        )
    if name not in CRASH_POINTS or not (count or "1").isdigit():
        raise JobFileError(f"{VARIABLE}={asked!r} names no crash point", hint=f"unset {VARIABLE}")
    watch(_Armed(name, int(count or "1"), once))


def watch(listener: Callable[[str], None] | None) -> None:
    """Let a listener hear of every point that is passed."""
    global _watch  # noqa: PLW0603 - one switch for the process, as the variable is
    _watch = listener
