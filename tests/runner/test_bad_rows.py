"""One bad row costs one row: whatever fails, wherever the row stands, its neighbours are as they would be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Run, doubling_job, write_shards
from tests.runner.bad_rows import PLACES, SHARDS, check, job_of, rows_of


@pytest.mark.parametrize("place", PLACES)
def test_wherever_it_stands(tmp_path: Path, batchinfer: Run, place: str) -> None:
    """First, inside and last of a batch, a unit, a shard and of all; one, neighbours, and a whole batch."""
    write_shards(tmp_path / "in", SHARDS)
    bad = PLACES[place]
    job = job_of(tmp_path / "bad", "error", bad)
    done = batchinfer("run", str(job))
    assert done.returncode == 0, done.stderr
    check(tmp_path / "bad", bad, stage="model", code="model")


def test_memory_is_nobodys_fault(tmp_path: Path, batchinfer: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that does not fit into the device's memory is split: no row is lost, none is wrong. It is so
    only once, and a later run knows it from the start."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_shards(tmp_path / "in", SHARDS)
    job = job_of(tmp_path / "bad", "error", [], model={"memory_rows": 9})
    done = batchinfer("run", str(job))
    assert done.returncode == 0, done.stderr
    check(tmp_path / "bad", [], stage="", code="")
    assert done.stderr.count("memory of cpu: 32 rows do not fit; from now on 8 at once") == 1
    again = batchinfer("run", str(job), "--force")
    assert again.returncode == 0, again.stderr
    assert "do not fit" not in again.stderr
    (tmp_path / "cache" / "batchinfer" / "memory.json").write_text("no json")
    assert "do not fit" in batchinfer("run", str(job), "--force").stderr


def test_memory_where_bits_matter(tmp_path: Path, batchinfer: Run) -> None:
    """With `determinism: bit` a batch is not split: the run ends, and names the size that would fit."""
    write_shards(tmp_path / "in", SHARDS)
    job = job_of(tmp_path / "bad", "error", [], model={"memory_rows": 9}, compute={"determinism": "bit"})
    done = batchinfer("run", str(job))
    assert done.returncode == 78
    assert "8 rows of it fit: batching: {by: rows, size: 8}" in done.stderr


def test_the_first_one_ends_it(tmp_path: Path, batchinfer: Run) -> None:
    """`on_error: fail` names the row itself, not its batch."""
    write_shards(tmp_path / "in", SHARDS)
    job = job_of(tmp_path / "bad", "error", [45], errors={"on_error": "fail"})
    done = batchinfer("run", str(job))
    assert done.returncode == 3
    assert "shard-0.parquet row 45" in done.stderr


def test_a_model_that_fails_on_everything(tmp_path: Path, batchinfer: Run) -> None:
    """The run ends with what the model said of the first row, and the exit code of too many."""
    write_shards(tmp_path / "in", [307])
    whole = {"batching": {"size": 300}, "checkpoint": {"unit_rows": 400}, "errors": {"max": "50%"}}
    job = job_of(tmp_path / "bad", "class", list(range(307)), **whole)
    done = batchinfer("run", str(job))
    assert done.returncode == 3
    assert "307 of 307 rows failed, more than errors.max (50%) allows" in done.stderr
    assert "at shard-0.parquet row 0, model: code_of_mine:Model raised ValueError" in done.stderr


@pytest.mark.parametrize("fault", ["segfault", "exit", "kill", "device"])
def test_a_row_that_kills(tmp_path: Path, batchinfer: Run, fault: str) -> None:
    """A row on which the process dies, whatever it dies of, is found and left out; its neighbours stay."""
    write_shards(tmp_path / "in", SHARDS)
    bad = [45, 280] if fault == "segfault" else [45]
    faults = {str(row * 0.5): fault for row in bad}
    job = job_of(tmp_path / "bad", "error", [], model={"faults": faults})
    done = batchinfer("run", str(job))
    assert done.returncode == 0, done.stderr
    check(tmp_path / "bad", bad, stage="model", code="device" if fault == "device" else "crash")


def test_rows_that_kill_side_by_side(tmp_path: Path, batchinfer: Run) -> None:
    """The first rows of all, before anything has gone well: each is found, named once, and no other is."""
    write_shards(tmp_path / "in", SHARDS)
    bad = [0, 1, 2]
    faults = {str(row * 0.5): "exit" for row in bad}
    job = job_of(tmp_path / "bad", "error", [], model={"faults": faults})
    done = batchinfer("run", str(job))
    assert done.returncode == 0, done.stderr
    check(tmp_path / "bad", bad, stage="model", code="crash")
    said = [line for line in done.stderr.splitlines() if "ends whoever touches it" in line]
    assert len(said) == len(bad)


@pytest.mark.parametrize(("size", "row"), [(1, 1), (2, 4)])
def test_a_row_that_kills_alone_in_its_batch(tmp_path: Path, batchinfer: Run, size: int, row: int) -> None:
    """A row that has no neighbour in its batch is found and left out as well: one at a time, or the last one."""
    write_shards(tmp_path / "in", [5])
    job = doubling_job(
        tmp_path,
        model={"faults": {str(row * 0.5): "exit"}},
        batching={"size": size},
        errors={"max": 1},
    )
    done = batchinfer("run", str(job))
    assert done.returncode == 0, done.stderr
    failed = [
        (found["id"], found["_error"]["code"]) for found in rows_of(tmp_path).to_pylist() if found["_error"]
    ]
    assert failed == [(row, "crash")]


def test_a_row_that_hangs(tmp_path: Path, batchinfer: Run) -> None:
    """A row on which the model never comes back is left out too; loading a model may take its time."""
    write_shards(tmp_path / "in", SHARDS)
    model = {"faults": {"22.5": "hang"}, "load_seconds": 1.5}
    job = job_of(tmp_path / "bad", "error", [], model=model, compute={"stall_timeout": 3})
    done = batchinfer("run", str(job))
    assert done.returncode == 0, done.stderr
    check(tmp_path / "bad", [45], stage="model", code="timeout")


SIZED = """
import os

