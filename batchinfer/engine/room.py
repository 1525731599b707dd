"""How much memory the rows on their way may take, and how the stages share it."""

from __future__ import annotations

from dataclasses import dataclass

from batchinfer.data import Chunk, EncodedChunk, HostBatch, OutputBatch, UnitEnd
from batchinfer.tensors import num_bytes

_TAKEN = 2.5
"""Bytes taken for a byte that waits: what a stage works on, and what is copied once, comes on top."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Bytes that may wait behind each stage. Each always admits one item, however large it is. `parts` are
    those that are encoded or committed."""

    read: int
    encoded: int
    batches: int
    results: int
    parts: int

    @classmethod
    def of(cls, num_bytes: int) -> Room:
        """Share a worker's memory: most of it holds what a unit's end makes wait, results and parts. A part
        is counted by the bytes that it takes."""
        tenth = max(1, int(num_bytes / _TAKEN / 10))
        parts = max(1, num_bytes // 4)
        return cls(read=tenth, encoded=2 * tenth, batches=tenth, results=tenth, parts=parts)


def chunk_bytes(item: Chunk | UnitEnd) -> int:
    """Return the bytes of rows that were read."""
    return num_bytes(item.rows) if isinstance(item, Chunk) else 0


def encoded_bytes(item: EncodedChunk | UnitEnd) -> int:
    """Return the bytes of rows as they will be batched, and of what is carried."""
    return num_bytes(item.tensors) + num_bytes(item.carried) if isinstance(item, EncodedChunk) else 0


def batch_bytes(item: HostBatch) -> int:
    """Return the bytes of a batch."""
    return sum(column.nbytes for column in item.tensors.values())


def output_bytes(item: OutputBatch) -> int:
    """Return the bytes of a batch and its results."""
    own = sum(column.nbytes for column in item.tensors.values()) + batch_bytes(item.batch)
    return own + sum(output_bytes(piece) for piece in item.pieces)
