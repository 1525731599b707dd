"""How a worker ended, and where its threads stood, in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from batchinfer.data import ErrorCode
from batchinfer.device_faults import harm_of
from batchinfer.errors import DeviceError, from_message
from batchinfer.lifeline import died_of

if TYPE_CHECKING:
    from batchinfer.runner.messages import Failed

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


def ending(
    code: int, failure: Failed | None, stalled_s: float | None, *, has_begun: bool, no_memory: str
) -> tuple[str, ErrorCode]:
    """Say how a worker ended: by a signal or an exit code, for want of memory as was told, after a silence of
    `stalled_s`, or with a device that failed under it. Raises every other error that it told, also one of a
    device that is missing."""
    if failure is not None:
        error = from_message(asdict(failure))
        if not isinstance(error, DeviceError) or not (has_begun or _is_of_device(error)):
            raise error
        return f"ended: {error.message}", ErrorCode.DEVICE
    if stalled_s is not None:
        return f"finished nothing for {stalled_s:.0f} s and was ended", ErrorCode.TIMEOUT
    if no_memory:
        return no_memory, ErrorCode.MEMORY
    return f"died ({died_of(code)})", ErrorCode.CRASH


def _is_of_device(error: DeviceError) -> bool:
    """Tell whether another device may do better: a model that is too large is too large everywhere."""
    return bool(error.fault) and harm_of(error.fault) != "memory"
