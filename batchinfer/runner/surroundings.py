"""What a run's supervisor is told of the machine around its workers, and where it leaves what they left."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Self

from batchinfer.device_health import HealthWatch, Trouble
from batchinfer.runner.control_group import ControlGroup, memory_here
from batchinfer.runner.memory_guard import MemoryGuard
from batchinfer.runner.memory_watch import MemoryWatch
from batchinfer.runner.stacks import Stacks

if TYPE_CHECKING:
    from batchinfer.runner.member import Member
    from batchinfer.runner.messages import Start
    from batchinfer.storage import Store


class Surroundings:
    """The health of the devices, the memory of the machine, and the folder for dumps. Nothing here waits."""

    def __init__(self, devices: Sequence[str], store: Store, root: str, run: str) -> None:
        """Begin to watch the devices, each of which has as many workers as it is named."""
        self._health = HealthWatch(devices)
        self._stacks = Stacks(store, root, run)
        self._fair_bytes = memory_here() // max(len(devices), 1)
        self.members: list[Member] = []
        """The workers that are there: whoever starts one adds it."""
        self._memory = MemoryWatch(ControlGroup(), self.members)

    def troubles(self) -> list[Trouble]:
        """Return what is wrong with devices since the last call."""
        return self._health.troubles()

    def memory_guard(self, start: Start) -> MemoryGuard:
        """Return what judges the memory of a worker that starts."""
        return MemoryGuard(start.memory_bytes, self._fair_bytes)

    def killed(self) -> str:
        """Say how the kernel has ended a process for want of memory, once for each; empty: it has not."""
        return self._memory.killed()

    def keep_stacks(self, worker: int, lines: Iterable[str]) -> str | None:
        """Keep the stacks that a worker printed. Returns where; None where there are none."""
        return self._stacks.keep(worker, lines)

    def __enter__(self) -> Self:
        self._memory.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._memory.__exit__(*error)
        self._health.close()
        self._stacks.close()
