"""The jobs of the matrix: rows that go wrong in every known way, at every kind of place; and what must come out."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.conftest import doubling_job
from tests.runner import matrix_code

BATCH, UNIT, SHARD = 16, 40, 57
"""Batches of a shard: rows 0, 16 and 32 begin those of its first unit, 40 and 56 those of its second."""

KINDS: dict[str, tuple[str, str]] = {
    "picture is cut short": ("image", "decode"),
    "picture is text": ("image", "decode"),
    "picture is null": ("image", "decode"),
    "n is null": ("columns", "schema"),
    "x is null": ("model", "schema"),
    "x is NaN": ("model", "schema"),
    "before raises": ("python", "user"),
    "before exits in Python": ("python", "user"),
    "before has no memory": ("python", "memory"),
    "before is cut off": ("python", "endpoint"),
    "before is throttled": ("python", "endpoint"),
    "before times out": ("python", "timeout"),
    "before leaves out a row": ("python", "schema"),
    "before gives text": ("python", "schema"),
    "model raises": ("model", "user"),
    "model exits in Python": ("model", "user"),
    "model has no memory": ("model", "memory"),
    "model is cut off": ("model", "endpoint"),
    "model is throttled": ("model", "endpoint"),
    "model times out": ("model", "timeout"),
    "model gives nothing": ("model", "model"),
    "model forgets a result": ("model", "model"),
    "model gives one value": ("model", "model"),
    "model gives lists of several lengths": ("model", "model"),
    "model gives another shape": ("model", "model"),
    "model gives text": ("model", "model"),
    "model leaves out a row": ("model", "model"),
    "model is NaN": ("model", "model"),
    "model is NaN for all": ("model", "model"),
    "model is infinite for all": ("model", "model"),
    "after raises": ("python", "user"),
    "after exits in Python": ("python", "user"),
    "after has no memory": ("python", "memory"),
    "after is cut off": ("python", "endpoint"),
    "after times out": ("python", "timeout"),
    "after leaves out a row": ("python", "model"),
    "after gives text": ("python", "model"),
}
"""What goes wrong -> the stage and the code that are recorded."""

SIMULATED: dict[str, tuple[str, str]] = {
    "error": ("model", "model"),
    "nan": ("model", "model"),
    "rows": ("model", "model"),
    "memory": ("model", "memory"),
    "connection": ("model", "endpoint"),
    "throttled": ("model", "endpoint"),
    "timeout": ("model", "timeout"),
}
"""The same, for faults of the simulated model."""

DEADLY: dict[str, tuple[str, str]] = {
    "before exit": ("preprocess", "crash"),
    "before segfault": ("preprocess", "crash"),
    "before kill": ("preprocess", "crash"),
    "before hang": ("preprocess", "timeout"),
    "model segfault": ("model", "crash"),
    "model abort": ("model", "crash"),
    "model exit": ("model", "crash"),
    "model kill": ("model", "crash"),
    "model device": ("model", "device"),
    "model hang": ("model", "timeout"),
    "after exit": ("postprocess", "crash"),
    "after kill": ("postprocess", "crash"),
    "after hang": ("postprocess", "timeout"),
}
"""The same, for what ends the process, or hangs it."""

SEVERAL = [0, 1, 5, 15, *range(16, 32), 39, 40, 56]
"""First, inside and last of a batch, a whole batch, last and first of a unit, and of a shard."""

ONE_A_BATCH = ([0, 20, 39, 40], [15, 16, 32, 56])
"""The same places, with one bad row in a batch."""

MIXED = [0, 1, 2, 5, 6, 14, 15, 16, 17, 25, 31, 32, 38, 39, 40, 41, 55, 56]
"""The same places, where neighbours fail for several reasons."""

Plan = dict[int, str]
"""What is wrong with rows, by their number in all."""


def plan_of(kinds: list[str]) -> tuple[Plan, int]:
    """Return what is wrong where, so that each kind is at each place, alone and not, and the number of rows."""
    plan: Plan = {}
    start = 0
    for kind in kinds:
        for places in (SEVERAL, *ONE_A_BATCH):
            plan |= {start + place: kind for place in places}
            start += SHARD
    for turn in range(0, len(kinds), 2):
        plan |= {start + place: kinds[(turn + at) % len(kinds)] for at, place in enumerate(MIXED)}
        start += SHARD
    return plan, start


def picture_of(row: int) -> bytes:
    """Return a PNG of four pixels that no other row has."""
    pixels = np.frombuffer(row.to_bytes(4, "big") * 3, np.uint8).reshape(2, 2, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def table_of(num_rows: int, plan: Plan) -> pa.Table:
    """Return the rows: an id, numbers, a text and a picture, wrong where the plan says so."""
    ids = range(num_rows)
    x: list[float | None] = [row * 0.5 for row in ids]
    n: list[int | None] = [row * 3 for row in ids]
    pictures: list[bytes | None] = [picture_of(row) for row in ids]
    for row, kind in plan.items():
        if kind == "x is null":
            x[row] = None
        elif kind == "x is NaN":
            x[row] = float("nan")
        elif kind == "n is null":
            n[row] = None
        elif kind == "picture is null":
            pictures[row] = None
        elif kind == "picture is text":
            pictures[row] = b"no picture"
        elif kind == "picture is cut short":
            pictures[row] = picture_of(row)[:40]
    return pa.table(
        {
            "id": pa.array(ids, pa.int64()),
            "x": pa.array(x, pa.float32()),
            "n": pa.array(n, pa.int64()),
            "text": [f"row {row}" for row in ids],
            "picture": pa.array(pictures, pa.binary()),
        }
    )


def write_input(folder: Path, num_rows: int, plan: Plan) -> None:
    """Write the rows as shards."""
    folder.mkdir(parents=True)
    rows = table_of(num_rows, plan)
    for start in range(0, num_rows, SHARD):
        path = folder / f"shard-{start // SHARD:04}.parquet"
        pq.write_table(rows.slice(start, SHARD), path, compression="none")


def job_of(
    folder: Path, plan: Plan, num_rows: int, *, after: bool = True, **sections: Mapping[str, Any]
) -> Path:
    """Write a job, its code and its input."""
    write_input(folder / "in", num_rows, plan)
    shutil.copy(matrix_code.__file__, folder / "matrix_code.py")
    (folder / "plan.json").write_text(json.dumps({str(row * 0.5): kind for row, kind in plan.items()}))
    before = {"function": "matrix_code:before", "columns": ["x"], "output": {"x": "float32"}}
    picture = {"column": "picture", "size": 2, "resize": "none", "to": "pixels"}
    is_sized = sections.get("compute", {}).get("determinism") == "bit"
    wanted: dict[str, Any] = {
        "preprocess": [{"python": before}, {"columns": {"columns": ["n"]}}, {"image": picture}],
        "errors": {},
        **sections,
    }
    if after:
        types = {"y": "float32", "v": "float32[3]", "told": "string"} | (
            {"together": "int64"} if is_sized else {}
        )
        wanted["postprocess"] = [{"python": {"function": "matrix_code:after", "output": types}}]
    wanted["errors"] = {
        "max": "100%",
        "check_finite": True,
        "retry": {"transient": 0, "timeout": 0},
        **wanted["errors"],
    }
    wanted["batching"] = {"size": BATCH, **wanted.get("batching", {})}
    job = doubling_job(folder, checkpoint={"unit_rows": UNIT}, **wanted)
    document = json.loads(job.read_text())
    document["model"] = {
        "backend": "python",
        "entry": "matrix_code:Model",
        "args": {"sized": is_sized},
        "forbid_nan": True,
    }
    document["output"]["carry"] = ["id", "text"]
    job.write_text(json.dumps(document))
    return job
