"""Jobs in which rows go wrong, in every way that is known, and what their output must be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from tests.conftest import doubling_job

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
        if {how!r} == "exit in code":
            raise SystemExit("a row that this step leaves over")
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
    "connection": ("model", "endpoint"),
    "throttled": ("model", "endpoint"),
    "timeout": ("model", "timeout"),
    "preprocess": ("python", "user"),
    "postprocess": ("python", "user"),
    "class": ("model", "user"),
    "type": ("model", "model"),
    "exit in code": ("python", "user"),
}
"""What goes wrong -> the stage and the code that are recorded."""

DEADLY: dict[str, tuple[str, str]] = {
    "segfault": ("model", "crash"),
    "abort": ("model", "crash"),
    "exit": ("model", "crash"),
    "kill": ("model", "crash"),
    "device": ("model", "device"),
    "hang": ("model", "timeout"),
}
"""The same, for what ends the process."""


def sections(folder: Path, kind: str, bad: list[int]) -> dict[str, Any]:
    """Return what a job needs so that these rows go wrong in this way."""
    found: dict[str, Any]
    values = {row * 0.5 for row in bad}
    if kind in {"error", "nan", "rows", "memory", "connection", "throttled", "timeout", *DEADLY}:
        more = {"check_finite": True} if kind == "nan" else {"retry": {"transient": 0, "timeout": 0}}
        found = {
            "model": {"faults": {str(value): kind for value in values}},
            "errors": {"max": "100%", **more},
        }
        # A worker has to start within that time.
        return found | ({"compute": {"stall_timeout": 4}} if kind == "hang" else {})
    (folder / "code_of_mine.py").write_text(CODE.format(bad=values or {-1.0}, how=kind))
    found = {"errors": {"max": "100%"}}
    if kind in {"preprocess", "exit in code"}:
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


def check(folder: Path, bad: list[int], *, stage: str, code: str) -> None:
    """Compare an output with what it must be, failed rows in a table of their own included."""
    rows = rows_of(folder)
    apart = sorted((folder / "out").glob("_batchinfer/*/errors/*.parquet"))
    if apart:
        assert "_error" not in rows.column_names
        failed = pa.concat_tables([pq.read_table(path) for path in apart])
        rows = pa.concat_tables([rows, failed.select(["id", "_error"])], promote_options="default").sort_by(
            "id"
        )
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
