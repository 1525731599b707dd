"""Put a worker's parts together: source, steps, model, sink; checked against each other."""

from __future__ import annotations

import base64
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchinfer import registry, tensors
from batchinfer.config import Job, window_rows
from batchinfer.engine.again import AgainSource, AgainWriter
from batchinfer.engine.blame import Trust
from batchinfer.engine.canary import check_canary
from batchinfer.engine.careful_steps import CarefulSteps
from batchinfer.engine.ceiling import Ceiling
from batchinfer.engine.commit import OutputLayout, UnitWriter
from batchinfer.engine.contract import Contract, check_contract, taken
from batchinfer.engine.device import open_pipeline
from batchinfer.engine.encode import Encoder
from batchinfer.engine.gather import Gatherer
from batchinfer.engine.loaders import Loaders
from batchinfer.engine.memory_use import MemoryUse
from batchinfer.engine.reading import MAX_CHUNK_ROWS, Timed
from batchinfer.engine.replay import Sample
from batchinfer.engine.retry import Retry
from batchinfer.engine.room import Room
from batchinfer.engine.sidecar import Apart
from batchinfer.engine.spill import Spills
from batchinfer.engine.steps import Stepped, Steps, load_steps
from batchinfer.engine.timeline import Timeline
from batchinfer.engine.unit import Way
from batchinfer.hardware import gpus, stay_near, take_turns
from batchinfer.loader.batches import BatchPolicy
from batchinfer.loader.costs import cost_of
from batchinfer.loader.prefetch import Levels
from batchinfer.loader.windows import WindowPolicy
from batchinfer.pixels import with_pixels
from batchinfer.runner.ahead import ReadAhead, Units, columns_before_model
from batchinfer.runner.batching import batch_policy, settings_of
from batchinfer.runner.model_state import require_unchanged
from batchinfer.storage import open_store

if TYPE_CHECKING:
    from batchinfer.data import Chunk, Unit
    from batchinfer.engine.care import Care
    from batchinfer.protocols import Backend, Postprocessor, Preprocessor, Sink, Source
    from batchinfer.runner.messages import Start
    from batchinfer.storage import Store
    from batchinfer.transient import Reason

_WINDOW_BYTES = 64 * 1024 * 1024
_CHUNK_BYTES = 4 * 1024 * 1024
_BUSY_THREADS = 3
"""Threads of a worker that are busy beside its readers: who batches, who launches, who writes."""


@dataclass(frozen=True, slots=True)
class Assembly:
    """A worker's parts. Without a `way` it can only check, without a `contract` only describe."""

    backend: Backend
    contract: Contract | None
    way: Way | None
    settings: dict[str, str]


