"""How much of a busy device's time does the pipeline use? `python benchmarks/simulated_device.py`

The device is simulated: it sleeps 20 ms a batch. The ideal is the number of batches times 20 ms. *Steady*
is from the loaded model, before anything is read, to the last commit; *whole run*
from the call to its return, start-up included.
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
from batchinfer.events import BatchFinished, Event, UnitCommitted, WorkerReady

ROWS = 262_144
BATCH = 1_024
SECONDS_PER_BATCH = 0.02
ROUNDS = 5
HERE = Path(__file__).parent


class Stopwatch:
    """Notes when the model was loaded and when the last unit was committed."""

    def __init__(self) -> None:
        self.batches = 0
        self.ready = self.last = 0.0

    def on_event(self, event: Event) -> None:
        """Take the time."""
        if isinstance(event, WorkerReady):
            self.ready = time.perf_counter()
        elif isinstance(event, BatchFinished):
            self.batches += 1
        elif isinstance(event, UnitCommitted):
            self.last = time.perf_counter()

    def close(self) -> None:
        """Do nothing."""


def one_round(folder: Path, number: int) -> dict[str, float]:
    """Run the job once, into a fresh output."""
    output = folder / f"out-{number}"
    watch = Stopwatch()
    began = time.perf_counter()
    report = batchinfer.run_job(
        {
            "job": "simulated-device",
            "input": {"path": str(folder / "in")},
            "model": {"backend": "simulated", "seconds_per_batch": SECONDS_PER_BATCH},
            "batching": {"size": BATCH},
            "output": {"path": str(output), "carry": ["id"]},
            "checkpoint": {"unit_rows": 32_768},
        },
        observers=[watch],
    )
    whole_s = time.perf_counter() - began
    ids = ds.dataset(output).to_table(columns=["id"])["id"].to_numpy()
    if report.rows_ok != ROWS or not (np.sort(ids) == np.arange(ROWS)).all():
        raise SystemExit(f"{ROWS} rows went in, others came out")
    ideal_s = watch.batches * SECONDS_PER_BATCH
    return {"steady": ideal_s / (watch.last - watch.ready), "whole_run": ideal_s / whole_s}


def main() -> None:
    """Run the rounds, print them, and write the result."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        for at in range(4):
            ids = np.arange(at * ROWS // 4, (at + 1) * ROWS // 4)
            table = pa.table({"id": ids, "x": ids.astype(np.float32)})
            pq.write_table(table, folder / "in" / f"{at}.parquet", row_group_size=32_768)
        rounds = [one_round(folder, number) for number in range(ROUNDS)]
    result: dict[str, Any] = {
        "command": "python " + " ".join(["benchmarks/simulated_device.py", *sys.argv[1:]]),
        "rows": ROWS,
        "batch": BATCH,
        "seconds_per_batch": SECONDS_PER_BATCH,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("batchinfer-pipeline", "pyarrow", "numpy")
        },
    }
    for figure in ("steady", "whole_run"):
        values = sorted(row[figure] for row in rounds)
        result[figure] = {
            "median": round(statistics.median(values), 4),
            "all": [round(value, 4) for value in values],
        }
        print(f"{figure:<10} median {result[figure]['median']:.1%}   {result[figure]['all']}")
        if values[-1] > 1:
            raise SystemExit("an efficiency above 1 is a mistake of the benchmark")
    (HERE / "results" / "simulated_device.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
