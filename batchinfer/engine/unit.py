"""The way of a batch inside a worker, stage by stage, each by its function's name:

    read           thread "read":     source.read -> Chunk
    encode         pool "encode":     steps -> EncodedChunk
    batches_of     thread "batch":    windows, length sorting, padding, staging -> HostBatch
    overlap        threads "launch", "device":  upload, model, download -> OutputBatch
                   (a batch that fails: Isolator, in pieces)
                   (on a CPU: pool "compute", several batches at once)
    Gatherer.typed this thread:       postprocess, type -> TypedBatch
    Spills.add     this thread:       put aside what a long unit has finished
    windows_of     this thread:       group by window
    Gatherer.rows  this thread:       restore the order -> rows
    UnitWriter.write   pool "commit": encode them as they come
    UnitWriter.commit  pool "commit": end the part, create it -> Receipt

The stream never drains between units: while one unit commits, the next computes and the one after
is read. Batches never cross a unit's border.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from batchinfer.data import (
    Chunk,
    EncodedChunk,
    HostBatch,
    OutputBatch,
    Receipt,
    Trail,
    TypedBatch,
    Unit,
    UnitEnd,
)
from batchinfer.engine.care import numbers_of
from batchinfer.engine.device import DevicePipeline, InFlight, crashing, overlap
from batchinfer.engine.encode import first_row
from batchinfer.engine.gather import Gatherer, failures, windows_of
from batchinfer.engine.isolate import Isolator
from batchinfer.engine.reading import Timed, pieces
from batchinfer.engine.replay import Efficiency, Sample
from batchinfer.engine.room import Room, batch_bytes, encoded_bytes, output_bytes
from batchinfer.engine.timeline import Timeline
from batchinfer.errors import Interrupted, unit_context
from batchinfer.loader.batches import BatchPolicy
from batchinfer.loader.prefetch import Bound, Levels, ordered_map, prefetch
from batchinfer.loader.windows import WindowPolicy, batches_of

if TYPE_CHECKING:
    from batchinfer.data import TensorSpec
    from batchinfer.engine.care import Care
    from batchinfer.engine.ceiling import Ceiling
    from batchinfer.engine.commit import UnitWriter
    from batchinfer.engine.encode import Encoder
    from batchinfer.engine.retry import Retry
    from batchinfer.engine.spill import Spills

T = TypeVar("T")
R = TypeVar("R")

_COMMITTERS = 4
_BATCHES_AHEAD = 32
_RESULTS_AHEAD = 8
_LOOK_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Everything that a batch meets on its way, put together once per worker."""

    chunks: Generator[Timed, None, None]
    encode: Encoder
    windows: WindowPolicy
    batches: BatchPolicy
    pipeline: DevicePipeline
    spills: Spills
    gatherer: Gatherer
    open_unit: Callable[[Unit], UnitWriter]
    readers: int
    chunk_rows: int
    room: Room
    depth: int
    lanes: int
    outputs: Sequence[TensorSpec]
    bit: bool
    unfit: Callable[[Any], Any] | None
    care: Care
    ceiling: Ceiling
    retry: Retry
    timeline: Timeline
    levels: Levels
    sample: Sample | None = None


