"""Record batches in memory that two processes share: written by one, read in place by the other.

A slab is a memfd: it needs no room in /dev/shm, and the kernel frees it with the last process that has
it. It is sparse, so that its size costs nothing until it is written to.
"""

from __future__ import annotations

import itertools
import mmap
import os
import weakref
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

SLAB_BYTES = 64 * 1024 * 1024
"""Size of a slab. Rows that need more get one of their own, which is not used again."""

_KEPT_WARM = 4
_MOST_LENT = 32


@dataclass(frozen=True, slots=True)
class Place:
    """Where rows lie: the first `length` bytes of a slab whose file has `size` bytes."""

    slab: int
    size: int
    length: int


@dataclass(frozen=True, slots=True)
class _Slab:
    fd: int
    memory: mmap.mmap


class SlabWriter:
    """The side that owns slabs and writes rows into them. Used by one thread at a time."""

    def __init__(self) -> None:
        self._ids = itertools.count()
        self._slabs: dict[int, _Slab] = {}
        self._free: list[int] = []

    def write(self, rows: pa.RecordBatch) -> tuple[Place, int | None]:
        """Copy rows into a free slab, as an Arrow IPC stream.

        Returns its place, and its file descriptor if the other side does not have it yet.
        """
        length = _stream_bytes(rows)
        if length <= SLAB_BYTES and self._free:
            slab, fd = self._free.pop(), None
        else:
            slab, fd = self._new(max(length, SLAB_BYTES))
        memory = self._slabs[slab].memory
        with (
            pa.FixedSizeBufferWriter(pa.py_buffer(memory)) as out,
            pa.ipc.new_stream(out, rows.schema) as stream,
        ):
            stream.write_batch(rows)
        return Place(slab, len(memory), length), fd

    def release(self, slabs: Iterable[int]) -> None:
        """Take slabs back that the other side has no view of any more."""
        for slab in slabs:
            found = self._slabs[slab]
            if len(found.memory) > SLAB_BYTES:
                self._drop(slab)
                continue
            if len(self._free) >= _KEPT_WARM:
                # What a burst has filled goes back to the kernel; the mappings stay.
                os.ftruncate(found.fd, 0)
                os.ftruncate(found.fd, SLAB_BYTES)
                self._free.insert(0, slab)
            else:
                self._free.append(slab)

    def close(self) -> None:
        """Let go of all slabs; views on the other side stay good."""
        for slab in list(self._slabs):
            self._drop(slab)
        self._free.clear()

    def _new(self, size: int) -> tuple[int, int]:
        fd = os.memfd_create("batchinfer")
        os.ftruncate(fd, size)
        slab = next(self._ids)
        self._slabs[slab] = _Slab(fd, mmap.mmap(fd, size))
        return slab, fd

    def _drop(self, slab: int) -> None:
        os.close(self._slabs.pop(slab).fd)


class SlabReader:
    """The side that reads. What it returns may live in any thread, for as long as it likes."""

    def __init__(self, *, most_lent: int = _MOST_LENT) -> None:
        self._most_lent = most_lent
        self._mapped: dict[int, mmap.mmap] = {}
        self._lent = 0
        # A finalizer runs in any thread, in the middle of anything: appending needs no lock.
        self._released: deque[int] = deque()

    def read(self, place: Place, fd: int | None) -> pa.RecordBatch:
        """Return the rows at a place, without a copy; `fd` is taken over.

        Where many slabs are lent already (small rows that wait for a large window), the rows are
        copied, so that neither descriptors nor memory grow with what waits.
        """
        memory = self._map(place, fd)
        view = np.frombuffer(memory, np.uint8, count=place.length)
        if self._lent >= self._most_lent:
            view = view.copy()
            self._released.append(place.slab)
        else:
            # The array is what every Arrow buffer, and whatever is made of one, holds on to.
            weakref.finalize(view, self._released.append, place.slab).atexit = False
        self._lent += 1
        return pa.ipc.open_stream(pa.py_buffer(view)).read_next_batch()

    def released(self) -> list[int]:
        """Return the slabs that nobody here has a view of any more, each once."""
        found = [self._released.popleft() for _ in range(len(self._released))]
        self._lent -= len(found)
        return found

    def close(self) -> None:
        """Forget the slabs; those with a view left stay mapped until it goes."""
        self._mapped.clear()

    def _map(self, place: Place, fd: int | None) -> mmap.mmap:
        if fd is None:
            return self._mapped[place.slab]
        try:
            memory = mmap.mmap(fd, place.size, prot=mmap.PROT_READ)
        finally:
            os.close(fd)
        if place.size <= SLAB_BYTES:
            self._mapped[place.slab] = memory
        return memory


def _stream_bytes(rows: pa.RecordBatch) -> int:
    """Return how many bytes `rows` take as a stream, without writing them."""
    counter = pa.MockOutputStream()
    with pa.ipc.new_stream(counter, rows.schema) as stream:
        stream.write_batch(rows)
    return int(counter.size())
