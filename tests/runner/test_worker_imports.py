"""What a worker loads, and what it leaves alone."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import batchinfer as batchinfer_
from tests.conftest import write_shards

MODEL = """
import sys


class Told:
    inputs = {"v": "float32[?, 2]"}
    outputs = {"y": "float32[?]"}

    def __call__(self, tensors):
        return {"y": 0 * tensors["v"][:, 0] + ("pandas" in sys.modules)}
"""


def run(folder: Path) -> None:
    """Run `told.py` over the shards."""
    (folder / "job.json").write_text(
        json.dumps(
            {
                "job": "t",
                "input": {"path": "in"},
                "preprocess": [{"columns": {"columns": ["id", "x"], "to": "v", "dtype": "float32"}}],
                "model": {"backend": "python", "entry": "told:Told"},
                "checkpoint": {"unit_rows": 100},
                "output": {"path": "out", "carry": ["id"], "meta": ["_source"]},
            }
        )
    )
    batchinfer_.run_job(folder / "job.json")


@pytest.mark.skipif(importlib.util.find_spec("pandas") is None, reason="pandas is not installed here")
def test_pandas_stays_out(tmp_path: Path) -> None:
    """Numbers go through a worker without pandas, which pyarrow would import to look at them: it takes a third
    of a second, and memory in every worker."""
    (tmp_path / "told.py").write_text(MODEL)
    write_shards(tmp_path / "in", [300, 200])
    run(tmp_path)
    assert set(pq.read_table(tmp_path / "out")["y"].to_pylist()) == {0.0}


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="this system has no SCHED_BATCH")
def test_threads_take_turns_on_a_cpu(tmp_path: Path) -> None:
    """Where a model computes on the cores that read and write, no thread that wakes up interrupts it."""
    policy = f"os.sched_getscheduler(0) == {getattr(os, 'SCHED_BATCH', None)}"
    (tmp_path / "told.py").write_text("import os\n" + MODEL.replace('"pandas" in sys.modules', policy))
    write_shards(tmp_path / "in", [50])
    run(tmp_path)
    assert set(pq.read_table(tmp_path / "out")["y"].to_pylist()) == {1.0}