@contextmanager
def assemble(
    start: Start,
    *,
    units: Units,
    spilled: set[int],
    care: Care,
    halt: threading.Event,
    on_retry: Callable[[Reason], None],
) -> Iterator[Assembly]:
    """Build and load everything that a job names; close the model at the end. `spilled` will name
    the units that have finished batches put aside, `care` what is known of their rows. `halt` ends what waits
    to be tried again, of which `on_retry` hears.

    The first of the units are read while the model is loaded, where the columns are known without it.

    Raises ContractError where the parts do not fit, and what loading the model raises.
    """
    job = Job.from_message(start.job)
    # Before there are threads: each has the cores and the policy of the one that began it.
    if not start.device.startswith("cuda"):
        take_turns()
    elif job.compute.affinity == "auto":
        stay_near(int(start.device.partition(":")[2] or 0), at_least=int(job.compute.readers) + _BUSY_THREADS)
    Trust.allowed = job.errors.max
    is_retry = "batchinfer.retry_of" in start.metadata
    # User code is found beside the job file.
    sys.path.insert(0, job.root)
    steps = load_steps(job, start.device)
    posts = [registry.load("postprocessors", step.name)(step.options) for step in job.postprocess]
    backend: Backend = registry.load("backends", job.model.backend)(job.model)
    schema = pa.ipc.read_schema(pa.BufferReader(base64.b64decode(start.schema)))
    room = Room.of(start.memory_bytes)
    computes = start.purpose in {"run", "canary", "try"}
    early = _read_early(job, schema, steps, units, room, is_retry=is_retry) if computes else None
    in_processes = computes and job.compute.loaders == "processes"
    loaders = None
    if in_processes:
        loaders = Loaders(int(job.compute.readers), on_retry=on_retry, on_done=care.some_done)
    try:
        backend.load(start.device, threads=start.threads)
        require_unchanged(job, start.model_state)
        if start.purpose == "describe":
            yield Assembly(backend, None, None, {})
            return
        contract = check_contract(job, schema, steps, backend, posts)
        policy = batch_policy(job, start.device, contract, backend)
        settings = {**settings_of(policy), "device": start.device}
        if start.purpose == "check":
            yield Assembly(backend, contract, None, settings)
            return
        assert early is not None
        retry = Retry(job.errors.retry, halt=halt, on_retry=on_retry, on_attempt=care.some_done)
        parts = _Parts(job, start, schema, room, steps, backend, contract, policy, retry)
        through = parts.through_steps(loaders)
        way = parts.way(early.begin(contract.read_columns), through, posts, spilled, care, early.levels)
        if job.model.canary is not None and start.purpose == "run":
            check_canary(job.model.canary, contract, way, start.device)
        yield Assembly(backend, contract, way, settings)
    finally:
        if early is not None:
            early.close()
        if loaders is not None:
            loaders.close()
        backend.close()


def _read_early(
    job: Job, schema: pa.Schema, steps: Sequence[Preprocessor], units: Units, room: Room, *, is_retry: bool
) -> ReadAhead:
    """Begin to read the first units, where it is known which columns are needed."""
    source: Source = registry.load("sources", job.input.format)(job.input)
    if is_retry:
        sink: Sink = registry.load("sinks", job.output.format)(job.output)
        store = open_store(job.output.path, job.output.storage_options)
        source = AgainSource(source, store, job.output.path, sink)
    early = ReadAhead(units, source, schema, room)
    guessed = columns_before_model(job, schema, steps)
    if guessed is not None:
        early.begin(guessed)
    return early


