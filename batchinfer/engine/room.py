"""How much memory the rows on their way may take, and how the stages share it."""

from __future__ import annotations

from dataclasses import dataclass

_TAKEN = 2.5
"""Bytes taken for a byte that waits: what a stage works on, and what is copied once, comes on top."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Bytes that may wait behind each stage. Each always admits one item, however large it is."""

    read: int
    encoded: int
    batches: int
    results: int
    commits: int

    @classmethod
    def of(cls, num_bytes: int) -> Room:
        """Share a worker's memory: most of it holds what a unit's end makes wait, results and parts."""
        eighth = max(1, int(num_bytes / _TAKEN / 8))
        return cls(read=eighth, encoded=2 * eighth, batches=eighth, results=eighth, commits=3 * eighth)
