"""What do bad rows cost their neighbours? `python benchmarks/bad_rows.py`

A simulated device whose batches of 64 rows take as long as their rows do, and which finds out at the end of
a batch that it refuses one of its rows: the worst case. It runs three inputs in turns: without a bad row,
with one row in a hundred bad and these spread evenly, and with as many that stand together. Then an input
of a million rows, one of which ends the process that touches it. Exactly the bad rows must be errors.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

import batchinfer
from batchinfer.events import Event, UnitCommitted, WorkerExited, WorkerReady

BATCH = 64
SECONDS_PER_ROW = 0.0003
HERE = Path(__file__).parent


class Watch:
    """Notes when the worker was ready, when the last unit was committed, and how many workers died."""

    def __init__(self) -> None:
        self.ready = self.last = 0.0
        self.num_deaths = 0

    def on_event(self, event: Event) -> None:
        """Take the time."""
        if isinstance(event, WorkerReady):
            self.ready = self.ready or time.perf_counter()
        elif isinstance(event, UnitCommitted):
            self.last = time.perf_counter()
        elif isinstance(event, WorkerExited):
            self.num_deaths += event.restarts

    def close(self) -> None:
        """Do nothing."""


def run(folder: Path, num_rows: int, bad: Iterable[int], fault: str, **model: Any) -> Watch:
    """Run a job in which these rows go wrong, and check that they alone do. Raises SystemExit."""
    folder.mkdir()
    faults = {str(float(row)): fault for row in bad}
    watch = Watch()
    batchinfer.run_job(
        {
            "job": "bad-rows",
            "input": {"path": str(folder.parent / f"{num_rows}.parquet")},
            "model": {
                "backend": "simulated",
                "faults": faults,
                "signature": {"inputs": {"x": "float64[?]"}, "outputs": {"y": "float64[?]"}},
                **model,
            },
            "batching": {"size": BATCH},
            "errors": {"max": "2%"},
            "output": {"path": str(folder / "out"), "carry": ["x"]},
            "compute": {"devices": "cpu"},
        },
        observers=[watch],
    )
    rows = ds.dataset(folder / "out", format="parquet").to_table()
    x = rows["x"].to_numpy()
    failed = np.flatnonzero(rows["_error"].is_valid().to_numpy())
    good = np.setdiff1d(np.arange(num_rows), failed)
    right = np.array_equal(x, np.arange(num_rows)) and sorted(x[failed].tolist()) == sorted(
        map(float, faults)
    )
    if not right or not np.array_equal(rows["y"].to_numpy()[good], 2 * x[good]):
        sys.exit(f"{folder.name}: the rows that came out are not those that should")
    return watch


def main() -> None:
    """Run all of them, print the ratios, and write them down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="a small round that writes no result")
    arguments = parser.parse_args()
    num_rows, million = (6_400, 20_000) if arguments.tiny else (64_000, 1_000_000)
    share = num_rows // 100
    inputs: dict[str, list[int]] = {
        "clean": [],
        "spread": list(range(50, num_rows, 100)),
        "together": list(range(BATCH * 20, BATCH * 20 + share)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in inputs}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for count in (num_rows, million):
            pq.write_table(pa.table({"x": np.arange(count, dtype=np.float64)}), root / f"{count}.parquet")
        for turn in range(arguments.rounds):
            for name, bad in inputs.items():
                watch = run(
                    root / f"{name}-{turn}",
                    num_rows,
                    bad,
                    "error",
                    seconds_per_batch=0,
                    seconds_per_row=SECONDS_PER_ROW,
                )
                seconds[name].append(watch.last - watch.ready)
        began = time.perf_counter()
        killer = run(root / "killer", million, [million * 2 // 3], "segfault", seconds_per_batch=0)
        killed_s = time.perf_counter() - began
        clean = run(root / "no-killer", million, [], "segfault", seconds_per_batch=0)
    ratios = {
        name: [clean_s / each for clean_s, each in zip(seconds["clean"], seconds[name], strict=True)]
        for name in ("spread", "together")
    }
    for name, found in ratios.items():
        middle, spread = statistics.median(found), f"({min(found):.3f} to {max(found):.3f})"
        print(f"1 % of the rows bad, {name:<9} throughput of the clean run: median {middle:.3f} {spread}")
    print(
        f"one row of {million:,} ends its process: {million - 1:,} results and one error row after "
        f"{killer.num_deaths} restarts, {killed_s:.1f} s whole (steady without it "
        f"{clean.last - clean.ready:.1f} s)"
    )
    if arguments.tiny:
        return
    result = {
        "command": "python benchmarks/bad_rows.py",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("numpy", "pyarrow")},
        "batch": BATCH,
        "rows": num_rows,
        "seconds_per_row": SECONDS_PER_ROW,
        "seconds": seconds,
        "ratios": ratios,
        "killer": {"rows": million, "restarts": killer.num_deaths, "seconds": killed_s},
    }
    (HERE / "results" / "bad_rows.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