@dataclass(frozen=True, slots=True)
class _Parts:
    """What fits together, once that is known."""

    job: Job
    start: Start
    schema: pa.Schema
    room: Room
    steps: Sequence[Preprocessor]
    backend: Backend
    contract: Contract
    policy: BatchPolicy
    retry: Retry

    def way(
        self,
        chunks: Generator[Timed, None, None],
        through: Callable[[Chunk], Stepped],
        posts: Sequence[Postprocessor],
        spilled: set[int],
        care: Care,
        levels: Levels,
    ) -> Way:
        """Return the way of the batches, from rows that are read to units that are written."""
        job, start, contract, policy = self.job, self.start, self.contract, self.policy
        store = open_store(job.output.path, job.output.storage_options)
        layout = OutputLayout(**{**start.layout, "partition_by": tuple(start.layout["partition_by"])})
        ragged_rows = window_rows(job, policy.by, policy.size, token_bytes=contract.token_bytes)
        windows = _window_policy(contract, policy, ragged_rows=ragged_rows)
        return Way(
            chunks=chunks,
            encode=Encoder(job, CarefulSteps(through, care), run=start.run),
            windows=windows,
            batches=policy,
            pipeline=open_pipeline(
                with_pixels(self.backend, contract.pixels), start.device, host_bytes=self.room.batches
            ),
            spills=Spills(
                store,
                layout,
                contract.results,
                every_s=job.checkpoint.every,
                max_bytes=job.checkpoint.spill_bytes,
                expected=spilled,
            ),
            gatherer=Gatherer(
                contract, [step.name for step in job.postprocess], posts, job.errors, care, self.retry
            ),
            open_unit=self._open_unit(store, layout),
            readers=int(job.compute.readers),
            chunk_rows=min(windows.rows, MAX_CHUNK_ROWS),
            room=self.room,
            depth=2 if start.device.startswith("cuda") else 1,
            lanes=start.concurrency,
            outputs=self.backend.outputs,
            care=care,
            ceiling=_ceiling(self.backend, start),
            retry=self.retry,
            bit=job.compute.determinism == "bit",
            unfit=_unfit(posts) if job.errors.check_finite else None,
            timeline=Timeline(start.concurrency),
            levels=levels,
            sample=Sample(start.concurrency) if start.measure else None,
        )

    def _open_unit(self, store: Store, layout: OutputLayout) -> Callable[[Unit], UnitWriter]:
        """Return what begins the output of a unit."""
        sink: Sink = registry.load("sinks", self.job.output.format)(self.job.output)
        apart = Apart(tuple(self.contract.results.names)) if self.job.errors.to == "separate" else None
        make = partial(
            UnitWriter,
            layout=layout,
            sink=sink,
            store=store,
            metadata=self.start.metadata,
            deterministic=self.job.output.commit == "deterministic",
            apart=apart,
        )
        return lambda unit: make(unit) if unit.again is None else AgainWriter(unit, **make.keywords)

    def through_steps(self, loaders: Loaders | None) -> Callable[[Chunk], Stepped]:
        """Return what runs the steps: the calling thread, or a loader process."""
        job, steps, contract = self.job, self.steps, self.contract
        columns = list(dict.fromkeys(bind.column for bind in contract.bindings))
        floats = [bind.column for bind in contract.bindings if bind.dtype.startswith("float")]
        if loaders is None:
            here = Steps(job, steps, columns=columns, floats=floats, retry=self.retry)
            return lambda chunk: here(chunk.rows)
        asked = [step.input_columns() for step in steps]
        sent = set(columns).union(*(names or () for names in asked))
        loaders.open(
            {
                "job": job.to_message(),
                "device": self.start.device,
                "schema": base64.b64encode(taken(job, self.schema).serialize().to_pybytes()).decode(),
                "columns": columns,
                "floats": floats,
            },
            # What is only carried stays here, unless a step wants to see everything.
            sent=None if None in asked else [name for name in contract.read_columns if name in sent],
        )
        return loaders


def _window_policy(contract: Contract, policy: BatchPolicy, *, ragged_rows: int) -> WindowPolicy:
    """Bound a window in rows and bytes. Dense rows need not be sorted: theirs is as small as reading them
    in pieces is still cheap, and a whole number of batches, so that nothing is copied together."""
    if contract.ragged:
        return WindowPolicy(ragged_rows, _WINDOW_BYTES)
    rows = min(MAX_CHUNK_ROWS, _CHUNK_BYTES // contract.row_bytes)
    cost = cost_of(policy.by, contract.encoded, contract.bindings, None)
    texts = any(bind.dtype not in tensors.NUMERIC for bind in contract.bindings)
    size = 1 if texts and policy.by == "bytes" else max(policy.size // cost.of(1), 1)
    # Carried columns count as well: they end a window early only where their rows are huge.
    return WindowPolicy(max(rows // size, 1) * size, _WINDOW_BYTES)


def _unfit(posts: Sequence[Postprocessor]) -> Callable[[Any], Any]:
    """Return what tells which numbers a model must not give. Infinity may be meant, where steps follow: what
    they make of it is judged once they have."""
    return np.isnan if posts else lambda numbers: ~np.isfinite(numbers)


def _ceiling(backend: Backend, start: Start) -> Ceiling:
    """Return what is known of the memory that a model needs on a device: on one of its name, whichever."""
    names = [gpu.name for gpu in gpus()] if start.device.startswith("cuda") else []
    index = int(start.device.partition(":")[2] or 0)
    name = names[index] if index < len(names) else start.device
    return Ceiling(start.model_hash, name, MemoryUse(backend, start.device))
