"""What do loader processes gain where a step is Python? `python benchmarks/loader_processes.py`

The device is simulated: it sleeps 20 ms a batch. The step is a loop of Python that takes about as long for
the rows of a batch. Threads and processes take turns; both get two readers. *Efficiency* is the device's
time over the time from the first batch to the last commit.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

import batchinfer
from batchinfer.events import BatchFinished, Event, UnitCommitted

ROWS = 262_144
BATCH = 1_024
SECONDS_PER_BATCH = 0.02
ROUNDS = 5
KINDS = ("threads", "processes")
HERE = Path(__file__).parent
STEP = """
import pyarrow as pa

def slow(rows):
    values = []
    for x in rows["x"].to_pylist():
        for _ in range({turns}):
            x = (x * 31 + 7) % 65_536
        values.append(x)
    return {{"x": pa.array(values, pa.float32())}}
"""


class Stopwatch:
    """Notes when the first batch was done, when the last unit was committed, and the batches between."""

    def __init__(self) -> None:
        self.batches = self.rows = 0
        self.first = self.last = 0.0

    def on_event(self, event: Event) -> None:
        """Take the time."""
        if isinstance(event, BatchFinished):
            if self.first:
                self.batches, self.rows = self.batches + 1, self.rows + event.rows
            else:
                self.first = time.perf_counter()
        elif isinstance(event, UnitCommitted):
            self.last = time.perf_counter()

    def close(self) -> None:
        """Do nothing."""


def seconds_of(turns: int) -> float:
    """Return how long the step takes for a batch, alone on a core; the best of several."""
    scope: dict[str, Any] = {}
    exec(STEP.format(turns=turns), scope)  # noqa: S102 - the text above
    rows = pa.RecordBatch.from_pydict({"x": np.arange(BATCH, dtype=np.float32)})
    times = []
    for _ in range(10):
        began = time.perf_counter()
        scope["slow"](rows)
        times.append(time.perf_counter() - began)
    return min(times)


def one_round(folder: Path, kind: str, number: int) -> dict[str, float]:
    """Run the job once, into a fresh output."""
    output = folder / f"out-{kind}-{number}"
    watch = Stopwatch()
    report = batchinfer.run_job(
        folder / "job.json", observers=[watch], output__path=str(output), compute__loaders=kind
    )
    ids = ds.dataset(output).to_table(columns=["id"])["id"].to_numpy()
    if report.rows_ok != ROWS or not (np.sort(ids) == np.arange(ROWS)).all():
        raise SystemExit(f"{ROWS} rows went in, others came out")
    steady_s = watch.last - watch.first
    return {"rows_per_s": watch.rows / steady_s, "efficiency": watch.batches * SECONDS_PER_BATCH / steady_s}


def prepare(folder: Path, turns: int) -> None:
    """Write the rows, the step and the job."""
    (folder / "in").mkdir()
    for at in range(4):
        ids = np.arange(at * ROWS // 4, (at + 1) * ROWS // 4)
        table = pa.table({"id": ids, "x": (ids % 1000).astype(np.float32)})
        pq.write_table(table, folder / "in" / f"{at}.parquet", row_group_size=32_768)
    (folder / "slow_step.py").write_text(STEP.format(turns=turns))
    job = {
        "job": "loader-processes",
        "input": {"path": "in"},
        "preprocess": [{"python": {"function": "slow_step:slow", "columns": ["x"]}}],
        "model": {"backend": "simulated", "seconds_per_batch": SECONDS_PER_BATCH},
        "batching": {"size": BATCH},
        "output": {"path": "out", "carry": ["id"]},
        "checkpoint": {"unit_rows": 32_768},
        "compute": {"readers": 2},
    }
    (folder / "job.json").write_text(json.dumps(job))


def main() -> None:
    """Run the rounds, print them, and write the result."""
    turns = max(1, round(SECONDS_PER_BATCH / (seconds_of(100) / 100)))
    step_s = seconds_of(turns)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, turns)
        rounds = [{kind: one_round(folder, kind, number) for kind in KINDS} for number in range(ROUNDS)]
    ratios = sorted(row["processes"]["rows_per_s"] / row["threads"]["rows_per_s"] for row in rounds)
    result: dict[str, Any] = {
        "command": "python " + " ".join(["benchmarks/loader_processes.py", *sys.argv[1:]]),
        "rows": ROWS,
        "batch": BATCH,
        "device_seconds_per_batch": SECONDS_PER_BATCH,
        "step_seconds_per_batch": round(step_s, 4),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("batchinfer-pipeline", "pyarrow", "numpy")
        },
        "processes_over_threads": {
            "median": round(statistics.median(ratios), 3),
            "all": [round(ratio, 3) for ratio in ratios],
        },
    }
    for kind in KINDS:
        for figure in ("rows_per_s", "efficiency"):
            values = sorted(row[kind][figure] for row in rounds)
            result[f"{kind}_{figure}"] = [round(value, 4) for value in values]
            print(f"{kind:<10} {figure:<11} median {statistics.median(values):,.3f}")
            if figure == "efficiency" and values[-1] > 1:
                raise SystemExit("an efficiency above 1 is a mistake of the benchmark")
    print(f"processes over threads: {result['processes_over_threads']}")
    (HERE / "results" / "loader_processes.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