import numpy as np

class Model:
    inputs = {{"x": "float32[?]"}}
    outputs = {{"y": "float32[?]", "together": "int64[?]"}}

    def __call__(self, tensors):
        x = tensors["x"]
        if np.isin(x, {killers!r}).any():
            os._exit(9)
        if np.isin(x, {bad!r}).any():
            raise ValueError("no")
        return {{"y": x * 2, "together": np.full(len(x), len(x))}}
"""


def test_to_the_last_bit(tmp_path: Path, batchinfer: Run) -> None:
    """With `determinism: bit` every result comes out of a batch of the shape that it has where nothing fails,
    also beside rows that end the process and rows that fail: here each row says how many were with it."""
    write_shards(tmp_path / "in", SHARDS)
    job = job_of(tmp_path / "bad", "class", [], compute={"determinism": "bit"})
    (tmp_path / "bad" / "code_of_mine.py").write_text(SIZED.format(killers=[22.5, 23.5], bad=[20.0, 50.0]))
    done = batchinfer("run", str(job))
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "bad").to_pylist()
    codes = {row["id"]: row["_error"]["code"] for row in rows if row["_error"]}
    assert codes == {40: "user", 45: "crash", 47: "crash", 100: "user"}
    together = {row["id"]: row["together"] for row in rows if row["_error"] is None}
    assert len(together) == 303
    for row, size in together.items():
        number, in_shard = (row, 250) if row < 250 else (row - 250, 57)
        in_unit = min(100, in_shard - number // 100 * 100)
        assert size == min(32, in_unit - number % 100 // 32 * 32), row


AFTER = """
import os

def after(results):
    if 80.0 in results["y"]:
        os._exit(9)
    return {"y": results["y"]}
