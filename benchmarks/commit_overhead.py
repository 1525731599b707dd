"""What does being sure cost? `python benchmarks/commit_overhead.py`

The same job runs with the protocol and without it, in turns: *without* means that parts are encoded
without page checksums, hashed by nobody, written to no store, and that there is no plan beside the
output, no heartbeat, no manifest. What is left is reading, the (simulated) device and encoding. Units
have their default size. The store is a folder in memory, so that disks do not blur the picture; its
requests are counted.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import batchinfer
from batchinfer.engine.publish import Outcome
from batchinfer.events import Event, UnitCommitted, WorkerReady
from batchinfer.runner.process import InlineWorker
from batchinfer.storage.posix import PosixStore

UNITS = 8
UNIT_ROWS = 65_536
BATCH = 1_024
SECONDS_PER_BATCH = 0.02
WIDTH = 96
ROUNDS = 7
HERE = Path(__file__).parent


class Stopwatch:
    """Notes when the model was loaded and when the last unit was committed."""

    def __init__(self) -> None:
        self.ready = self.last = 0.0

    def on_event(self, event: Event) -> None:
        """Take the time."""
        if isinstance(event, WorkerReady):
            self.ready = time.perf_counter()
        elif isinstance(event, UnitCommitted):
            self.last = time.perf_counter()

    def close(self) -> None:
        """Do nothing."""


@contextlib.contextmanager
def counted(requests: Counter[str]) -> Iterator[None]:
    """Count what is asked of the output's store."""
    with contextlib.ExitStack() as stack:
        for name in ("create", "put", "delete", "entries", "read", "stamp", "replace"):
            real = getattr(PosixStore, name)

            def call(
                self: Any, uri: str, *rest: Any, _real: Any = real, _name: str = name, **more: Any
            ) -> Any:
                if "/out-" in uri:
                    part = "part" if "/part-" in uri else "control"
                    requests[f"{_name} {part}"] += 1
                return _real(self, uri, *rest, **more)

            stack.enter_context(mock.patch.object(PosixStore, name, call))
        yield


@contextlib.contextmanager
def without_protocol() -> Iterator[None]:
    """Leave out what makes a commit sure."""
    unchecked = pq.write_table

    def write_table(*table: Any, **options: Any) -> None:
        unchecked(*table, **{**options, "write_page_checksum": False})

    def finish(_: Any, __: Any, plan: Any, *___: Any) -> dict[str, Any]:
        return {"rows": plan.num_rows, "rows_error": 0, "rows_planned": plan.num_rows, "parts": []}

    with contextlib.ExitStack() as stack:
        for target, value in (
            ("batchinfer.engine.commit.publish", lambda *_, **__: Outcome.WON),
            ("batchinfer.engine.commit.sha256", lambda _: ""),
            ("batchinfer.sinks.parquet.pq.write_table", write_table),
            ("batchinfer.runner.job.store_plan", lambda _, __, plan: plan),
            ("batchinfer.runner.job.probe", lambda *_, **__: None),
            ("batchinfer.runner.job.Keeper", mock.Mock(return_value=mock.Mock(error=None))),
            ("batchinfer.runner.job.finish", finish),
        ):
            stack.enter_context(mock.patch(target, value))
        yield


def one_run(folder: Path, name: str) -> tuple[float, float]:
    """Run the job into a fresh output; return steady seconds and CPU seconds."""
    watch = Stopwatch()
    before = resource.getrusage(resource.RUSAGE_SELF)
    report = batchinfer.run_job(
        {
            "job": "commit-overhead",
            "input": {"path": str(folder / "in")},
            "model": {"backend": "simulated", "seconds_per_batch": SECONDS_PER_BATCH},
            "batching": {"size": BATCH},
            "output": {"path": str(folder / name), "carry": ["id", "vector"]},
        },
        observers=[watch],
    )
    after = resource.getrusage(resource.RUSAGE_SELF)
    if report.rows_ok != UNITS * UNIT_ROWS or report.units_total != UNITS:
        raise SystemExit(f"{report.rows_ok} rows in {report.units_total} units came out")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return watch.last - watch.ready, cpu_s


def inline(_: Any) -> Any:
    """Start workers as threads."""
    return lambda _: InlineWorker()


def main() -> None:
    """Run the rounds, print them, and write the result."""
    pairs: list[dict[str, float]] = []
    requests: Counter[str] = Counter()
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a folder in memory
    with (
        tempfile.TemporaryDirectory(dir=place) as name,
        # In this process, so that both ways of it are the same program.
        mock.patch("batchinfer.runner.job._Session._spawner", inline),
    ):
        folder = Path(name)
        (folder / "in").mkdir()
        for at in range(UNITS):
            ids = np.arange(at * UNIT_ROWS, (at + 1) * UNIT_ROWS)
            noise = np.random.default_rng(at).random(UNIT_ROWS * WIDTH, dtype=np.float32)
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(noise), WIDTH)
            table = pa.table({"id": ids, "x": ids.astype(np.float32), "vector": vectors})
            pq.write_table(table, folder / "in" / f"{at}.parquet", use_dictionary=False)
        for number in range(ROUNDS):
            with counted(requests):
                sure_s, sure_cpu = one_run(folder, f"out-{number}")
            with without_protocol():
                bare_s, bare_cpu = one_run(folder, f"bare-{number}")
            device_s = UNITS * UNIT_ROWS / BATCH * SECONDS_PER_BATCH
            pairs.append(
                {"time": sure_s / bare_s - 1, "cpu_of_device_time": (sure_cpu - bare_cpu) / device_s}
            )
            for path in (folder / f"out-{number}").rglob("*.parquet"):
                path.unlink()
    result: dict[str, Any] = {
        "command": "python " + " ".join(["benchmarks/commit_overhead.py", *sys.argv[1:]]),
        "units": UNITS,
        "unit_rows": UNIT_ROWS,
        "row_bytes": WIDTH * 4 + 16,
        "seconds_per_batch": SECONDS_PER_BATCH,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {
            library: importlib.metadata.version(library)
            for library in ("batchinfer-pipeline", "pyarrow", "numpy")
        },
        "requests_per_unit": {
            key: round(count / ROUNDS / UNITS, 3) for key, count in sorted(requests.items()) if "part" in key
        },
        "other_requests_per_run": {
            key: round(count / ROUNDS, 2) for key, count in sorted(requests.items()) if "part" not in key
        },
    }
    for figure in ("time", "cpu_of_device_time"):
        values = sorted(row[figure] for row in pairs)
        result[figure] = {
            "median": round(statistics.median(values), 4),
            "all": [round(value, 4) for value in values],
        }
        print(f"{figure:<20} median {result[figure]['median']:+.2%}   {result[figure]['all']}")
    print("requests per unit   ", result["requests_per_unit"])
    print("others per run      ", result["other_requests_per_run"])
    (HERE / "results" / "commit_overhead.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
