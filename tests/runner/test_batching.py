"""However rows are batched, each has its own results, and the run says how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batchinfer
from batchinfer.config import load_job
from batchinfer.data import Packing
from batchinfer.engine.contract import Contract
from batchinfer.errors import BatchinferError
from batchinfer.loader.batches import Binding
from batchinfer.runner.batching import batch_policy, settings_of

MODEL = """
import numpy as np


class Tokens:
    inputs = {"ids": "int64[?, ?]"}
    outputs = {"doubled": "int64[?, ?]", "best": "int64[?, 3]", "width": "int64[?]"}

    def __call__(self, batch):
        ids = batch["ids"]
        best = np.tile(np.arange(3), (len(ids), 1))
        return {"doubled": 2 * ids, "best": best, "width": np.full(len(ids), ids.shape[1])}
"""
ROWS = [[row + 1] * (row * 7 % 11) for row in range(50)]


def run(folder: Path, **batching: Any) -> list[dict[str, Any]]:
    """Run a model that gives values for each token, and return the output's rows."""
    (folder / "token_model.py").write_text(MODEL)
    pq.write_table(pa.table({"ids": pa.array(ROWS, pa.list_(pa.int64()))}), folder / "in.parquet")
    job = folder / "job.json"
    output = folder / f"out-{len(list(folder.iterdir()))}"
    content = {
        "job": "t",
        "input": {"path": "in.parquet"},
        "model": {"backend": "python", "entry": "token_model:Tokens"},
        "batching": batching,
        "output": {
            "path": str(output),
            "columns": {"doubled": "list<int64>", "best": "list<int64>", "width": "int64"},
        },
    }
    job.write_text(json.dumps(content))
    report = batchinfer.run_job(job)
    assert report.rows_ok == len(ROWS)
    found: list[dict[str, Any]] = pq.read_table(output).to_pylist()
    return found


@pytest.mark.parametrize(
    "batching",
    [
        {"by": "rows", "size": 7},
        {"by": "tokens", "size": 40, "buckets": [3, 6, 12]},
        {"size": "0.25KiB"},
    ],
    ids=["rows", "buckets", "bytes"],
)
def test_values_for_each_token_are_a_rows_own(tmp_path: Path, batching: dict[str, Any]) -> None:
    """A row has as many values as tokens, whatever it was padded to; a list of another meaning stays whole,
    also where a batch happens to be as wide."""
    rows = run(tmp_path, **batching)
    assert [row["doubled"] for row in rows] == [[2 * value for value in ids] for ids in ROWS]
    assert [row["best"] for row in rows] == [[0, 1, 2]] * len(ROWS)
    widths = {row["width"] for row in rows}
    if "buckets" in batching:
        assert widths == {3, 6, 12}


def test_what_cannot_be_packed_is_refused(tmp_path: Path) -> None:
    """A model that does not know packed rows is not given them: the job is refused, with its place."""
    with pytest.raises(BatchinferError, match=r"batching.packed: backend python cannot take"):
        run(tmp_path, packed=True)


class Offering:
    """What a loaded backend says of the batches that it wants."""

    def __init__(self, *, few_shapes: bool, packs: bool) -> None:
        self.few_shapes = few_shapes
        self._packs = packs

    def packing(self) -> Packing | None:
        """Offer to take rows packed."""
        return Packing(values=("input_ids",), ones=("attention_mask",)) if self._packs else None


def contract(*, dense: bool) -> Contract:
    """Return the contract of a model of tokens, or of numbers."""
    tokens = pa.list_(pa.int64())
    fields = [pa.field(name, tokens, metadata={"longest": "100"}) for name in ("input_ids", "attention_mask")]
    if dense:
        fields = [pa.field("x", pa.list_(pa.float32(), 4))]
    bindings = tuple(Binding(field.name, field.name, "float32" if dense else "int64") for field in fields)
    return Contract((), pa.schema(fields), bindings, pa.schema([]), pa.schema([]), pa.schema([]))


@pytest.mark.parametrize(
    ("batching", "device", "offer", "told"),
    [
        ({}, "cpu", {}, ""),
        ({}, "cpu", {"few_shapes": True}, "32 lengths from 8 to 100"),
        ({"buckets": "none"}, "cpu", {"few_shapes": True}, ""),
        ({"buckets": 4}, "cpu", {}, "4 lengths from 8 to 100"),
        ({"buckets": [20, 50]}, "cpu", {}, "2 lengths from 20 to 50"),
        ({}, "cpu", {"few_shapes": True, "dense": True}, "one shape"),
        ({}, "cpu", {"packs": True}, ""),
        ({"packed": True}, "cpu", {"packs": True}, "packed"),
        ({}, "cuda:0", {"packs": True}, "packed"),
        ({"packed": False}, "cuda:0", {"packs": True}, ""),
        ({}, "cuda:0", {}, ""),
        ({}, "cuda:0", {"packs": True, "few_shapes": True}, "packed, one shape"),
        ({"size": 9}, "cuda:0", {"packs": True, "few_shapes": True}, "32 lengths from 8 to 100"),
        ({}, "cuda:0", {"packs": True, "dense": True}, ""),
        ({}, "cuda:0", {"packs": True, "code": True}, ""),
    ],
)
def test_what_is_chosen(batching: dict[str, Any], device: str, offer: dict[str, bool], told: str) -> None:
    """Few shapes where the model is made ready for each, packed rows on a GPU where the model takes them and
    nobody looks at its inputs; and what the job says before all that."""
    job = load_job(
        {
            "job": "t",
            "input": {"path": "in.parquet"},
            "model": {"backend": "simulated"},
            "batching": batching,
            "postprocess": [{"python": "batchinfer:run_job"}] if offer.get("code") else [],
            "output": {"path": "out"},
        }
    )
    backend: Any = Offering(few_shapes=offer.get("few_shapes", False), packs=offer.get("packs", False))
    policy = batch_policy(job, device, contract(dense=offer.get("dense", False)), backend)
    found = settings_of(policy)
    words = ["packed"] * (found.get("batching.packed") == "true") + [found.get("batching.buckets", "")]
    assert ", ".join(filter(None, words)) == told
