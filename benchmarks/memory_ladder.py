"""What happens where batches do not fit into a device's memory? `python benchmarks/memory_ladder.py`

Batches of growing size meet a simulated device with less and less memory. Every row must come out once, with
its own result. A first run learns how many rows fit, and goes up again where there is room; a second one
must begin where the first ended: no batch may fail in it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
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
from batchinfer.events import Event, WorkerSaid

HERE = Path(__file__).parent
MEMORY = (1000, 300, 100, 30)
BATCHES = (64, 512, 4096)


class Watch:
    """Notes what the workers say of memory."""

    def __init__(self) -> None:
        self.not_fitting = 0
        self.steps_up = 0
        self.ceiling = 0

    def on_event(self, event: Event) -> None:
        """Take note."""
        if not isinstance(event, WorkerSaid) or not event.line.startswith("memory of "):
            return
        self.not_fitting += "do not fit" in event.line
        self.steps_up += "% free" in event.line
        (now,) = re.findall(r"from now on ([\d,]+) at once", event.line)
        self.ceiling = int(now.replace(",", ""))

    def close(self) -> None:
        """Do nothing."""


def run(folder: Path, name: str, *, memory: int, size: int, num_rows: int) -> tuple[Watch, float]:
    """Run a job, and check that every row came out with its result. Raises SystemExit."""
    watch, began = Watch(), time.perf_counter()
    batchinfer.run_job(
        {
            "job": "memory-ladder",
            "input": {"path": str(folder / "rows.parquet")},
            "model": {
                "backend": "simulated",
                "seconds_per_batch": 0,
                "memory_rows": memory,
                "signature": {"inputs": {"x": "float64[?]"}, "outputs": {"y": "float64[?]"}},
            },
            "batching": {"size": size},
            "output": {"path": str(folder / name), "carry": ["x"]},
            "compute": {"devices": "cpu"},
        },
        observers=[watch],
    )
    seconds = time.perf_counter() - began
    rows = ds.dataset(folder / name, format="parquet").to_table()
    x = rows["x"].to_numpy()
    if not np.array_equal(x, np.arange(num_rows)) or not np.array_equal(rows["y"].to_numpy(), 2 * x):
        sys.exit(f"{name}: the rows that came out are not those that should")
    return watch, seconds


def main() -> None:
    """Go down the ladder, print the table, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--tiny", action="store_true", help="two rungs, of which no result is written")
    arguments = parser.parse_args()
    num_rows = 20_000
    rungs = [(512, 100)] if arguments.tiny else [(size, memory) for size in BATCHES for memory in MEMORY]
    found: list[dict[str, Any]] = []
    print(
        f"{'batch':>6}{'memory':>8}{'rows in':>10}{'rows out':>10}{'did not fit':>13}{'steps up':>10}"
        f"{'ceiling':>9}{'of memory':>11}   second run: did not fit, ceiling"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["BATCHINFER_CACHE"] = str(folder / "cache")
        pq.write_table(pa.table({"x": np.arange(num_rows, dtype=np.float64)}), folder / "rows.parquet")
        for size, memory in rungs:
            # Each rung learns for itself.
            (folder / "cache" / "memory.json").unlink(missing_ok=True)
            name = f"{size}-{memory}"
            rung = {"memory": memory, "size": size, "num_rows": num_rows}
            first, seconds = run(folder, f"{name}-first", **rung)
            second, again_s = run(folder, f"{name}-second", **rung)
            ceiling = first.ceiling or size
            if second.not_fitting:
                sys.exit(f"{name}: a batch did not fit in the second run")
            found.append(
                {
                    "batch": size,
                    "memory_rows": memory,
                    "rows_in": num_rows,
                    "rows_out": num_rows,
                    "did_not_fit": first.not_fitting,
                    "steps_up": first.steps_up,
                    "ceiling": ceiling,
                    "seconds": seconds,
                    "second": {
                        "did_not_fit": second.not_fitting,
                        "ceiling": second.ceiling or ceiling,
                        "seconds": again_s,
                    },
                }
            )
            print(
                f"{size:>6}{memory:>8}{num_rows:>10,}{num_rows:>10,}{first.not_fitting:>13}"
                f"{first.steps_up:>10}{ceiling:>9}{min(ceiling / memory, 1):>10.0%}    "
                f"{second.not_fitting:>8}, {second.ceiling or ceiling}",
                flush=True,
            )
    if arguments.tiny:
        return
    result = {
        "command": "python benchmarks/memory_ladder.py",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("numpy", "pyarrow")},
        "rungs": found,
    }
    (HERE / "results" / "memory_ladder.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
