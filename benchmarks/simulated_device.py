"""How much of a busy device's time does the pipeline use? `python benchmarks/simulated_device.py`

The device is simulated: it takes 20 ms a batch. *Efficiency* is that time, for all batches, over the time
from the first batch to the last commit; *whole run* is over the time from the call to its return.

- `near` reads and writes files of this machine.
- `far` reads from a store that takes 50 ms for each request; decoding and writing take 80 % of the device's
  time each.
- `far, short units`: the same, and a unit lasts two seconds, so that its border comes that often.

The last two run in real time, and once by a clock that jumps from event to event (`virtual`), which is
exact: what the machine itself takes counts nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import obstore
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from obstore.store import MemoryStore

import batchinfer
from batchinfer.backends.simulated import SimulatedBackend
from batchinfer.clock import Clock
from batchinfer.events import BatchFinished, Event, UnitCommitted
from batchinfer.sinks.parquet import ParquetPart
from batchinfer.storage import objects
from batchinfer.storage.objects import ObjectStore
from batchinfer.testing import VirtualClock

SECONDS_PER_BATCH = 0.02
COST = 0.8
LATENCY_S = 0.05
BATCH = 512
STEP = {"function": "simulated_device:decode", "columns": ["x"], "output": {"x": "float32"}}
WORKS = {"far": 16, "far, short units": 100}
"""Batches of a unit."""
HERE = Path(__file__).parent
clock: Clock


class RealClock:
    """Time as it passes."""

    def now(self) -> float:
        """Return seconds."""
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


class Stopwatch:
    """Counts batches, and notes when the last unit was committed."""

    def __init__(self) -> None:
        self.batches = 0
        self.last = 0.0

    def on_event(self, event: Event) -> None:
        """Take the time."""
        if isinstance(event, BatchFinished):
            self.batches += 1
        elif isinstance(event, UnitCommitted):
            self.last = clock.now()

    def close(self) -> None:
        """Do nothing."""


def decode(rows: pa.RecordBatch) -> dict[str, Any]:
    """Stand for a step that takes 80 % of the device's time for the same rows."""
    clock.sleep(COST * SECONDS_PER_BATCH * rows.num_rows / BATCH)
    return {"x": rows["x"]}


@contextlib.contextmanager
def far() -> Iterator[None]:
    """Let requests take 50 ms, and encoding a part 80 % of the device's time for its rows."""
    read_range, write = ObjectStore.read_range, ParquetPart.write

    def slow_range(self: ObjectStore, *rest: Any, **more: Any) -> bytes:
        clock.sleep(LATENCY_S)
        return read_range(self, *rest, **more)

    def slow_write(self: ParquetPart, rows: pa.Table) -> None:
        clock.sleep(COST * SECONDS_PER_BATCH * rows.num_rows / BATCH)
        write(self, rows)

    with (
        mock.patch.object(ObjectStore, "read_range", slow_range),
        mock.patch.object(ParquetPart, "write", slow_write),
    ):
        yield


def run(document: dict[str, Any], rows: int) -> dict[str, float]:
    """Run a job, check that it counted every row, and return its efficiencies."""
    firsts: list[float] = []
    forward = SimulatedBackend.forward

    def timed(self: SimulatedBackend, tensors: Any) -> Any:
        firsts.append(clock.now())
        return forward(self, tensors)

    watch, began = Stopwatch(), clock.now()
    # A worker in a process of its own has its own clock: there, it says when it was ready.
    with (
        mock.patch.object(SimulatedBackend, "clock", clock),
        mock.patch.object(SimulatedBackend, "forward", timed),
    ):
        report = batchinfer.run_job(document, observers=[watch])
    ended = clock.now()
    if report.rows_ok != rows:
        raise SystemExit(f"{rows} rows went in, {report.rows_ok} came out")
    ideal_s = watch.batches * SECONDS_PER_BATCH
    found = {"whole_run": ideal_s / (ended - began)}
    if firsts:
        found["efficiency"] = ideal_s / (watch.last - firsts[0])
    return found


def near(folder: Path, number: int, rows: int) -> dict[str, float]:
    """Run over local files, with a worker process."""
    output = folder / f"out-{number}"
    ready: list[float] = []

    class Ready(Stopwatch):
        """Notes when the model was loaded as well."""

        def on_event(self, event: Event) -> None:
            """Take the time."""
            super().on_event(event)
            if type(event).__name__ == "WorkerReady":
                ready.append(clock.now())

    watch, began = Ready(), clock.now()
    document = {
        "job": "near",
        "input": {"path": str(folder / "in")},
        "model": {"backend": "simulated", "seconds_per_batch": SECONDS_PER_BATCH},
        "batching": {"size": BATCH},
        "output": {"path": str(output), "carry": ["id"]},
        "checkpoint": {"unit_rows": 64 * BATCH},
    }
    report = batchinfer.run_job(document, observers=[watch])
    ideal_s, ended = watch.batches * SECONDS_PER_BATCH, clock.now()
    ids = ds.dataset(output).to_table(columns=["id"])["id"].to_numpy()
    if report.rows_ok != rows or not (np.sort(ids) == np.arange(rows)).all():
        raise SystemExit(f"{rows} rows went in, others came out")
    return {"efficiency": ideal_s / (watch.last - ready[0]), "whole_run": ideal_s / (ended - began)}


