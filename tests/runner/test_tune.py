"""`tune` finds the size that is best by construction, remembers it, and what has begun keeps its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.conftest import Run, doubling_job, write_shards

ALONE = {"workers_per_device": 1, "threads": 1}
"""Nothing but the size is left to be tuned."""


def tuned(batchinfer: Run, job: Path, *arguments: str) -> dict[str, Any]:
    """Tune a job, and return what was found."""
    done = batchinfer("tune", str(job), "--seconds", "0.25", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_best_size_is_found_and_kept(
    tmp_path: Path, batchinfer: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device whose cache holds 64 rows, and which serves one worker: 64 rows, one worker. A run uses that and
    says so; an output that has begun goes on with its own size when another one was tuned meanwhile; a new
    generation takes the new one; and nothing is remembered where the cache is off, or damaged."""
    monkeypatch.setenv("BATCHINFER_CACHE", str(tmp_path / "kept"))
    write_shards(tmp_path / "in", [300, 150])
    model = {"seconds_per_batch": 0.004, "seconds_per_row": 0.0002, "cache_rows": 64, "exclusive": True}
    job = doubling_job(tmp_path, batching={"size": "auto"}, model=model)
    found = tuned(batchinfer, job, "--seconds", "0.5")
    assert found["chosen"]["batching"] == {"by": "rows", "size": 64}
    assert (found["chosen"]["workers"], found["counted"], found["rows"]) == (1, "rows", 450)
    assert any(reason.startswith("128 rows at once: -") for reason in found["reasons"])
    sizes = [trial["batching"]["size"] for trial in found["trials"] if trial["workers"] == 1]
    assert sizes[:6] == [8, 16, 32, 64, 128, 128]
    begun = batchinfer("run", str(job), "--set", "limits.max_rows=100")
    assert begun.returncode == 75, begun.stderr
    assert 'batching.size="64 (tuned 20' in begun.stderr
    assert 'compute.threads="' in begun.stderr

    cache = tmp_path / "kept" / "tuned.json"
    (key,) = entries = json.loads(cache.read_text())
    entries[key]["batching"]["size"] = 16
    cache.write_text(json.dumps(entries))
    resumed = batchinfer("run", str(job))
    assert resumed.returncode == 0, resumed.stderr
    assert 'batching.size="64 (tuned 20' in resumed.stderr
    anew = batchinfer("run", str(job), "--force")
    assert 'batching.size="16 (tuned 20' in anew.stderr, anew.stderr

    cache.write_text('{"half')
    damaged = batchinfer("run", str(job), "--force", "--set", "compute.readers=1")
    assert damaged.returncode == 0, damaged.stderr
    assert f"{cache} is damaged" in damaged.stderr
    assert "batching.size=8192 " in damaged.stderr
    assert 'compute.readers="1 (as asked)"' in damaged.stderr


def test_memory_ends_the_climb(tmp_path: Path, batchinfer: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that does not fit ends the climb and nothing else, and a row that the model refuses is left out;
    a table says what was measured, and where nothing is to be remembered, that."""
    monkeypatch.setenv("BATCHINFER_CACHE", "off")
    write_shards(tmp_path / "in", [300])
    model = {"seconds_per_batch": 0.01, "memory_rows": 100, "faults": {"25.0": "error"}}
    job = doubling_job(tmp_path, batching={"size": "auto"}, model=model, compute=ALONE)
    done = batchinfer("tune", str(job), "--seconds", "0.25")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert next(line for line in lines if line[-1:] == ["chosen"])[:2] == ["64", "rows"], done.stdout
    assert "64%" in done.stdout
    assert "out of memory" in done.stdout
    assert "128 rows at once do not fit" in done.stdout
    assert "remembered nowhere" in done.stdout


TOKENS = """
import time

import numpy as np


class Tokens:
    inputs = {"ids": "int64[?, ?]"}
    outputs = {"total": "int64[?]"}

    def __call__(self, batch):
        ids = batch["ids"]
        time.sleep(0.002 + 1e-5 * ids.size)
        return {"total": ids.sum(axis=1)}
"""


def test_tokens_are_the_budget(tmp_path: Path, batchinfer: Run) -> None:
    """Rows of varying length are tuned by padded tokens, and compared by real ones."""
    (tmp_path / "tokens.py").write_text(TOKENS)
    ids = [[1] * (1 + row * 7 % 60) for row in range(600)]
    pq.write_table(pa.table({"ids": pa.array(ids, pa.list_(pa.int64()))}), tmp_path / "in.parquet")
    document = {
        "job": "tokens",
        "input": {"path": "in.parquet"},
        "model": {"backend": "python", "entry": "tokens:Tokens"},
        "output": {"path": "out/"},
        "compute": ALONE,
    }
    (tmp_path / "job.yaml").write_text(json.dumps(document))
    found = tuned(batchinfer, tmp_path / "job.yaml")
    assert found["counted"] == "tokens"
    assert found["chosen"]["batching"]["by"] == "tokens"
    # A token takes 10 us, a batch 2 ms more: the fixed part must have become small.
    assert found["chosen"]["batching"]["size"] >= 512
    assert [trial["batching"]["size"] for trial in found["trials"]][:2] == [64, 128]


def test_a_real_model(tmp_path: Path, batchinfer: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX model is measured in the batches that a run would cut, by one and by several
    threads; the run takes what was found."""
    monkeypatch.setenv("BATCHINFER_CACHE", str(tmp_path / "kept"))
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 64])],
        [numpy_helper.from_array(rng.random((64, 64), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    rows = pa.FixedSizeListArray.from_arrays(pa.array(rng.random(64 * 500, np.float32)), 64)
    pq.write_table(pa.table({"x": rows}), tmp_path / "in.parquet")
    document = {
        "job": "real",
        "input": {"path": "in.parquet"},
        "model": {"path": "model.onnx"},
        "output": {"path": "out/"},
        "compute": {"workers_per_device": 1},
    }
    (tmp_path / "job.yaml").write_text(json.dumps(document))
    found = tuned(batchinfer, tmp_path / "job.yaml", "--rows", "200")
    assert 190 <= found["rows"] <= 210
    assert all(trial["rows_per_second"] > 0 and 0 < trial["memory"] < 1 for trial in found["trials"])
    assert (
        max(trial["rows_per_second"] for trial in found["trials"])
        <= 1.04 * found["chosen"]["rows_per_second"]
    )
    done = batchinfer("run", str(tmp_path / "job.yaml"))
    assert done.returncode == 0, done.stderr
    size = found["chosen"]["batching"]["size"]
    assert f'batching.size="{size} (tuned ' in done.stderr
    # What else depends on how many workers there are, which this job says itself.
    assert 'compute.workers_per_device="1 (as asked)"' in done.stderr
