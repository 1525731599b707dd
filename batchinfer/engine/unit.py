"""The way of a batch inside a worker, stage by stage, each by its function's name:

    read           thread "read":     source.read -> Chunk
    encode         pool "encode":     steps -> EncodedChunk
    batches_of     thread "batch":    windows, length sorting, padding -> HostBatch
    overlap        threads "launch", "device":  upload, model, download -> OutputBatch
    Gatherer.typed this thread:       postprocess, type -> TypedBatch
    Spills.add     this thread:       put aside what a long unit has finished
    windows_of     this thread:       group by window
    Gatherer.rows  this thread:       restore the order -> rows
    UnitWriter.commit  pool "commit": encode the part, create it -> Receipt

The stream never drains between units: while one unit commits, the next computes and the one after
is read. Batches never cross a unit's border.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from batchinfer.crash import crash_point
from batchinfer.data import Chunk, EncodedChunk, HostBatch, OutputBatch, Receipt, TypedBatch, Unit, UnitEnd
from batchinfer.engine.device import DevicePipeline, InFlight, overlap
from batchinfer.engine.gather import Gatherer, windows_of
from batchinfer.errors import unit_context
from batchinfer.loader.batches import BatchPolicy
from batchinfer.loader.prefetch import Bound, ordered_map, prefetch
from batchinfer.loader.windows import WindowPolicy, batches_of

if TYPE_CHECKING:
    import pyarrow as pa

    from batchinfer.engine.commit import UnitWriter
    from batchinfer.engine.encode import Encoder
    from batchinfer.engine.spill import Spills
    from batchinfer.protocols import Source

T = TypeVar("T")
R = TypeVar("R")

_COMMITS_IN_FLIGHT = 2
_CHUNK_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Everything that a batch meets on its way, put together once per worker."""

    source: Source
    schema: pa.Schema
    columns: tuple[str, ...]
    encode: Encoder
    windows: WindowPolicy
    batches: BatchPolicy
    pipeline: DevicePipeline
    spills: Spills
    gatherer: Gatherer
    open_unit: Callable[[Unit], UnitWriter]
    readers: int
    chunk_rows: int
    queue_bytes: int
    depth: int


def run_units(
    units: Iterable[Unit],
    way: Way,
    *,
    on_batch: Callable[[OutputBatch], None],
    on_commit: Callable[[Receipt], None],
    stop: threading.Event,
) -> None:
    """Run units in order; each is reported once it is committed, from the thread that did it.

    Any error ends the run, and nothing of an unfinished unit becomes visible. When `stop` is set,
    what is being committed is finished and the rest is dropped.
    """

    def commit(writer: UnitWriter, unit: Unit) -> None:
        """Commit in the pool, and report."""
        try:
            with unit_context(unit):
                receipt = writer.commit()
            way.spills.clear(unit.index)
            on_commit(receipt)
        except BaseException:
            # The loop below may be waiting for a unit that nobody will send now.
            stop.set()
            raise

    failed = threading.Event()
    with (
        closing(_results(units, way, stop, failed)) as outputs,
        ThreadPoolExecutor(_COMMITS_IN_FLIGHT, "commit") as pool,
    ):
        commits: deque[Future[None]] = deque()
        writer: UnitWriter | None = None

        def typed(outputs: Iterable[OutputBatch]) -> Iterator[TypedBatch]:
            """Finish batches as they come, and let the long units put them aside."""
            for output in outputs:
                done = way.gatherer.typed(output)
                way.spills.add(done, pool)
                yield done

        try:
            for window, batches in windows_of(typed(_until(outputs, stop, failed, on_batch))):
                unit = window.span.unit
                writer = writer or way.open_unit(unit)
                writer.write(way.gatherer.rows(window, batches), list(window.failed.values()))
                if window.span.last:
                    commits.append(pool.submit(commit, writer, unit))
                    writer = None
                _check(commits, at_most=_COMMITS_IN_FLIGHT)
            _check(commits, at_most=0)
        finally:
            # Whoever waits for the next unit must wake up, or closing the stages would wait for it.
            stop.set()


