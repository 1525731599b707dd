"""Does a worker's memory grow beyond its share? Then another takes its place, before the kernel ends it.

Its rows may take `compute.host_memory`, and its model and libraries what they have taken once a unit is
done. What it takes beyond that, it does not give back.
"""

from __future__ import annotations

from pathlib import Path

from batchinfer.errors import DeviceError

_HEADROOM = 256 * 1024 * 1024
_OF_THE_REST = 0.25
_CLOSE = 0.9
_MIB = 1024 * 1024


class MemoryGuard:
    """The memory of one worker, in bytes of its own pages.

    `rows_bytes` may be taken by rows on their way, `fair_bytes` (0: nobody knows) is the worker's part of the
    memory that this machine or container has.
    """

    def __init__(self, rows_bytes: int, fair_bytes: int) -> None:
        self._rows = rows_bytes
        self._fair = fair_bytes
        self._limit: int | None = None
        self.model_bytes = 0
        """What it took with its model, before the first row; 0 until that is known."""

    def loaded(self, used: int) -> None:
        """Note what a worker takes with its model, before the first row. Raises DeviceError where that alone
        is more than its part: to replace it would not help."""
        self.model_bytes = used
        if self._fair and used > self._fair:
            raise DeviceError(
                f"a worker takes {used // _MIB:,} MiB of memory with its model alone, and its part of this "
                f"machine's is {self._fair // _MIB:,} MiB",
                hint="fewer compute.workers_per_device, a smaller model, or more memory",
            )

    def excess(self, used: int) -> str | None:
        """Say how a worker that has just done a unit is beyond its share; None while it is not. What it
        takes after its first unit is what it needs."""
        if self._limit is None:
            headroom = max(_HEADROOM, int(used * _OF_THE_REST))
            most = used + self._rows + headroom
            close = int(self._fair * _CLOSE) if self._fair else most
            # However little there is: one that is replaced at once would never get on.
            self._limit = max(min(most, close), used + headroom // 2)
        if used <= self._limit:
            return None
        return f"has grown to {used // _MIB:,} MiB, and its share is {self._limit // _MIB:,} MiB"


def own_bytes(pid: int) -> int:
    """Return the memory of a process that no file stands behind, shared memory included, in bytes; 0 where
    nobody can tell."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = [text.partition(name)[2].split(maxsplit=1) for name in ("RssAnon:", "RssShmem:")]
    return sum(int(number[0]) * 1024 for number in found if number)
