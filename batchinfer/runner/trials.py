"""Inside a worker that `tune` has started: rows are read once, and computed again and again, in batches that
are cut in different ways."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from batchinfer.config import Job
from batchinfer.config.machine import apply_resolved
from batchinfer.data import EncodedChunk, HostBatch, UnitEnd
from batchinfer.engine.device import overlap
from batchinfer.engine.isolate import Isolator
from batchinfer.engine.memory_use import MemoryUse, free_memory
from batchinfer.engine.room import batch_bytes, encoded_bytes
from batchinfer.errors import DataError, OutOfMemory
from batchinfer.loader.prefetch import ordered_map
from batchinfer.loader.windows import WindowPolicy, batches_of
from batchinfer.runner.batching import batch_policy
from batchinfer.runner.messages import Computing, Tried, Try

if TYPE_CHECKING:
    from batchinfer.data import OutputBatch
    from batchinfer.runner.assemble import Assembly
    from batchinfer.runner.messages import Start

_ROWS_BYTES = 256 * 1024 * 1024
_BATCHES_BYTES = 512 * 1024 * 1024
_ALL_ROWS = 2**40
_GOLDEN = 0.6180339887
"""Steps of this length visit a circle evenly, wherever one stops."""


class Trials:
    """The rows of a sample, encoded, and the model that computes them. Raises DataError where no row of the
    sample can be computed."""

    def __init__(self, start: Start, assembly: Assembly) -> None:
        assert assembly.way is not None
        assert assembly.contract is not None
        self._job = Job.from_message(start.job)
        self._device = start.device
        self._lanes = start.concurrency
        self._way = assembly.way
        self._contract = assembly.contract
        self._backend = assembly.backend
        self._memory = MemoryUse(assembly.backend, start.device)
        with closing(self._way.chunks):
            self._rows = list(self._encoded())
        self._settings: dict[str, int | str] = {}
        self._batches: list[HostBatch] = []
        self._is_whole = False
        self._num_rows = sum(len(chunk.good) for chunk in self._rows)
        if not self._num_rows:
            raise DataError("none of the rows that were to be measured can be computed")

    def run(self, attempt: Try) -> Tried:
        """Compute batches that are cut in one way, for so many seconds; for none, only get ready. Rows that
        the model refuses are left out."""
        try:
            return self._try(attempt)
        except DataError:
            self._rows = list(self._good_rows())
            self._num_rows = sum(len(chunk.good) for chunk in self._rows)
            self._settings = {}
            return self._try(attempt)

    def _good_rows(self) -> Iterator[EncodedChunk]:
        """Yield the rows that the model takes. Raises DataError where it takes none."""
        policy, way = self._way.batches, self._way
        isolator = Isolator(
            way.pipeline.submit,
            way.pipeline.collect,
            way.pipeline.discard,
            outputs=way.outputs,
            care=way.care,
            ceiling=way.ceiling,
            exclusive=True,
            by=policy.by,
            bit=False,
            retry=way.retry,
        )
        for chunk in self._rows:
            stream = batches_of([chunk, UnitEnd(chunk.unit)], WindowPolicy(_ALL_ROWS, _BATCHES_BYTES), policy)
            bad = {row for batch in stream for row in isolator.collect(isolator.submit(batch)).refused}
            keep = ~np.isin(chunk.good, list(bad))
            if keep.any():
                yield dataclasses.replace(
                    chunk, tensors=chunk.tensors.filter(pa.array(keep)), good=chunk.good[keep]
                )

    def _try(self, attempt: Try) -> Tried:
        """Compute batches that are cut in one way."""
        if attempt.seconds and attempt.settings == self._settings:
            return self._measure(attempt.seconds)
        batching = {f"batching.{name}": (value, "tried") for name, value in attempt.settings.items()}
        job = apply_resolved(self._job, {**self._job.resolved, **batching})
        policy = batch_policy(job, self._device, self._contract, self._backend)
        self._batches = []  # not those of two sizes at once
        stream = batches_of(
            self._stream(policy.size, policy.by), WindowPolicy(_ALL_ROWS, _BATCHES_BYTES), policy
        )
        self._batches, self._settings = _spread(_within(stream)), attempt.settings
        mean_rows = statistics.mean(len(batch.rows) for batch in self._batches)
        self._is_whole = len(self._batches) == 1 or (policy.by == "rows" and mean_rows < policy.size)
        self._memory.reset()
        # What is prepared for a shape is prepared now.
        shapes = {tuple(getattr(c, "shape", ()) for c in b.tensors.values()): b for b in self._batches}
        try:
            self._compute([*self._batches[: self._lanes], *(shapes.values() if policy.fixed else ())])
        except OutOfMemory as error:
            return self._too_large(error)
        return self._measure(attempt.seconds) if attempt.seconds else Tried()

    def _measure(self, seconds: float) -> Tried:
        """Compute, again and again, and at least two batches in each lane."""
        began = time.perf_counter()
        num_batches = 0

        def endless() -> Generator[HostBatch, None, None]:
            """Yield batches until the time is over."""
            nonlocal num_batches
            for batch in itertools.cycle(self._batches):
                if num_batches >= 2 * self._lanes and time.perf_counter() >= began + seconds:
                    return
                num_batches += 1
                yield batch

        try:
            done = self._compute(endless())
        except OutOfMemory as error:
            return self._too_large(error)
        return Tried(
            began=began,
            ended=max(each.ended for each in done),
            batches=tuple(done),
            memory=self._memory.share(),
            is_whole=self._is_whole,
        )

    def _too_large(self, error: OutOfMemory) -> Tried:
        free_memory(error)
        return Tried(memory=self._memory.share(), out_of_memory=True)

    def _encoded(self) -> Iterator[EncodedChunk]:
        """Read and encode the sample, as much of it as may stay in memory."""
        held = 0
        items = (item.rows for item in self._way.chunks)
        for chunk in ordered_map(self._way.encode, items, threads=self._way.readers, name="encode"):
            if not isinstance(chunk, UnitEnd) and len(chunk.good):
                yield chunk
                held += encoded_bytes(chunk)
                if held > _ROWS_BYTES:
                    return

    def _stream(self, size: int, by: str) -> Iterator[EncodedChunk | UnitEnd]:
        """Yield the rows of the sample as one unit; several times where they do not fill the lanes."""
        wanted = size * 2 * self._lanes if by == "rows" else 0
        times = max(1, -(-wanted // self._num_rows))
        yield from itertools.chain.from_iterable(itertools.repeat(self._rows, times))
        yield UnitEnd(self._rows[0].unit)

    def _compute(self, batches: Iterable[HostBatch]) -> list[Computing]:
        """Compute batches, in as many lanes as a run has."""
        pipeline = self._way.pipeline

        def compute(batch: HostBatch) -> OutputBatch:
            """Compute one batch, beside others."""
            return pipeline.collect(pipeline.submit(batch))

        if self._lanes == 1:
            outputs = overlap(pipeline.submit, pipeline.collect, batches, depth=self._way.depth)
        else:
            outputs = ordered_map(compute, batches, threads=self._lanes, name="compute")
        with closing(outputs):
            return [
                Computing(
                    each.started, each.started + each.compute_s, len(each.batch.rows), each.batch.real_tokens
                )
                for each in outputs
            ]


def _within(batches: Iterator[HostBatch]) -> list[HostBatch]:
    """Return batches, as many as may stay in memory; the last, which is smaller, only where it is alone."""
    found: list[HostBatch] = []
    held = 0
    for batch in batches:
        if len(batch.rows):
            found.append(batch)
            held += batch_bytes(batch)
        if held > _BATCHES_BYTES:
            break
    return found[:-1] if len(found) > 1 and len(found[-1].rows) < len(found[0].rows) else found


def _spread(batches: list[HostBatch]) -> list[HostBatch]:
    """Return batches so that any first few of them stand for all: those of a window come longest first."""
    order = sorted(range(len(batches)), key=lambda at: at * _GOLDEN % 1.0)
    return [batches[at] for at in order]
