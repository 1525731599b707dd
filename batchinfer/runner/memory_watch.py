"""Ends a worker before the container's memory is full.

Where memory runs out, the kernel ends a process of its choice, and on Kubernetes the whole container: the
supervisor too, which would know whose rows were in hand. A worker that is ended here is one that died with
its rows in hand, as any other that dies.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from batchinfer.runner.control_group import ControlGroup
    from batchinfer.runner.member import Member

_LOOK_S = 0.02
_REST = 20
"""Looking takes at most a twentieth of a core, however long it takes."""
_GONE_S = 0.5
_SPARE = 0.04
_LEAST_SPARE = 96 * 1024 * 1024
_LEAST_GROWTH = 128 * 1024 * 1024
_MIB = 1024 * 1024


class MemoryWatch:
    """Looks at a control group from a thread of its own, where the group has a limit. `members` may change
    while it looks.

    A worker is ended where the workers themselves fill the group: where they have taken, beyond what their
    model takes, more than everybody else has together. Then it is the one that has grown most. Where others
    hold the memory, to end a worker would help for a moment and blame the rows that it happens to have: it is
    left to the kernel whom to end.
    """

    def __init__(self, group: ControlGroup, members: Sequence[Member]) -> None:
        self._group = group
        self._members = members
        self._num_kills = group.num_kills()
        self._full = group.limit - max(_LEAST_SPARE, int(group.limit * _SPARE))
        self._model_bytes = 0
        self._said = self._others = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def killed(self) -> str:
        """Say how the kernel has ended a process for want of memory, once for each that it has; empty where
        there is none of which this has not been said."""
        if self._group.num_kills() <= self._num_kills:
            return ""
        self._num_kills += 1
        limit = self._group.limit
        most = f", where all processes together may take {limit // _MIB:,} MiB" if limit else ""
        return f"was ended by the kernel for want of memory{most}"

    def __enter__(self) -> Self:
        if self._full > 0:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()

    def _watch(self) -> None:
        pause = _LOOK_S
        while not self._stop.wait(pause):
            began = time.perf_counter()
            self._learn()
            # What is used is at least what is held, and quicker to read.
            used = self._group.used()
            if used > self._full and self._end_largest(used):
                pause = _GONE_S
            else:
                pause = max(_LOOK_S, _REST * (time.perf_counter() - began))

    def _learn(self) -> None:
        """Note what the model takes: the least of all workers, for some have had rows before they said."""
        known = [member.guard.model_bytes for member in list(self._members) if member.guard.model_bytes]
        self._model_bytes = min([*known, *([self._model_bytes] if self._model_bytes else [])], default=0)

    def _end_largest(self, used: int) -> bool:
        """End the worker that has grown most, if the group is full and the workers fill it. Returns whether
        one was ended."""
        members = list(self._members)
        own = [member.worker.own_bytes() for member in members]
        others = self._held_by_others(sum(own))
        grown = [max(taken - self._model_bytes, 0) for taken in own]
        if min(others + sum(own), used) <= self._full or sum(grown) < others:
            return False
        there = [
            at
            for at, member in enumerate(members)
            if member.worker.can_be_killed and not (member.killed or member.no_memory)
        ]
        largest = max(there, key=lambda at: grown[at], default=None)
        if largest is None or grown[largest] < _LEAST_GROWTH:
            return False
        members[largest].no_memory = (
            f"took {own[largest] // _MIB:,} MiB of memory, where all processes together may take "
            f"{self._group.limit // _MIB:,} MiB, and was ended"
        )
        members[largest].worker.kill()
        return True

    def _held_by_others(self, own: int) -> int:
        """Return what others than the workers hold. The kernel may say for seconds what the group held
        before, while what each process has is always new: so what others hold is told when it says something
        else."""
        said = self._group.held()
        if said != self._said:
            self._said, self._others = said, max(said - own, 0)
        return self._others