def run_units(
    way: Way,
    *,
    on_batch: Callable[[OutputBatch], None],
    on_computed: Callable[[Unit], None],
    on_commit: Callable[[Receipt], None],
    stop: threading.Event,
    may_publish: threading.Event,
) -> None:
    """Run units in order; each is reported when it is computed, and once it is committed, by the thread that
    did it. Nothing is written to the output before it `may` be: a part without a plan would be nobody's.

    Any error ends the run, and nothing of an unfinished unit becomes visible. When `stop` is set,
    what is being committed is finished and the rest is dropped.
    """

    def commit(writer: UnitWriter, unit: Unit) -> None:
        """Commit in the pool, and report."""
        try:
            _await(may_publish, stop)
            with unit_context(unit):
                receipt = writer.commit()
            way.spills.clear(unit.index)
            way.timeline.committed(writer.encoded_at)
            on_commit(receipt)
        except BaseException:
            # The loop below may be waiting for a unit that nobody will send now.
            stop.set()
            raise

    way.timeline.begin()
    failed = threading.Event()
    with (
        closing(_results(way, stop, failed)) as outputs,
        ThreadPoolExecutor(_COMMITTERS, "commit") as pool,
    ):
        commits: deque[tuple[Future[None], UnitWriter]] = deque()
        writer: UnitWriter | None = None

        def typed(outputs: Iterable[OutputBatch]) -> Iterator[TypedBatch]:
            """Finish batches as they come, and let the long units put them aside."""
            for output in outputs:
                way.timeline.add(output)
                with way.timeline.taking("postprocess"):
                    done = way.gatherer.typed(output)
                way.spills.add(done, pool, may_write=may_publish.is_set())
                yield done

        try:
            for window, batches in windows_of(typed(_until(outputs, stop, failed, on_batch, way.sample))):
                unit = window.span.unit
                writer = writer or way.open_unit(unit)
                with way.timeline.taking("write"):
                    writer.write(way.gatherer.rows(window, batches), failures(window, batches), pool)
                if window.span.last:
                    on_computed(unit)
                    commits.append((pool.submit(commit, writer, unit), writer))
                    writer = None
                else:
                    writer.catch_up(at_most=way.room.results)
                _wait(commits, writer, at_most=way.room.parts)
            for future, _ in commits:
                future.result()
            way.timeline.close()
        finally:
            # Whoever waits for the next unit must wake up, or closing the stages would wait for it.
            stop.set()


def _await(may_publish: threading.Event, stop: threading.Event) -> None:
    while not may_publish.wait(_LOOK_S):
        if stop.is_set():
            raise Interrupted("the run ended before its plan stood")


def _results(way: Way, stop: threading.Event, failed: threading.Event) -> Any:
    """Chain the stages up to the results; each runs ahead of the next, within its bounds."""
    encode = _or_stop(_timed(way.encode), stop, failed)
    isolator = Isolator(
        crashing(way.pipeline.submit),
        way.pipeline.collect,
        way.pipeline.discard,
        outputs=way.outputs,
        care=way.care,
        ceiling=way.ceiling,
        retry=way.retry,
        exclusive=way.lanes == 1,
        by=way.batches.by,
        bit=way.bit,
        unfit=way.unfit,
    )
    submit, collect = _passing_done(way, isolator)
    submit, collect = _or_stop(submit, stop, failed), _or_stop(collect, stop, failed)
    encoded = prefetch(
        ordered_map(encode, pieces(way.chunks, way.chunk_rows), threads=way.readers, name="encode"),
        bound=Bound(64, way.room.encoded),
        size_of=encoded_bytes,
        name="encode",
        levels=way.levels,
    )
    batches = prefetch(
        _staged(encoded, way, stop, failed),
        bound=Bound(way.pipeline.ahead, way.room.batches),
        size_of=batch_bytes,
        name="batch",
        levels=way.levels,
    )
    return prefetch(
        _computed(submit, collect, way.timeline.asking(batches), way, stop, failed),
        bound=Bound(_BATCHES_AHEAD, way.room.results),
        size_of=output_bytes,
        name="device",
        levels=way.levels,
        is_urgent=way.care.is_awaited,
    )


def _staged(
    encoded: Generator[EncodedChunk | UnitEnd, None, None],
    way: Way,
    stop: threading.Event,
    failed: threading.Event,
) -> Generator[HostBatch, None, None]:
    """Make batches, and bring them to where the device takes them from."""
    try:
        for batch in batches_of(encoded, way.windows, way.batches):
            yield way.pipeline.stage(batch)
    except Exception:
        # Before the stages behind are closed, which may be waiting for a unit that will not come.
        failed.set()
        stop.set()
        raise
    finally:
        encoded.close()


