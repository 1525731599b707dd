"""One bad row costs one row: whatever fails, wherever the row stands, its neighbours are as they would be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from tests.conftest import Run, doubling_job, write_shards

SHARDS = [250, 57]
BATCH, UNIT = 32, 100

PLACES = {
    "first of all": [0],
    "inside a batch": [45],
    "last of a batch": [63],
    "last of a unit": [99],
    "first of a unit": [100],
    "last of a shard": [249],
    "last of all": [306],
    "neighbours": [4, 5, 6, 7],
    "a whole batch": list(range(32, 64)),
    "everywhere": [0, 1, 31, 32, 63, 64, 98, 99, 100, 199, 200, 249, 250, 280, 306],
}

CODE = """
import numpy as np

BAD = {bad}

def step(rows):
    if set(rows["x"].to_pylist()) & BAD:
        raise ValueError("a row that this step does not like")
    return {{"x": rows["x"]}}

def after(results):
    if set((results["y"] / 2).tolist()) & BAD:
        raise ValueError("a result that this step does not like")
    return {{"y": results["y"]}}

class Model:
    inputs = {{"x": "float32[?]"}}
    outputs = {{"y": "float32[?]"}}

    def __call__(self, tensors):
        x = tensors["x"]
        bad = np.isin(x, list(BAD))
        if bad.any() and {how!r} == "type":
            return {{"y": np.array(["no number"] * len(x))}}
        if bad.any():
            raise ValueError("rows that this model does not like")
        return {{"y": x * 2}}
"""

KINDS: dict[str, tuple[str, str]] = {
    "error": ("model", "model"),
    "nan": ("model", "model"),
    "rows": ("model", "model"),
    "memory": ("model", "memory"),
    "preprocess": ("python", "user"),
    "postprocess": ("python", "user"),
    "class": ("model", "user"),
    "type": ("model", "model"),
}
"""What goes wrong -> the stage and the code that are recorded."""


def sections(folder: Path, kind: str, bad: list[int]) -> dict[str, Any]:
    """Return what a job needs so that these rows go wrong in this way."""
    values = {row * 0.5 for row in bad}
    if kind in {"error", "nan", "rows", "memory"}:
        more = {"check_finite": True} if kind == "nan" else {}
        return {
            "model": {"faults": {str(value): kind for value in values}},
            "errors": {"max": "100%", **more},
        }
    (folder / "code_of_mine.py").write_text(CODE.format(bad=values or {-1.0}, how=kind))
    found: dict[str, Any] = {"errors": {"max": "100%"}}
    if kind == "preprocess":
        step = {"function": "code_of_mine:step", "columns": ["x"], "output": {"x": "float32"}}
        return found | {"preprocess": [{"python": step}]}
    if kind == "postprocess":
        step = {"function": "code_of_mine:after", "output": {"y": "float32"}}
        return found | {"postprocess": [{"python": step}]}
    return found | {"model": {"backend": "python", "entry": "code_of_mine:Model", "seconds_per_batch": None}}


def job_of(folder: Path, kind: str, bad: list[int], **more: Any) -> Path:
    """Write the job."""
    folder.mkdir(exist_ok=True)
    wanted = sections(folder, kind, bad)
    for name, section in more.items():
        wanted[name] = {**wanted.get(name, {}), **section}
    job = doubling_job(folder, **{"batching": {"size": BATCH}, "checkpoint": {"unit_rows": UNIT}, **wanted})
    document = json.loads(job.read_text())
    document["model"] = {key: value for key, value in document["model"].items() if value is not None}
    if document["model"]["backend"] == "python":
        document["model"].pop("seconds_per_batch", None)
    document["input"]["path"] = "../in/"
    job.write_text(json.dumps(document))
    return job


def rows_of(folder: Path) -> pa.Table:
    """Return the output, in source order."""
    return ds.dataset(folder / "out", format="parquet").to_table().sort_by("id")


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_what_fails(tmp_path: Path, batchinfer: Run, kind: str, workers: int) -> None:
    """Exactly the bad rows are errors, each with its place; everything else is, byte for byte, as where
    nothing fails; and the counts say so."""
    write_shards(tmp_path / "in", SHARDS)
    bad = PLACES["everywhere"] if workers == 3 else PLACES["neighbours"]
    job = job_of(tmp_path / "bad", kind, bad, compute={"workers_per_device": workers})
    done = batchinfer("run", str(job), "--log-format", "json")
    assert done.returncode == 0, done.stderr
    check(tmp_path / "bad", bad, stage=KINDS[kind][0], code=KINDS[kind][1])
    (end,) = [
        record
        for record in map(json.loads, filter(lambda line: line.startswith("{"), done.stderr.splitlines()))
        if record["event"] == "run_finished"
    ]
    assert (end["rows_ok"], end["rows_error"]) == (307 - len(bad), len(bad))
    again = batchinfer("verify", "--deep", str(job))
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize("place", PLACES)
def test_wherever_it_stands(tmp_path: Path, batchinfer: Run, place: str) -> None:
    """First, inside and last of a batch, a unit, a shard and of all; one, neighbours, and a whole batch."""
    write_shards(tmp_path / "in", SHARDS)
    bad = PLACES[place]
    job = job_of(tmp_path / "bad", "error", bad)
    done = batchinfer("run", str(job))
    assert done.returncode == 0, done.stderr
    check(tmp_path / "bad", bad, stage="model", code="model")


def check(folder: Path, bad: list[int], *, stage: str, code: str) -> None:
    """Compare an output with what it must be."""
    rows = rows_of(folder)
    assert rows["id"].to_pylist() == list(range(sum(SHARDS)))
    good = np.ones(sum(SHARDS), bool)
    good[bad] = False
    expected = pa.array(np.arange(sum(SHARDS), dtype=np.float32), mask=~good)
    assert rows["y"].combine_chunks().equals(expected)
    errors = rows["_error"].to_pylist()
    assert [row for row, error in enumerate(errors) if error is not None] == bad
    for row in bad:
        shard, number = (0, row) if row < SHARDS[0] else (1, row - SHARDS[0])
        assert errors[row]["source"] == f"shard-{shard}.parquet"
        assert errors[row]["row"] == number
        assert (errors[row]["stage"], errors[row]["code"]) == (stage, code), errors[row]


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
    """That is no matter of rows: the run ends with what the model said, and its exit code."""
    write_shards(tmp_path / "in", [307])
    whole = {"batching": {"size": 300}, "checkpoint": {"unit_rows": 400}}
    job = job_of(tmp_path / "bad", "class", list(range(307)), **whole)
    done = batchinfer("run", str(job))
    assert done.returncode == 65
    assert "code_of_mine:Model raised ValueError" in done.stderr


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


def test_a_row_that_hangs(tmp_path: Path, batchinfer: Run) -> None:
    """A row on which the model never comes back is left out too; loading a model may take its time."""
    write_shards(tmp_path / "in", SHARDS)
    model = {"faults": {"22.5": "hang"}, "load_seconds": 1.5}
    job = job_of(tmp_path / "bad", "error", [], model=model, compute={"stall_timeout": 1})
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
