"""How much of its device's memory a worker needs, and how to give back what it does not."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchinfer.protocols import Backend

_KIB = 1024


class MemoryUse:
    """The share of a device's memory that was taken at most since `reset`: on "cuda:N" by torch and the
    driver; on "cpu" since the process began, against what it has and could still get.

    A backend that knows better, as it has a device of its own, says so itself (`peak_memory`).
    """

    def __init__(self, backend: Backend, device: str) -> None:
        self._ask: Callable[[], float | None] | None = getattr(backend, "peak_memory", None)
        self._device = device
        self._room = 0
        self.reset()

    def reset(self) -> None:
        """Forget what was taken so far."""
        if self._ask is not None:
            self._ask()
        elif self._device == "cpu":
            # Not the kernel's mark of how large the process was: the run reports that one.
            self._room = _of_process("VmRSS") + _available_bytes()
        elif (torch := _torch()) is not None:
            torch.cuda.reset_peak_memory_stats(self._device)

    def share(self) -> float | None:
        """Return the share that was taken at most, from 0 to 1; None where nobody knows."""
        if self._ask is not None:
            return self._ask()
        if self._device == "cpu":
            peak = _of_process("VmHWM")
            return peak / self._room if peak and self._room else None
        if (torch := _torch()) is None:
            return None
        free, total = torch.cuda.mem_get_info(self._device)
        # What torch holds in reserve, it would give to whoever needs it.
        others = total - free - torch.cuda.memory_reserved(self._device)
        return float((others + torch.cuda.max_memory_allocated(self._device)) / total)


def free_memory(error: BaseException) -> None:
    """Let go of what a batch that did not fit still holds: the frames where it failed, and what torch keeps
    of a GPU's memory for later."""
    one: BaseException | None = error
    while one is not None:
        traceback.clear_frames(one.__traceback__)
        one = one.__cause__ or one.__context__
    if (torch := _torch()) is not None:
        torch.cuda.empty_cache()


def _torch() -> Any:
    """Return torch where it is at work on a GPU."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_initialized() else None


def _of_process(name: str) -> int:
    """Return one of this process's sizes, in bytes; 0 where the kernel does not tell."""
    return _field("/proc/self/status", f"{name}:") * _KIB


def _available_bytes() -> int:
    """Return what the machine, or this process's container, could still give."""
    found = [_field("/proc/meminfo", "MemAvailable:") * _KIB]
    with contextlib.suppress(OSError, ValueError):
        folder = Path("/sys/fs/cgroup")
        most = int((folder / "memory.max").read_text())
        taken = int((folder / "memory.current").read_text())
        # Pages of files count as taken, and go when they are needed otherwise.
        files = sum(_field(f"{folder}/memory.stat", name) for name in ("active_file", "inactive_file"))
        found.append(max(most - taken + files, 0))
    return min(found)


def _field(path: str, name: str) -> int:
    """Return the number after a name at the start of a line; 0 where there is none."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(path).read_text().splitlines():
            if line.split(maxsplit=1)[:1] == [name]:
                return int(line.split()[1])
    return 0