def _computed(
    submit: Callable[[HostBatch], InFlight],
    collect: Callable[[InFlight], OutputBatch],
    batches: Iterable[HostBatch],
    way: Way,
    stop: threading.Event,
    failed: threading.Event,
) -> Generator[OutputBatch, None, None]:
    """Compute batches: queued on a device one after the other, or in lanes beside each other."""
    if way.lanes == 1:
        return overlap(submit, collect, batches, depth=way.depth)

    def compute(batch: HostBatch) -> OutputBatch:
        """Compute one batch, beside others."""
        return dataclasses.replace(collect(submit(batch)), lane=threading.get_ident())

    return ordered_map(
        _or_stop(compute, stop, failed), batches, threads=way.lanes, name="compute", ahead=_RESULTS_AHEAD
    )


def measure(way: Way) -> Efficiency | None:
    """Compare a run that has ended with its model alone; None where it was not asked, or computed nothing."""
    if way.sample is None:
        return None
    submit, collect = way.pipeline.submit, way.pipeline.collect
    stop, failed = threading.Event(), threading.Event()
    return way.sample.measure(
        lambda batches: _computed(submit, collect, batches, way, stop, failed),
        committed=way.timeline.last_commit,
    )


def _passing_done(
    way: Way, isolator: Isolator
) -> tuple[Callable[[HostBatch], InFlight], Callable[[InFlight], OutputBatch]]:
    """Lead batches that an earlier attempt has finished past the device."""

    def placed(batch: HostBatch) -> AbstractContextManager[None]:
        """Name the first row of a batch of which none goes well."""
        return first_row(batch.window.span.unit, lambda: int(numbers_of(batch, 0, 1)[0]))

    def submit(batch: HostBatch) -> InFlight:
        """Queue a batch, unless it is done."""
        found = way.spills.restore(batch)
        if found is not None:
            way.pipeline.discard(batch)
            return InFlight(batch, {}, 0.0, restored=found)
        with placed(batch):
            return isolator.submit(batch)

    def collect(inflight: InFlight) -> OutputBatch:
        """Return a batch's results."""
        if inflight.restored is None:
            with placed(inflight.batch):
                return isolator.collect(inflight)
        return OutputBatch(inflight.batch, {}, 0.0, inflight.restored)

    return submit, collect


def _timed(
    encode: Callable[[Chunk | UnitEnd], EncodedChunk | UnitEnd],
) -> Callable[[Timed], EncodedChunk | UnitEnd]:
    """Note when a chunk was read, and when it is encoded."""

    def call(item: Timed) -> EncodedChunk | UnitEnd:
        """Encode."""
        encoded = encode(item.rows)
        if isinstance(encoded, UnitEnd):
            return encoded
        return dataclasses.replace(encoded, trail=Trail(item.at, time.perf_counter()))

    return call


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


def _until(
    outputs: Iterable[OutputBatch],
    stop: threading.Event,
    failed: threading.Event,
    on_batch: Callable[[OutputBatch], None],
    sample: Sample | None,
) -> Iterator[OutputBatch]:
    """Yield results until there is a stop; where a stage failed, until its error."""
    for output in outputs:
        if stop.is_set() and not failed.is_set():
            return
        if len(output.batch.rows) and output.restored is None:
            if sample is not None and not output.refused:
                sample.add(output)
            on_batch(output)
        yield output


def _wait(
    commits: deque[tuple[Future[None], UnitWriter]], writer: UnitWriter | None, *, at_most: int
) -> None:
    """Raise the error of a commit that failed. Wait for the oldest while the parts take more than `at_most`
    bytes; a quarter of them is always there for the unit at hand."""
    growing = writer.num_bytes if writer is not None else 0
    while commits:
        held = sum(committing.num_bytes for _, committing in commits) + growing
        fits = held <= at_most or (len(commits) == 1 and growing <= at_most // 4)
        if fits and not commits[0][0].done():
            return
        commits.popleft()[0].result()
