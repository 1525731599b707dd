"""Does `compute.host_memory` hold, whatever the input? `python benchmarks/memory.py`

Each case is a whole run of the command line at the default `compute.host_memory`, whose processes are sampled
thirty times a second: unique pages (USS), and proportional ones (PSS) for what workers and loaders share; of
loaders those written to, as libraries are the first one's own until others have mapped them.
*Taken* is the worker's peak above that of a run with next to no rows, which is Python, its libraries and the
model. A case holds where that is at most `compute.host_memory`. `--scale small` is a smoke test: it writes
no result.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from peers.measure import descendants

MIB = 2**20
WIDTH = 1_024
PERIOD_S = 1 / 30
LOADER_BYTES = 60e6
GROWTH = 0.05
POD_BYTES = 16 * 2**30
ROLES = {"batchinfer.runner.worker": "worker", "batchinfer.engine.loader_process": "loader"}
COLUMNS = {
    "in": "bytes_in",
    "set": "host_memory",
    "tree": "tree_uss",
    "(PSS)": "tree_pss",
    "worker": "worker_uss",
    "taken": "taken",
    "loader": "loader_uss",
    "said": "reported",
}
STEP = """
def same(rows):
    return {"x": rows["x"]}
"""
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Scale:
    """How large the cases are."""

    group_rows: int
    row_bytes: int
    files: int


SCALES = {
    "full": Scale(group_rows=524_288, row_bytes=100_000_000, files=100_000),
    "small": Scale(group_rows=40_960, row_bytes=20_000_000, files=10_000),
}


@dataclass
class Peak:
    """The most that the processes of a run held: each by its role and number, and all at one time."""

    each: dict[tuple[str, int], int] = field(default_factory=dict)
    uss: int = 0
    pss: int = 0

    def sample(self) -> None:
        """Add up the tree as it is now."""
        uss = pss = 0
        for pid in descendants():
            with contextlib.suppress(OSError, ValueError, IndexError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                role = next((role for module, role in ROLES.items() if module in words), "parent")
                mine, share, dirty = _memory(pid)
                kept = dirty if role == "loader" else mine
                self.each[role, pid] = max(self.each.get((role, pid), 0), kept)
                uss, pss = uss + mine, pss + share
        self.uss, self.pss = max(self.uss, uss), max(self.pss, pss)

    def of(self, role: str) -> int:
        """Return the most that a process of a role held."""
        return max((most for (other, _), most in self.each.items() if other == role), default=0)


def _memory(pid: int) -> tuple[int, int, int]:
    """Return the unique and the proportional bytes of a process, and the unique ones that it wrote to."""
    sizes = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, size = line.split()[:2]
        sizes[name] = int(size) << 10
    dirty = sizes["Private_Dirty:"]
    return sizes["Private_Clean:"] + dirty, sizes["Pss:"], dirty


def run(folder: Path, job: dict[str, Any], num_rows: int) -> dict[str, Any]:
    """Run a job from the command line, and return what it took. Raises SystemExit where rows got lost."""
    (folder / "job.yaml").write_text(json.dumps(job))
    command = [sys.executable, "-m", "batchinfer", "run", str(folder / "job.yaml"), "--log-format", "json"]
    peak, began = Peak(), time.perf_counter()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak.sample()
            time.sleep(PERIOD_S)
    seconds = time.perf_counter() - began
    said = (folder / "log").read_text()
    if process.returncode:
        sys.exit(f"{folder.name}: exit code {process.returncode}\n{said[-3000:]}")
    records = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    (end,) = [record for record in records if record["event"] == "run_finished"]
    out = ds.dataset(folder / "out", format="parquet").count_rows()
    if not num_rows == end["rows_ok"] == out:
        sys.exit(f"{folder.name}: {num_rows} rows went in, {out} came out")
    return {
        "rows": num_rows,
        "seconds": seconds,
        "tree_uss": peak.uss,
        "tree_pss": peak.pss,
        **{f"{role}_uss": peak.of(role) for role in ("parent", "worker", "loader")},
        "reported": end["peak_bytes"],
    }


def document(path: str, inputs: dict[str, str], outputs: dict[str, str], **sections: Any) -> dict[str, Any]:
    """Return a job whose simulated model takes no time."""
    signature = {"inputs": inputs, "outputs": outputs}
    return {
        "job": "memory",
        "input": {"path": path},
        "model": {"backend": "simulated", "seconds_per_batch": 0, "signature": signature},
        "compute": {"devices": "cpu", "readers": 2},
        **sections,
        "output": {"path": "out/", "carry": ["id"], **sections.get("output", {})},
    }


def vectors(folder: Path, num_rows: int, **sections: Any) -> tuple[dict[str, Any], int, int]:
    """Vectors of 4 KiB, all in one row group: as much comes out as goes in."""
    block = np.random.default_rng(0).random((4_096, WIDTH), np.float32)
    piece = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), WIDTH)
    times, rest = divmod(num_rows, len(piece))
    x = pa.chunked_array([*[piece] * times, piece.slice(0, rest)])
    rows = pa.table({"id": np.arange(num_rows), "x": x})
    pq.write_table(
        rows, folder / "rows.parquet", row_group_size=num_rows, compression="zstd", use_dictionary=False
    )
    vector = f"float32[?, {WIDTH}]"
    return document("rows.parquet", {"x": vector}, {"y": vector}, **sections), num_rows, rows.nbytes


def ten_times(folder: Path, num_rows: int) -> tuple[dict[str, Any], int, int]:
    """The same file ten times over."""
    job, _, num_bytes = vectors(folder, num_rows)
    (folder / "in").mkdir()
    for at in range(10):
        (folder / "in" / f"{at}.parquet").hardlink_to(folder / "rows.parquet")
    return {**job, "input": {"path": "in/"}}, 10 * num_rows, 10 * num_bytes


def long_row(folder: Path, num_bytes: int) -> tuple[dict[str, Any], int, int]:
    """Twenty thousand short texts, and one that is very long; all of them are carried."""
    texts = [f"a short text, number {at}" for at in range(20_000)]
    texts[10_000] = np.random.default_rng(0).integers(97, 123, num_bytes, np.uint8).tobytes().decode()
    rows = pa.table({"id": np.arange(len(texts)), "text": texts})
    pq.write_table(rows, folder / "rows.parquet", row_group_size=len(texts), use_dictionary=False)
    output = {"carry": ["id", "text"]}
    # The simulated model would make Python's objects of texts; what models need is not what is asked here.
    job = document("rows.parquet", {"id": "int64[?]"}, {"y": "float64[?]"}, output=output)
    return job, len(texts), rows.nbytes


def small_files(folder: Path, count: int) -> tuple[dict[str, Any], int, int]:
    """Files of a kilobyte, a thousand to a folder, whose bytes are carried."""
    content = np.random.default_rng(0).integers(0, 256, 1_024, np.uint8).tobytes()
    for at in range(count):
        path = folder / "files" / f"{at // 1_000:03d}" / f"{at:06d}.bin"
        if at % 1_000 == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(content)
    job = document("files/", {"size": "int64[?]"}, {"y": "float64[?]"}, output={"carry": ["path", "bytes"]})
    job["input"]["format"] = "files"
    return job, count, count * len(content)


def in_loaders(folder: Path, num_rows: int) -> tuple[dict[str, Any], int, int]:
    """Vectors that go through two loader processes and back."""
    (folder / "steps.py").write_text(STEP)
    step = {"python": {"function": "steps:same", "columns": ["x"], "output": {"x": f"float32[{WIDTH}]"}}}
    return vectors(folder, num_rows, preprocess=[step])


def on_eight(folder: Path, num_rows: int) -> tuple[dict[str, Any], int, int]:
    """Eight workers at once, on however many cores there are."""
    return vectors(folder, num_rows, compute={"devices": "cpu", "workers_per_device": 8, "readers": 2})


def main() -> None:
    """Run the cases, print a table, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--case", action="append", help="only this one; writes no result")
    arguments = parser.parse_args()
    scale = SCALES[arguments.scale]
    cases: dict[str, Callable[[Path], tuple[dict[str, Any], int, int]]] = {
        "next to no rows": lambda folder: vectors(folder, 64),
        "an idle loader": lambda folder: in_loaders(folder, 64),
        "a file": lambda folder: vectors(folder, scale.group_rows // 4),
        "ten of it": lambda folder: ten_times(folder, scale.group_rows // 4),
        "a row group of 2 GB": lambda folder: vectors(folder, scale.group_rows),
        "written as it is": lambda folder: vectors(folder, scale.group_rows, output={"compression": "none"}),
        "a row of 100 MB": lambda folder: long_row(folder, scale.row_bytes),
        "100,000 files": lambda folder: small_files(folder, scale.files),
        "two loaders": lambda folder: in_loaders(folder, scale.group_rows // 4),
        "eight workers": lambda folder: on_eight(folder, scale.group_rows),
    }
    if arguments.case:
        cases = {name: case for name, case in cases.items() if name in [next(iter(cases)), *arguments.case]}
    found: dict[str, dict[str, Any]] = {}
    print(f"{'case, and MB':<20} {'rows':>9} " + " ".join(f"{name:>8}" for name in COLUMNS) + "  seconds")
    for name, case in cases.items():
        with tempfile.TemporaryDirectory() as temporary:
            job, num_rows, num_bytes = case(Path(temporary))
            figures = run(Path(temporary), job, num_rows)
        workers = job["compute"].get("workers_per_device", 1)
        figures |= {"bytes_in": num_bytes, "workers": workers, "host_memory": workers * 512 * MIB}
        found[name] = figures
        base = found["next to no rows"]["worker_uss"]
        figures["taken"] = max(0, figures["worker_uss"] - base)
        figures["holds"] = figures["taken"] <= figures["host_memory"] // workers
        print(_line(name, figures), flush=True)
    verdicts = judge(found)
    for name, (holds, said) in verdicts.items():
        print(f"{'holds' if holds else 'FAILS'}  {name}: {said}")
    if arguments.scale == "full" and not arguments.case:
        result = {
            "command": "python " + " ".join(["benchmarks/memory.py", *sys.argv[1:]]),
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "versions": {
                name: importlib.metadata.version(name) for name in ("batchinfer-pipeline", "pyarrow", "numpy")
            },
            "cases": found,
            "verdicts": {name: {"holds": holds, "said": said} for name, (holds, said) in verdicts.items()},
        }
        (HERE / "results" / "memory.json").write_text(json.dumps(result, indent=1) + "\n")
    if not all(holds for holds, _ in verdicts.values()):
        sys.exit(1)


def _line(name: str, figures: dict[str, Any]) -> str:
    """Return a case as a line of the table."""
    cells = " ".join(f"{figures[key] / 1e6:>8,.0f}" for key in COLUMNS.values())
    return f"{name:<20} {figures['rows']:>9,} {cells} {figures['seconds']:>8.1f}"


def judge(found: dict[str, dict[str, Any]]) -> dict[str, tuple[bool, str]]:
    """Hold what was measured against what is promised."""
    verdicts: dict[str, tuple[bool, str]] = {}
    for name, figures in found.items():
        if name not in {"next to no rows", "an idle loader"}:
            each = figures["host_memory"] // figures["workers"]
            verdicts[name] = (
                figures["holds"],
                f"{figures['taken'] / MIB:,.0f} MiB taken by a worker, of {each // MIB:,}",
            )
    one, ten = found.get("a file"), found.get("ten of it")
    if one and ten:
        grown = (ten["worker_uss"] - one["worker_uss"]) / (ten["bytes_in"] - one["bytes_in"])
        verdicts["ten times the rows"] = (grown < GROWTH, f"{grown:.1%} of what came on top was held")
    if "an idle loader" in found:
        each = found["an idle loader"]["loader_uss"]
        verdicts["a loader process"] = (each <= LOADER_BYTES, f"{each / 1e6:.0f} MB without rows")
    if "eight workers" in found:
        whole = found["eight workers"]["tree_pss"]
        verdicts["eight workers in a pod"] = (whole <= POD_BYTES, f"{whole / 2**30:.1f} GiB of 16")
    return verdicts


if __name__ == "__main__":
    main()
