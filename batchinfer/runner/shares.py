"""Which part of a run is this process's, when several share it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from batchinfer.errors import UsageError

_INDEX = "JOB_COMPLETION_INDEX"
_COMPLETIONS = "JOB_COMPLETIONS"


@dataclass(frozen=True, slots=True)
class Share:
    """Every `count`-th unit from `index` on. Without a count, the index is only a name."""

    index: int | None = None
    count: int | None = None

    def of(self, units: Sequence[int]) -> list[int]:
        """Return those of some units that are this process's."""
        if self.count is None or self.index is None:
            return list(units)
        return [unit for unit in units if unit % self.count == self.index]

    def __str__(self) -> str:
        return "" if self.count is None else f"{self.index}/{self.count}"

    def leases(self, claims: str) -> bool:
        """Tell whether units are claimed, block by block, rather than dealt from the start."""
        return claims == "lease" or (claims == "auto" and self.index is not None and self.count is None)


def share_of(text: str | None, environment: Mapping[str, str] = os.environ) -> Share:
    """Read `--shard i/n`; without it, what an indexed Kubernetes Job says. Raises UsageError."""
    if text is None:
        return _from_kubernetes(environment)
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or int(found[1]) >= int(found[2]):
        raise UsageError(
            f"--shard {text!r} names no share", hint="write --shard i/n with i from 0 to n-1, such as 0/4"
        )
    return Share(int(found[1]), int(found[2]))


def _from_kubernetes(environment: Mapping[str, str]) -> Share:
    index, count = environment.get(_INDEX, ""), environment.get(_COMPLETIONS, "")
    if not index.isdigit():
        return Share()
    if not count.isdigit() or int(count) <= int(index):
        return Share(int(index))
    return Share(int(index), int(count)) if int(count) > 1 else Share()
