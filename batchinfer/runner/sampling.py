"""A sample of a job's rows, through the whole pipeline into a folder that nobody keeps."""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from batchinfer.config import Job, Machine, resolve
from batchinfer.errors import NoInputError
from batchinfer.events import BatchFinished, Event, UnitCommitted, WorkerReady
from batchinfer.hardware import gpus, sample
from batchinfer.runner.check import check_model
from batchinfer.runner.job import run
from batchinfer.runner.prepare import Prepared, prepare
from batchinfer.runner.spread import spread
from batchinfer.runner.tuned import find_tuned

if TYPE_CHECKING:
    from batchinfer.runner.plan import Plan
    from batchinfer.runner.standby import Standby

_PIECES = 16
_FEWEST_ROWS = 256
"""Rows of a piece, at least: fewer tell how long a unit takes to begin and to end, and not its rows."""
_BATCHES = 4
"""Batches of a piece, at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """What a sample took. Times in seconds.

    `start_s` and `end_s` are those before the first row and after the last commit; `load_s` is the part of
    the first that a worker took. `stream_s` passed between the two; `commits` are the moments in it at which
    units were committed, with their rows. `compute_s` is what the device's lanes computed, together.
    """

    rows: int
    devices: int
    on_cpu: bool
    lanes: int
    start_s: float
    load_s: float
    end_s: float
    stream_s: float
    compute_s: float
    commits: tuple[tuple[float, int], ...]
    output_bytes: int
    energy_joules: float | None
    load: float
    """Processes that wanted a core in the minute before, to each core: above 1, others were at work."""


def sample_run(
    real: Prepared, stand_in: Job, machine: Machine, *, num_rows: int, standby: Standby | None = None
) -> Sampled:
    """Run about so many of the rows that are left to do, spread over all of them. `stand_in` is the same job,
    but for its output, which is empty. Raises NoInputError where nothing is left, and what a run raises.
    """
    if not real.pending:
        raise NoInputError("nothing is left to do, so that there is nothing to forecast")
    tuned = find_tuned(stand_in, machine)
    resolved = resolve(stand_in, machine, tuned=tuned)
    load = os.getloadavg()[0] / machine.cores
    batch_rows = _batch_rows(real, resolved)
    began = time.monotonic()
    prepared = _sampled(real, prepare(resolved, tuned=tuned), num_rows, batch_rows)
    planned_s = time.monotonic() - began
    watch = _Watch(prepared.plan)
    energy = _energy_joules()
    report = run(stand_in, machine, [watch], prepared=prepared, standby=standby)
    after = _energy_joules()
    last = watch.commits[-1][0]
    devices = resolved.compute.devices
    assert isinstance(devices, tuple)
    return Sampled(
        rows=report.rows_in,
        devices=len(devices),
        on_cpu="cpu" in devices,
        lanes=watch.lanes,
        start_s=watch.ready - watch.began + planned_s,
        load_s=watch.load_s,
        end_s=max(watch.began + report.seconds - last, 0.0),
        stream_s=last - watch.ready,
        compute_s=watch.compute_s,
        commits=tuple((at - watch.ready, rows) for at, rows in watch.commits),
        output_bytes=watch.output_bytes,
        energy_joules=None if energy is None or after is None else after - energy,
        load=load,
    )


def _batch_rows(real: Prepared, resolved: Job) -> int:
    """Ask a worker how many rows a batch has, at most; of tokens and bytes nobody can tell."""
    devices = resolved.compute.devices
    assert isinstance(devices, tuple)
    ready = check_model(
        real.job, schema=real.plan.schema, device=devices[0], threads=int(resolved.compute.threads)
    )
    return int(ready.settings["batching.size"]) if ready.settings["batching.by"] == "rows" else 1


def _sampled(real: Prepared, stand: Prepared, num_rows: int, batch_rows: int) -> Prepared:
    """Return the stand-in with a plan of pieces of the real one."""
    few = min(_FEWEST_ROWS, real.planned_rows(real.pending) // (2 * _PIECES))
    each = max(_BATCHES * batch_rows, few, num_rows // _PIECES)
    pieces = max(1, num_rows // each)
    units = spread(real.plan, max(num_rows, each), pieces=pieces, units=real.pending)
    plan = dataclasses.replace(
        stand.plan,
        shards=real.plan.shards,
        schema=real.plan.schema,
        units=tuple((unit.shard.index, unit.start, unit.stop) for unit in units),
        batches=real.plan.batches,
    )
    return dataclasses.replace(stand, plan=plan)


@dataclass(slots=True)
class _Watch:
    """Notes when what happened, by `time.monotonic`."""

    plan: Plan
    began: float = field(default_factory=time.monotonic)
    ready: float = 0.0
    load_s: float = 0.0
    lanes: int = 0
    compute_s: float = 0.0
    output_bytes: int = 0
    commits: list[tuple[float, int]] = field(default_factory=list)

    def on_event(self, event: Event) -> None:
        """Take note of an event."""
        now = time.monotonic()
        match event:
            case WorkerReady():
                self.ready = self.ready or now
                self.load_s = max(self.load_s, event.load_s)
                self.lanes += event.lanes
            case BatchFinished():
                self.compute_s += event.compute_s
            case UnitCommitted():
                receipt = event.receipt
                self.commits.append((now, self.plan.unit(receipt.unit).num_rows))
                self.output_bytes += sum(part.num_bytes for part in receipt.parts)
            case _:
                pass

    def close(self) -> None:
        """Nothing is open."""


def _energy_joules() -> float | None:
    """Return what all GPUs have consumed so far; None where one of them cannot tell, or there is none."""
    found = [sample(gpu).energy_joules for gpu in gpus()]
    known = [joules for joules in found if joules is not None]
    return sum(known) if known and len(known) == len(found) else None
