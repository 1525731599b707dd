"""What failed for a reason that may pass is tried again; what leaks is replaced; and both are told."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from batchinfer.errors import DeviceError
from batchinfer.runner.memory_guard import MemoryGuard
from tests.conftest import Run, doubling_job, environment, write_shards

CODE = """
import pathlib

HERE = pathlib.Path(__file__).parent

def passes(name, times):
    with open(HERE / name, "a") as file:
        file.write("x")
    return len((HERE / name).read_text()) > times

def step(rows):
    ids = rows["id"].to_pylist()
    if 3 in ids and not passes("steps", 2):
        raise ConnectionResetError("its text counts for nothing")
    if 90 in ids:
        raise ValueError("connection reset by peer, timeout, 503: only words")
    return {"x": rows["x"]}

def after(results):
    if (results["y"] == 7).any() and not passes("afters", 1):
        raise TimeoutError("later")
    if (results["y"] == 50).any():
        raise TimeoutError("never")
    return {"y": results["y"]}

def refuses(rows):
    passes("asked", 0)
    raise ConnectionRefusedError("for ever")

def misbehaves(rows):
    import subprocess, sys
    ids = rows["id"].to_pylist()
    if 7 in ids:
        sys.exit("this program is done")
    if 50 in ids:
        print("x" * 300_000, end="")
        subprocess.Popen(["sleep", "30"])
    return {"x": rows["x"]}
"""


def job_of(folder: Path, function: str, **more: Any) -> Path:
    """Write a job with steps of its own."""
    write_shards(folder / "in", [100])
    (folder / "mine.py").write_text(CODE)
    step = {"function": f"mine:{function}", "columns": ["id", "x"], "output": {"x": "float32"}}
    return doubling_job(folder, preprocess=[{"python": step}], **more)


def test_a_passing_fault_is_tried_again(tmp_path: Path, batchinfer: Run) -> None:
    """In a loader, in the model and after it: a few more attempts, and no row fails. What does not pass fails
    after as many as are asked for, and says how many; what is no passing fault fails at once."""
    job = job_of(
        tmp_path,
        "step",
        postprocess=[{"python": {"function": "mine:after", "output": {"y": "float32"}}}],
        model={"faults": {"10.0": "throttled"}, "recovers": 2},
        errors={"max": "100%", "retry": {"transient": 3, "timeout": 1}},
    )
    done = batchinfer("run", str(job), "--log-format", "json")
    assert done.returncode == 0, done.stderr
    rows = ds.dataset(tmp_path / "out", format="parquet").to_table().sort_by("id").to_pylist()
    failed = {row["id"]: row["_error"] for row in rows if row["_error"]}
    assert {at: (error["code"], error["attempts"]) for at, error in failed.items()} == {
        50: ("timeout", 2),
        90: ("user", 1),
    }
    assert all(row["y"] == row["id"] for row in rows if row["id"] not in failed)
    records = map(json.loads, filter(lambda line: line.startswith("{"), done.stderr.splitlines()))
    (end,) = [record for record in records if record["event"] == "run_finished"]
    # A batch that times out, then the row alone.
    assert end["retries"] == {"connection": 2, "throttled": 2, "timeout": 3}


def test_a_stop_ends_the_waiting(tmp_path: Path) -> None:
    """SIGTERM while a call waits to be tried again: exit 75 at once, and the row is not taken for failed."""
    retry = {"max": "100%", "retry": {"transient": 1000}}
    job = job_of(tmp_path, "refuses", errors=retry, compute={"loaders": "threads"}, limits={"grace": 100})
    command = [sys.executable, "-m", "batchinfer", "run", str(job)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        deadline = time.monotonic() + 60
        while len((tmp_path / "asked").read_text() if (tmp_path / "asked").exists() else "") < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert time.monotonic() - began < 20
    assert "late_error" not in said
    assert not list((tmp_path / "out").glob("part-*"))


def test_code_that_exits_floods_and_leaves_children(tmp_path: Path, batchinfer: Run) -> None:
    """A row on which it exits fails alone; what it prints without end is cut into lines; and a process that it
    leaves behind, with the worker's output in its hands, holds nobody up."""
    job = job_of(tmp_path, "misbehaves", compute={"loaders": "threads"}, errors={"max": "100%"})
    began = time.monotonic()
    done = batchinfer("run", str(job))
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 60
    rows = ds.dataset(tmp_path / "out", format="parquet").to_table().sort_by("id").to_pylist()
    assert {row["id"]: row["_error"]["code"] for row in rows if row["_error"]} == {7: "user"}
    assert len(rows) == 100
    assert max(map(len, done.stderr.splitlines())) < 100_000


def test_a_worker_that_leaks_is_replaced(tmp_path: Path, batchinfer: Run) -> None:
    """Before the kernel takes it, between units, as often as need be: no row is lost, and none is blamed."""
    write_shards(tmp_path / "in", [160])
    job = doubling_job(
        tmp_path,
        model={"leak_bytes": 64 * 2**20, "seconds_per_batch": 0.3},
        compute={"host_memory": "32MiB"},
        checkpoint={"unit_rows": 10},
    )
    done = batchinfer("run", str(job))
    assert done.returncode == 0, done.stderr
    assert "warning=memory_guard" in done.stderr
    assert "MiB; another takes its place once its units are done" in done.stderr
    assert done.stderr.count("event=worker_ready") > 1
    rows = ds.dataset(tmp_path / "out", format="parquet").to_table().sort_by("id")
    assert rows["y"].to_pylist() == list(range(160))
    assert rows["_error"].null_count == 160


def test_what_a_worker_may_take() -> None:
    """Its model, its rows and some room; a worker that cannot fit is an error, and not replaced for ever."""
    mib = 2**20
    guard = MemoryGuard(rows_bytes=100 * mib, fair_bytes=2000 * mib)
    guard.loaded(500 * mib)
    assert guard.excess(600 * mib) is None
    assert guard.excess(950 * mib) is None
    assert guard.excess(960 * mib) == "has grown to 960 MiB, and its share is 956 MiB"
    tight = MemoryGuard(rows_bytes=100 * mib, fair_bytes=700 * mib)
    assert tight.excess(600 * mib) is None
    assert tight.excess(720 * mib) is None
    assert tight.excess(730 * mib) is not None
    with pytest.raises(DeviceError, match=r"800 MiB of memory with its model alone, and its part .* 700 MiB"):
        tight.loaded(800 * mib)
    assert MemoryGuard(rows_bytes=mib, fair_bytes=0).excess(1) is None
