"""Does a run take what `plan --sample` foretold? `python benchmarks/forecast.py`

Each round samples a job, forecasts it, and then runs it from its beginning, as a user would, with a process
for each command. Counted is how often the time that the run took lies inside the printed range. The jobs
are the examples in `jobs/` whose data and models are prepared, and one on a simulated device.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

HERE = Path(__file__).parent
EXAMPLES = {
    "tabular-scoring": (65_536, []),
    "image-classification": (48, []),
    "text-classification": (400, []),
    "text-embedding": (200, ["input.limit=800"]),
}
"""Rows to sample, and what makes a job shorter, so that ten runs take minutes."""


def simulated(folder: Path, num_rows: int) -> Path:
    """Write a job on a simulated device."""
    pq.write_table(pa.table({"x": np.arange(num_rows, dtype=np.float32)}), folder / "rows.parquet")
    model = {"backend": "simulated", "seconds_per_batch": 0.002, "seconds_per_row": 0.0001}
    job = folder / "simulated.json"
    document = {
        "job": "simulated",
        "input": {"path": "rows.parquet"},
        "model": model,
        "batching": {"size": 64},
        "checkpoint": {"unit_rows": 4096},
        "output": {"path": "out/", "carry": ["x"]},
    }
    job.write_text(json.dumps(document))
    return job


def said(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command. Raises SystemExit where it fails."""
    command = [sys.executable, "-m", "batchinfer", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}\n{done.stderr}")
    return done


def one(job: Path, output: Path, num_rows: int, sets: list[str]) -> dict[str, Any]:
    """Forecast a job, run it, and compare. Raises SystemExit where rows are missing."""
    pairs = [*sets, f"output.path={json.dumps(str(output))}", "observe.pushgateway=null"]
    options = [word for pair in pairs for word in ("--set", pair)]
    foretold = json.loads(said("plan", str(job), *options, "--sample", str(num_rows), "--json").stdout)
    made = foretold["forecast"]
    lines = said("run", str(job), *options, "--log-format", "json").stderr.splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    (end,) = [event for event in events if event["event"] == "run_finished"]
    written = ds.dataset(output, format="parquet").count_rows()
    if not made["rows"] == foretold["rows"] == written + end["rows_filtered"]:
        sys.exit(f"{job}: {written} rows came out, of {foretold['rows']}")
    takes = made["here"]["seconds"]
    return {
        "rows": made["rows"],
        "sampled": made["sampled_rows"],
        **takes,
        "actual": end["seconds"],
        "inside": takes["low"] <= end["seconds"] <= takes["high"],
    }


def main() -> None:
    """Take turns, print the table, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--jobs", type=Path, default=HERE.parent / "jobs", help="where the examples are")
    parser.add_argument("--tiny", action="store_true", help="only the simulated device; no result is written")
    arguments = parser.parse_args()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["BATCHINFER_CACHE"] = str(folder / "cache")
        works = {"simulated": (simulated(folder, 20_000 if arguments.tiny else 50_000), 4096, [])}
        for name, (num_rows, sets) in EXAMPLES.items() if not arguments.tiny else ():
            place = arguments.jobs / name
            if (place / "model").is_dir() and (place / "data").is_dir():
                works[name] = (place / "job.yaml", num_rows, sets)
            else:
                print(f"{name} is not prepared: python jobs/{name}/prepare.py")
        print(f"{'job':<22}{'rows':>9}{'sampled':>9}{'low':>8}{'expected':>10}{'high':>8}{'actual':>9}")
        for turn in range(arguments.rounds):
            for name, (job, num_rows, sets) in works.items():
                got = {"job": name, **one(job, folder / f"{name}-{turn}", num_rows, sets)}
                found.append(got)
                print(
                    f"{name:<22}{got['rows']:>9,}{got['sampled']:>9,}{got['low']:>8.1f}"
                    f"{got['expected']:>10.1f}{got['high']:>8.1f}{got['actual']:>9.1f}"
                    f"  {'inside' if got['inside'] else 'OUTSIDE'}",
                    flush=True,
                )
    inside = sum(each["inside"] for each in found)
    print(f"inside the range: {inside} of {len(found)} runs")
    if inside < 0.9 * len(found):
        sys.exit(1)
    if arguments.tiny:
        return
    result = {
        "command": "python benchmarks/forecast.py",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {
            package: importlib.metadata.version(package)
            for package in ("numpy", "pyarrow", "onnxruntime-gpu", "torch")
        },
        "inside": inside,
        "runs": found,
    }
    (HERE / "results" / "forecast.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
