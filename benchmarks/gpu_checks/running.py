"""Jobs as a user runs them: written to a file, given to the command, and every row of the output counted."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from gpu_checks.bench import Bench

ROOT = Path(__file__).parents[2]
_SAID = 1500
_LOOKED_AT = 512
KEY = ["_source", "_row"]
"""What tells the rows of an output apart."""

Array = np.ndarray[Any, Any]


@dataclass(slots=True)
class Ran:
    """A run that is over: its log, and how long it took from start to exit."""

    output: Path
    code: int
    seconds: float
    began: float
    records: list[dict[str, Any]] = field(default_factory=list)

    @property
    def end(self) -> dict[str, Any]:
        """The last record."""
        return self.events("run_finished")[-1]

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the records of an event."""
        return [record for record in self.records if record["event"] == name]


def environment(bench: Bench) -> dict[str, str]:
    """Return an environment in which the command is found, and learns nothing for later runs."""
    paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "XDG_CACHE_HOME": str(bench.folder / "cache"),
        "NO_COLOR": "1",
        "PYTHONWARNINGS": "ignore",
    }


def write_job(bench: Bench, name: str, document: Mapping[str, Any], *, device: str | None = None) -> Path:
    """Write a job that runs on the device, keeps which row is which, and puts its output under its name."""
    place = device or bench.device
    # A tiny run shares its cores with others, and threads that wait for each other would wait for those.
    few = {"threads": 1} if bench.tiny and place == "cpu" else {}
    compute = {"devices": "cpu" if place == "cpu" else [place], **few, **document.get("compute", {})}
    whole = {
        "job": name,
        "observe": {"interval": 1},
        "errors": {"max": 0},
        **document,
        "compute": compute,
        "output": {"path": f"out-{name}", "meta": KEY, **document.get("output", {})},
    }
    path = bench.folder / f"{name}.json"
    path.write_text(json.dumps(whole))
    return path


def command(job: Path, *options: str) -> list[str]:
    """Return the words that run a job."""
    return [sys.executable, "-m", "batchinfer", "run", str(job), "--log-format", "json", *options]


def start(bench: Bench, job: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start a run; its log goes to a file beside the job."""
    with log_of(job).open("wb") as log:
        return subprocess.Popen(
            command(job, *options),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=environment(bench),
            cwd=bench.folder,
        )


def finish(bench: Bench, process: subprocess.Popen[bytes], job: Path, began: float) -> Ran:
    """Wait for a run to end. Raises OutOfTime, and RuntimeError with what it said where it failed."""
    try:
        code = process.wait(bench.left_s())
    except subprocess.TimeoutExpired:
        process.kill()
        bench.left_s()
        raise
    ran = Ran(bench.folder / f"out-{job.stem}", code, time.time() - began, began, records(job))
    if code:
        said = log_of(job).read_text(errors="replace")
        raise RuntimeError(f"{job.stem} ended with {code}: {said[-_SAID:]}")
    return ran


def run(
    bench: Bench,
    name: str,
    document: Mapping[str, Any],
    *options: str,
    device: str | None = None,
    at_least: float = 0.0,
) -> Ran:
    """Run a job to its end. Raises OutOfTime where fewer than `at_least` seconds are left for it."""
    bench.left_s(at_least=at_least)
    job, began = write_job(bench, name, document, device=device), time.time()
    return finish(bench, start(bench, job, *options), job, began)


def log_of(job: Path) -> Path:
    """Return where the log of a job is."""
    return job.with_suffix(".log")


def records(job: Path) -> list[dict[str, Any]]:
    """Return the records of a log so far."""
    found = []
    for line in log_of(job).read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and "event" in record:
                found.append(record)
    return found


def counted(bench: Bench, ran: Ran, rows: int) -> None:
    """Check that exactly these many rows came out, each once and none of them failed."""
    end, name = ran.end, ran.output.name.removeprefix("out-")
    if end["rows_ok"] != rows or end["rows_error"] or not end["complete"]:
        bench.wrong(f"{name}: {rows} rows went in, {end['rows_ok']} came out and {end['rows_error']} failed")
    keys = ds.dataset(ran.output, format="parquet").to_table(columns=KEY)
    source = keys["_source"].combine_chunks()
    if not pa.types.is_dictionary(source.type):
        source = source.dictionary_encode()
    number = source.indices.to_numpy().astype(np.int64) << 32 | keys["_row"].to_numpy()
    distinct = len(np.unique(number))
    if len(keys) != rows or distinct != rows:
        bench.wrong(f"{name}: {rows} rows went in, the output has {len(keys)}, {distinct} of them distinct")


def values(output: Path, column: str) -> Array:
    """Return a result as (rows, d), float64, in the order of the input."""
    table = ds.dataset(output, format="parquet").to_table(columns=[*KEY, column])
    ordered = table.take(pc.sort_indices(table, [(key, "ascending") for key in KEY]))
    flat = ordered[column].combine_chunks()
    while pa.types.is_fixed_size_list(flat.type) or pa.types.is_list(flat.type):
        flat = flat.flatten()
    return np.asarray(flat.to_numpy(zero_copy_only=False), np.float64).reshape(len(table), -1)


def compared(found: Array, wanted: Array) -> dict[str, Any]:
    """Compare results row by row: by how much a row is off, as a share of what tells it from the mean row,
    and how many rows are nearest to themselves among the first five hundred."""
    if found.shape != wanted.shape:
        return {"rows": len(found), "worst": float("inf"), "median": float("inf"), "own": 0, "looked_at": 1}
    own = np.linalg.norm(wanted - wanted.mean(0), axis=1)
    error = np.linalg.norm(found - wanted, axis=1) / np.maximum(own, 1e-12)
    error = np.where(np.isfinite(error), error, np.inf)
    few, there = found[:_LOOKED_AT], wanted[:_LOOKED_AT]
    # Squares of distances, without the squares of `few`, which are the same for all.
    apart = (there**2).sum(1)[None, :] - 2 * few @ there.T
    own_is_nearest = int((apart.argmin(1) == np.arange(len(few))).sum()) if len(few) else 0
    return {
        "rows": len(found),
        "worst": float(error.max(initial=0.0)),
        "median": float(np.median(error)) if len(error) else 0.0,
        "own": own_is_nearest,
        "looked_at": len(few),
    }


def require_close(bench: Bench, what: str, figures: Mapping[str, Any], most: float) -> None:
    """Check that each row is within a band, and is itself."""
    if not figures["worst"] <= most or figures["own"] != figures["looked_at"]:
        bench.wrong(
            f"{what}: a row is off by {figures['worst']:.2g} of what tells it apart, more than {most:g}; "
            f"{figures['own']} of {figures['looked_at']} are nearest to themselves"
        )


def shares(stages: Mapping[str, float], names: Sequence[str] = ()) -> dict[str, float]:
    """Return what a device did, as shares of its time."""
    whole = sum(stages.values()) or 1.0
    return {name: round(stages[name] / whole, 4) for name in names or stages}
