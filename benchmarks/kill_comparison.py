"""The same kills, on five ways to do the same work: `python benchmarks/kill_comparison.py --ray-python PATH`

4,000 numbered rows in 8 Parquet files go through a "model" that doubles a number and takes 100 ms for
50 rows. Each way is started, killed as a whole (SIGKILL to every process of it) at a random moment,
twice, and then run to its end by the same command. What a reader of the output folder then finds is
counted: rows missing, rows doubled, files that cannot be read; and how many rows the model was given
over all three starts, for each row of input.

Ray Data is used as its documentation has it: an actor per model, `write_parquet` with its default mode
(append), with `mode="overwrite"`, and with a `CheckpointConfig` on the id column. It needs a Python of
its own, with `ray[data]`; without `--ray-python` its three ways are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS, SHARDS, BATCH, SECONDS = 4_000, 8, 50, 0.1
HERE = Path(__file__).parent

MODEL = f"""
import os, time
SEEN = os.open(os.environ["SEEN"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)

def double(x):
    time.sleep({SECONDS} * len(x) / {BATCH})
    os.write(SEEN, b"%d\\n" % len(x))
    return x * 2
"""

BACKEND = """
from model import double

class Model:
    inputs = {"x": "float64[?]"}
    outputs = {"y": "float64[?]"}

    def __call__(self, batch):
        return {"y": double(batch["x"])}
"""

PLAIN = f"""
import sys, pathlib
import pyarrow.parquet as pq
from model import double

source, target = map(pathlib.Path, sys.argv[1:3])
target.mkdir(exist_ok=True)
for path in sorted(source.glob("*.parquet")):
    out = target / path.name
    if out.exists():
        continue  # done by an earlier run
    writer = None
    for batch in pq.ParquetFile(path).iter_batches(batch_size={BATCH}):
        done = batch.append_column("y", double(batch["x"].to_numpy()).tolist())
        writer = writer or pq.ParquetWriter(out, done.schema)
        writer.write_batch(done)
    writer.close()
"""

RAY = f"""
import logging, sys
import ray
from ray.data.checkpoint import CheckpointConfig

source, target, way, state = sys.argv[1:5]
ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200 << 20, logging_level=logging.ERROR)
context = ray.data.DataContext.get_current()
context.enable_progress_bars = False
if way == "checkpoint":
    context.checkpoint_config = CheckpointConfig(
        id_column="id", checkpoint_path=state, delete_checkpoint_on_success=False
    )

class Model:
    def __init__(self):
        from model import double
        self.double = double
    def __call__(self, batch):
        batch["y"] = self.double(batch["x"])
        return batch

