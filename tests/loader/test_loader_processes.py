"""Loader processes: the same output as with threads, no GIL in common, and no death that costs more than its row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb

from tests.conftest import doubling_job, write_shards

STEPS = """
import ctypes, json, os, signal, sys, time
from pathlib import Path
import numpy as np
import pyarrow as pa

HERE = Path(__file__).parent
KEPT = []

def add_half(rows):
    return {"x": np.asarray(rows["x"]) + np.float32(0.5)}

def ragged(rows):
    texts = rows["text"].to_pylist()
    return {"ids": pa.array([[len(t)] * (len(t) % 5 + 1) for t in texts], pa.list_(pa.int64())),
            "x": rows["x"]}

def greedy(rows):
    # Views of rows may be kept for good: what they show must not change.
    KEPT.append((rows, rows["id"].to_pylist()))
    assert all(kept["id"].to_pylist() == ids for kept, ids in KEPT)
    return {"x": rows["x"]}

def with_nulls(rows):
    x = [None if i % 10 == 3 else v for i, v in zip(rows["id"].to_pylist(), rows["x"].to_pylist())]
    return {"x": pa.array(x, pa.float32())}

def raises(rows):
    if rows.num_rows and 250 in rows["id"].to_pylist():
        raise ValueError("the text of row 250")
    return {"x": rows["x"]}

def noisy(rows):
    print("said on stdout")
    print("said on stderr", file=sys.stderr)
    os.write(1, b"said behind Python's back\\n")
    return {"x": rows["x"]}

def looks_around(rows):
    if rows.num_rows:
        heavy = {"torch", "onnxruntime"} & set(sys.modules)
        (HERE / f"seen-{os.getpid()}").write_text(json.dumps(
            {"heavy": sorted(heavy), "parent": os.getppid(),
             "shm": [e for e in os.listdir("/dev/shm")],
             "fds": len(os.listdir("/proc/self/fd"))}))
    return {"x": rows["x"]}

def killed_once(rows):
    if 250 in rows["id"].to_pylist() and not (HERE / "killed").exists():
        (HERE / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"x": rows["x"]}

def kills(rows):
    ids = rows["id"].to_pylist()
    if 250 in ids:
        os.kill(os.getpid(), signal.SIGKILL)
    if 17 in ids:
        ctypes.string_at(0)
    if 361 in ids:
        os._exit(3)
    return {"x": rows["x"]}

def always_dies(rows):
    if rows.num_rows:
        os._exit(9)
    return {"x": rows["x"]}

def holds_the_gil(rows):
    # A busy loop of Python, which lets nobody in for long (see main): it goes on until a loader beside
    # it has begun, which with a GIL in common it could not.
    if rows.num_rows:
        sys.setswitchinterval(1000)
        (HERE / f"began-{os.getpid()}").touch()
        while len(list(HERE.glob("began-*"))) < 2:
            pass
    return {"x": rows["x"]}

def waits(rows):
    if rows.num_rows:
        (HERE / f"pid-{os.getpid()}").touch()
        while not (HERE / "go").exists():
            time.sleep(0.05)
    return {"x": rows["x"]}
"""


def step_job(folder: Path, function: str, **sections: Any) -> Path:
    """Write 400 rows, the steps, and a job that runs one of them before it doubles `x`."""
    write_shards(folder / "in", [400])
    (folder / "steps.py").write_text(STEPS)
    compute = {"devices": "cpu", "readers": 2, **sections.pop("compute", {})}
    return doubling_job(folder, preprocess=[{"python": f"steps:{function}"}], compute=compute, **sections)


def rows_of(folder: Path) -> list[tuple[Any, ...]]:
    """Return id, y and the error's code of every row of an output, in order."""
    sql = f"select id, y, _error.code, _error.message from '{folder}/out/*.parquet' order by id"
    return duckdb.sql(sql).fetchall()