def distant(name: str, rows: int, unit_batches: int) -> dict[str, float]:
    """Run over a store in memory that takes its time."""
    store: Any = objects._memory.setdefault(name, MemoryStore())  # noqa: SLF001 - what memory:// reads
    for at in range(4):
        values = np.arange(at * rows // 4, (at + 1) * rows // 4).astype(np.float32)
        out = pa.BufferOutputStream()
        pq.write_table(pa.table({"x": values}), out, row_group_size=unit_batches * BATCH)
        obstore.put(store, f"in/{at}.parquet", out.getvalue().to_pybytes())
    document = {
        "job": "far",
        "input": {"path": f"memory://{name}/in"},
        "preprocess": [
            {"python": {"function": "simulated_device:decode", "columns": ["x"], "output": {"x": "float32"}}}
        ],
        "model": {"backend": "simulated", "seconds_per_batch": SECONDS_PER_BATCH},
        "batching": {"size": BATCH},
        "output": {"path": f"memory://{name}/out"},
        "checkpoint": {"unit_rows": unit_batches * BATCH},
        # The step waits by the clock of this process.
        "compute": {"loaders": "threads"},
    }
    try:
        with far():
            return run(document, rows)
    finally:
        del objects._memory[name]  # noqa: SLF001


def main() -> None:
    """Run the rounds, print them, and write the result."""
    global clock  # noqa: PLW0603 - what everything in this process waits by
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="a few seconds, and no result file")
    chosen = parser.parse_args()
    # The step above is found by this module's name, which is another one when it is run as a program.
    os.chdir(HERE)
    sys.modules["simulated_device"] = sys.modules["__main__"]
    batches = 64 if chosen.tiny else 1024
    figures: dict[str, list[dict[str, float]]] = {}
    clock = RealClock()
    with tempfile.TemporaryDirectory() as name:
        folder, rows = Path(name), batches * BATCH
        (folder / "in").mkdir()
        for at in range(4):
            ids = np.arange(at * rows // 4, (at + 1) * rows // 4)
            table = pa.table({"id": ids, "x": ids.astype(np.float32)})
            pq.write_table(table, folder / "in" / f"{at}.parquet", row_group_size=64 * BATCH)
        for number in range(chosen.rounds):
            clock = RealClock()
            figures.setdefault("near", []).append(near(folder, number, rows))
            for work, unit_batches in WORKS.items():
                clock = RealClock()
                # The last unit is written when nothing is left to compute: longer ones need a longer run.
                longer = 1 if chosen.tiny else max(1, unit_batches // 50)
                real = distant(f"real-{number}", longer * rows, unit_batches)
                figures.setdefault(work, []).append(real)
    # Exact, so once is enough; and a batch takes some 10 ms of this machine, whatever the clock says.
    for work, unit_batches in WORKS.items():
        with VirtualClock() as virtual_clock:
            clock = virtual_clock
            virtual = distant("virtual", (2 if chosen.tiny else 4) * rows, unit_batches)
        figures[f"{work}, virtual"] = [virtual]
    report(figures, chosen, batches)


def report(figures: dict[str, list[dict[str, float]]], chosen: argparse.Namespace, batches: int) -> None:
    """Print medians, and write them. An efficiency above 1 is a mistake of the benchmark."""
    packages = ("batchinfer-pipeline", "pyarrow", "numpy")
    result: dict[str, Any] = {
        "command": "python " + " ".join(["benchmarks/simulated_device.py", *sys.argv[1:]]),
        "batches": batches,
        "rows_per_batch": BATCH,
        "seconds_per_batch": SECONDS_PER_BATCH,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
    for work, rounds in figures.items():
        result[work] = {}
        for figure in ("efficiency", "whole_run"):
            values = sorted(row[figure] for row in rounds)
            if values[-1] > 1:
                raise SystemExit(f"{work}: an efficiency of {values[-1]} is a mistake of the benchmark")
            result[work][figure] = {
                "median": round(statistics.median(values), 4),
                "all": [round(value, 4) for value in values],
            }
            median, spread = statistics.median(values), f"{values[0]:.2%} to {values[-1]:.2%}"
            print(f"{work:<26} {figure:<10} median {median:.2%}   {spread}")
    if not chosen.tiny:
        (HERE / "results" / "simulated_device.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