def _results(units: Iterable[Unit], way: Way, stop: threading.Event, failed: threading.Event) -> Any:
    """Chain the stages up to the results; each runs ahead of the next, within its bounds."""
    encode = _or_stop(way.encode, stop, failed)
    submit, collect = _passing_done(way)
    collect = _or_stop(collect, stop, failed)
    chunks = prefetch(read(units, way), bound=Bound(8, way.queue_bytes), size_of=_chunk_bytes, name="read")
    encoded = prefetch(
        ordered_map(encode, chunks, threads=way.readers, name="encode"),
        bound=Bound(64, way.queue_bytes),
        size_of=_encoded_bytes,
        name="encode",
    )
    batches = prefetch(
        batches_of(encoded, way.windows, way.batches),
        bound=Bound(16, way.queue_bytes),
        size_of=_batch_bytes,
        name="batch",
    )
    return prefetch(
        overlap(submit, collect, batches, depth=way.depth),
        bound=Bound(16, way.queue_bytes),
        size_of=_output_bytes,
        name="device",
    )


def _passing_done(
    way: Way,
) -> tuple[Callable[[HostBatch], InFlight], Callable[[InFlight], OutputBatch]]:
    """Lead batches that an earlier attempt has finished past the device."""

    def submit(batch: HostBatch) -> InFlight:
        """Queue a batch, unless it is done."""
        found = way.spills.restore(batch)
        if found is not None:
            return InFlight(batch, {}, 0.0, restored=found)
        crash_point("infer.before")
        inflight = way.pipeline.submit(batch)
        crash_point("infer.mid")
        return inflight

    def collect(inflight: InFlight) -> OutputBatch:
        """Return a batch's results."""
        if inflight.restored is None:
            return way.pipeline.collect(inflight)
        return OutputBatch(inflight.batch, {}, 0.0, inflight.restored)

    return submit, collect


def _or_stop(function: Callable[[T], R], stop: threading.Event, failed: threading.Event) -> Callable[[T], R]:
    """Set `stop` where the function fails: the stages before it may be waiting for a unit that will
    not come, and an error that closes them on its way out would wait for them. `failed` says that an
    error is on its way, so that what is before it is not taken for the end."""

    def call(item: T) -> R:
        """Call the function."""
        try:
            return function(item)
        except BaseException:
            failed.set()
            stop.set()
            raise

    return call


def read(units: Iterable[Unit], way: Way) -> Iterator[Chunk | UnitEnd]:
    """Read units one after the other, each followed by its end."""
    for unit in units:
        with unit_context(unit):
            rows = _rows_per_chunk(unit, way)
            crash_point("read.open")
            for chunk in way.source.read(unit, schema=way.schema, columns=way.columns, batch_rows=rows):
                yield chunk
                crash_point("read.mid")
        yield UnitEnd(unit)


def _rows_per_chunk(unit: Unit, way: Way) -> int:
    """Keep a chunk near 32 MiB, by what the footer says of its rows. The same for every run."""
    num_bytes = sum(block.num_bytes for block in unit.shard.blocks)
    row_bytes = max(num_bytes // max(unit.shard.num_rows, 1), 1)
    return max(1, min(way.chunk_rows, _CHUNK_BYTES // row_bytes))


def _until(
    outputs: Iterable[OutputBatch],
    stop: threading.Event,
    failed: threading.Event,
    on_batch: Callable[[OutputBatch], None],
) -> Iterator[OutputBatch]:
    """Yield results until there is a stop; where a stage failed, until its error."""
    for output in outputs:
        if stop.is_set() and not failed.is_set():
            return
        if len(output.batch.rows) and output.restored is None:
            on_batch(output)
        yield output


def _check(commits: deque[Future[None]], *, at_most: int) -> None:
    """Raise the error of a commit that failed; wait while more than `at_most` are under way."""
    while commits and (len(commits) > at_most or commits[0].done()):
        commits.popleft().result()


def _chunk_bytes(item: Chunk | UnitEnd) -> int:
    return item.rows.nbytes if isinstance(item, Chunk) else 0


def _encoded_bytes(item: EncodedChunk | UnitEnd) -> int:
    return item.tensors.nbytes + item.carried.nbytes if isinstance(item, EncodedChunk) else 0


def _batch_bytes(item: HostBatch) -> int:
    return sum(column.nbytes for column in item.tensors.values())


def _output_bytes(item: OutputBatch) -> int:
    return sum(column.nbytes for column in item.tensors.values()) + _batch_bytes(item.batch)
