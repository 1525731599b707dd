"""Ends a worker before the container's memory is full.

Where memory runs out, the kernel ends a process of its choice, and on Kubernetes the whole container: the
supervisor too, which would know whose rows were in hand. A worker that is ended here is one that died with
its rows in hand, as any other that dies.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from batchinfer.runner.control_group import ControlGroup
    from batchinfer.runner.member import Member

_CLOSE = 0.7
_SELDOM_S = 0.25
_OFTEN_S = 0.02
_GONE_S = 0.5
_SPARE = 0.04
_LEAST_SPARE = 96 * 1024 * 1024


class MemoryWatch:
    """Looks at a control group from a thread of its own, where the group has a limit. `members` may change
    while it looks."""

    def __init__(self, group: ControlGroup, members: Sequence[Member]) -> None:
        self._group = group
        self._members = members
        self._num_kills = group.num_kills()
        self._full = group.limit - max(_LEAST_SPARE, int(group.limit * _SPARE))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def has_killed(self) -> bool:
        """Tell whether the kernel has ended a process for want of memory since this was asked last."""
        before, self._num_kills = self._num_kills, self._group.num_kills()
        return self._num_kills > before

    def __enter__(self) -> Self:
        if self._full > 0:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()

    def _watch(self) -> None:
        pause = _SELDOM_S
        while not self._stop.wait(pause):
            held = self._group.held()
            pause = _OFTEN_S if held > self._group.limit * _CLOSE else _SELDOM_S
            if held > self._full:
                self._end_largest()
                pause = _GONE_S

    def _end_largest(self) -> None:
        there = [member for member in list(self._members) if not member.killed]
        if there:
            largest = max(there, key=lambda member: member.worker.own_bytes())
            largest.is_too_large = True
            largest.worker.kill()
