"""Jobs in which rows go wrong, at every kind of place, and what their output must be."""

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

class Model:
    inputs = {{"x": "float32[?]"}}
    outputs = {{"y": "float32[?]"}}

    def __call__(self, tensors):
        if np.isin(tensors["x"], {bad}).any():
            raise ValueError("rows that this model does not like")
        return {{"y": tensors["x"] * 2}}
"""


def sections(folder: Path, kind: str, bad: list[int]) -> dict[str, Any]:
    """Return what a job needs so that the simulated model (error), or a class (class), fails on these rows."""
    found: dict[str, Any] = {"errors": {"max": "100%"}}
    values = [row * 0.5 for row in bad]
    if kind == "error":
        return found | {"model": {"faults": {str(value): kind for value in values}}}
    (folder / "code_of_mine.py").write_text(CODE.format(bad=values))
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