"""


def test_a_row_that_kills_after_the_model(tmp_path: Path, batchinfer: Run) -> None:
    """A row on which a postprocessing step ends the process is found too, however many batches are computed
    behind it: with one lane, they are in hand until somebody takes them."""
    write_shards(tmp_path / "in", [1200])
    (tmp_path / "bad").mkdir()
    step = {"function": "code_of_mine:after", "output": {"y": "float32"}}
    job = doubling_job(
        tmp_path / "bad",
        input={"path": "../in/"},
        batching={"size": 8},
        checkpoint={"unit_rows": 1200},
        postprocess=[{"python": step}],
        errors={"max": 1},
    )
    (tmp_path / "bad" / "code_of_mine.py").write_text(AFTER)
    done = batchinfer("run", str(job))
    assert done.returncode == 0, done.stderr
    failed = [row for row in rows_of(tmp_path / "bad").to_pylist() if row["_error"]]
    assert [(row["id"], row["_error"]["stage"], row["_error"]["code"]) for row in failed] == [
        (80, "postprocess", "crash")
    ]
    assert "finished nothing" not in done.stderr


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ("{'y': None}", "the model gave one value of 'y' for a batch of"),
        ("{'y': {'x': 1}}", "the model gave one value of 'y' for a batch of"),
        ("{'y': [[1, 2], [3]]}", "model:Odd returned lists of several lengths"),
        ("{'y': [[1, 2]] * len(batch['x'])}", "with the shape (1, 2), which is no y: float32[?]"),
        ("{}", "model:Odd returned no 'y'"),
        ("None", "must return a dict of columns, but returned NoneType"),
    ],
)
def test_results_that_are_none(tmp_path: Path, batchinfer: Run, result: str, reason: str) -> None:
    """A model that gives something else than rows is no internal error: what it gave is told for each row."""
    write_shards(tmp_path / "in", [10])
    (tmp_path / "model.py").write_text(
        "class Odd:\n    inputs = {'x': 'float32[?]'}\n    outputs = {'y': 'float32[?]'}\n"
        f"    def __call__(self, batch):\n        return {result}\n"
    )
    document = json.loads(doubling_job(tmp_path).read_text())
    document["model"] = {"backend": "python", "entry": "model:Odd"}
    (tmp_path / "job.yaml").write_text(json.dumps(document))
    done = batchinfer("run", str(tmp_path / "job.yaml"))
    assert done.returncode == 3, done.stderr
    assert reason in done.stderr
    assert "10 of 10 rows failed" in done.stderr


SLOW = """
import time

def slow(rows):
    time.sleep(0.3)
    if any(row % 8 == 5 for row in rows["id"].to_pylist()):
        raise ValueError("bad")
    return {"z": rows["x"]}
"""


@pytest.mark.parametrize("loaders", ["processes", "threads"])
def test_a_long_search_is_no_hang(tmp_path: Path, batchinfer: Run, loaders: str) -> None:
    """Rows that are tried one by one are progress: a search that takes longer than a batch may is not ended."""
    write_shards(tmp_path / "in", [32])
    (tmp_path / "steps.py").write_text(SLOW)
    step = {"function": "steps:slow", "columns": ["id", "x"], "output": {"z": "float32"}}
    job = doubling_job(
        tmp_path,
        compute={"stall_timeout": 3, "loaders": loaders},
        preprocess=[{"python": step}],
        errors={"max": 4},
    )
    done = batchinfer("run", str(job))
    assert done.returncode == 0, done.stderr
    assert "finished nothing" not in done.stderr
    failed = [row["id"] for row in rows_of(tmp_path).to_pylist() if row["_error"]]
    assert failed == [5, 13, 21, 29]
    receipt = next(
        json.loads(path.read_text()) for path in (tmp_path / "out/_batchinfer/runs").glob("*.json")
    )
    assert receipt["seconds"] > 4, "too fast to show anything"


def test_arrow_results_that_are_not_finite(tmp_path: Path, batchinfer: Run) -> None:
    """A class may give lists as Arrow arrays: `errors.check_finite` finds the row in them too."""
    write_shards(tmp_path / "in", [50])
    (tmp_path / "model.py").write_text(
        "import pyarrow as pa\n"
        "class Lists:\n    inputs = {'x': 'float32[?]'}\n    outputs = {'y': 'float32[?, 2]'}\n"
        "    def __call__(self, batch):\n"
        "        rows = [[float('nan') if x == 3.5 else float(x), 1.0] for x in batch['x']]\n"
        "        return {'y': pa.array(rows, pa.list_(pa.float32()))}\n"
    )
    document = json.loads(doubling_job(tmp_path, errors={"check_finite": True, "max": 1}).read_text())
    document["model"] = {"backend": "python", "entry": "model:Lists"}
    (tmp_path / "job.yaml").write_text(json.dumps(document))
    done = batchinfer("run", str(tmp_path / "job.yaml"))
    assert done.returncode == 0, done.stderr
    failed = [row for row in rows_of(tmp_path).to_pylist() if row["_error"]]
    assert [(row["id"], row["_error"]["code"]) for row in failed] == [(7, "model")]
    assert "'y' holds NaN or infinity" in failed[0]["_error"]["message"]