rows = ray.data.read_parquet(source)
done = rows.map_batches(Model, batch_size={BATCH}, concurrency=1)
done.write_parquet(target, **({{"mode": "overwrite"}} if way == "overwrite" else {{}}))
"""


def prepare(folder: Path) -> None:
    """Write the input, the model and the programs."""
    (folder / "in").mkdir()
    for at in range(SHARDS):
        ids = np.arange(at * ROWS // SHARDS, (at + 1) * ROWS // SHARDS)
        table = pa.table({"id": ids, "x": ids.astype(np.float64)})
        pq.write_table(table, folder / "in" / f"{at}.parquet", row_group_size=BATCH)
    for name, text in (("model", MODEL), ("backend", BACKEND), ("plain", PLAIN), ("on_ray", RAY)):
        (folder / f"{name}.py").write_text(text)


def command(way: str, folder: Path, out: Path, ray_python: str) -> list[str]:
    """Return the command line of a way."""
    source = str(folder / "in")
    if way == "plain script":
        return [sys.executable, str(folder / "plain.py"), source, str(out)]
    if way.startswith("ray"):
        mode = {"ray data": "append", "ray data, overwrite": "overwrite"}.get(way, "checkpoint")
        return [ray_python, str(folder / "on_ray.py"), source, str(out), mode, f"{out}-state"]
    job = {
        "job": "doubling",
        "input": {"path": source},
        "model": {"backend": "python", "entry": "backend:Model"},
        "batching": {"size": BATCH},
        "output": {"path": str(out), "carry": ["id"]},
    }
    path = folder / f"{out.name}.json"
    path.write_text(json.dumps(job))
    return [sys.executable, "-m", "batchinfer", "run", str(path)]


def family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found += family(int(child))
    return found


def run(words: list[str], folder: Path, seen: Path, *, kill_after: float | None) -> float:
    """Run a command, or kill all of it after some seconds; return how long it took."""
    began = time.monotonic()
    process = subprocess.Popen(
        words,
        cwd=folder,
        env={**os.environ, "SEEN": str(seen), "PYTHONPATH": str(folder), "RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.wait(kill_after if kill_after is not None else 300)
    except subprocess.TimeoutExpired:
        for pid in family(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
    return time.monotonic() - began


def found_in(out: Path) -> dict[str, int]:
    """Count what a reader of the folder finds."""
    ids: Counter[int] = Counter()
    unreadable = 0
    for path in out.rglob("*.parquet"):
        if any(part.startswith(("_", ".")) for part in path.relative_to(out).parts):
            continue
        try:
            ids.update(pq.read_table(path)["id"].to_pylist())
        except (OSError, pa.ArrowException):
            unreadable += 1
    return {
        "missing": ROWS - len(ids),
        "doubled": sum(count - 1 for count in ids.values()),
        "unreadable_files": unreadable,
    }


def main() -> None:
    """Run every way with every seed; print a table and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ray-python", default="", help="the Python that has Ray")
    parser.add_argument("--seeds", type=int, default=4)
    chosen = parser.parse_args()
    ways = ["batchinfer", "plain script"]
    if chosen.ray_python:
        ways += ["ray data", "ray data, overwrite", "ray data, checkpointing"]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for number, way in enumerate(ways):
            calm = run(
                command(way, folder, folder / f"calm-{number}", chosen.ray_python),
                folder,
                folder / f"calm-seen-{number}",
                kill_after=None,
            )
            rounds = []
            for seed in range(chosen.seeds):
                draw = random.Random(seed)
                out, seen = folder / f"out-{number}-{seed}", folder / f"seen-{number}-{seed}"
                words = command(way, folder, out, chosen.ray_python)
                for _ in range(2):
                    run(words, folder, seen, kill_after=draw.uniform(0.3, 0.95) * calm)
                run(words, folder, seen, kill_after=None)
                computed = sum(map(int, seen.read_text().split()))
                rounds.append({"seed": seed, **found_in(out), "computed_per_row": round(computed / ROWS, 3)})
                print(way, rounds[-1], flush=True)
            results[way] = {"undisturbed_s": round(calm, 1), "rounds": rounds}
    print(f"\n{'':<26}{'missing':>9}{'doubled':>9}{'unreadable':>12}{'computed per row':>18}")
    for way, found in results.items():
        sums = {
            key: sum(row[key] for row in found["rounds"])
            for key in ("missing", "doubled", "unreadable_files")
        }
        work = statistics.median(row["computed_per_row"] for row in found["rounds"])
        print(
            f"{way:<26}{sums['missing']:>9,}{sums['doubled']:>9,}{sums['unreadable_files']:>12}{work:>18.2f}"
        )
        found["sum"] = sums
        found["median_computed_per_row"] = work
    version = ""
    if chosen.ray_python:
        asked = [chosen.ray_python, "-c", "import ray; print(ray.__version__)"]
        version = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    result = {
        "command": "python benchmarks/kill_comparison.py --ray-python PATH",
        "rows": ROWS,
        "kills_per_round": 2,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {
            **{name: importlib.metadata.version(name) for name in ("batchinfer-pipeline", "pyarrow")},
            "ray": version,
        },
        "results": results,
    }
    (HERE / "results" / "kill_comparison.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
