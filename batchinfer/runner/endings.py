"""Where the threads of a worker stood when it ended, in words."""

from __future__ import annotations

from collections.abc import Iterable

_WAITING = ("/threading.py", "/futures/thread.py", "/runner/worker.py", "/loader/exchange.py")


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
