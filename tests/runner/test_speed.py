"""A run measures itself: where its device's time went, how it compares with the model alone, its memory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batchinfer as batchinfer_
from batchinfer.data import STAGES
from batchinfer.events import Event, StagesTimed, UnitCommitted, WorkerReady
from tests.conftest import Run, doubling_job, write_shards
from tests.faults.server import Fault, FaultServer

STEP = """
import time

def slow(rows):
    time.sleep(0.03 * rows.num_rows / 32)
    return {"x": rows["x"]}
"""

POOL = """
import pyarrow as pa

def pool(rows):
    is_jemalloc = pa.default_memory_pool().backend_name == "jemalloc"
    return {"x": pa.array([float(is_jemalloc)] * rows.num_rows, pa.float32())}
"""


def figures(batchinfer: Run, job: Path, *more: str) -> dict[str, Any]:
    """Run a job and return what its last record says."""
    done = batchinfer("run", str(job), "--log-format", "json", *more)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    (end,) = [record for record in records if record["event"] == "run_finished"]
    return dict(end)


class Watch:
    """Notes when the worker was ready, when the last unit was committed, and the stages at the end."""

    def __init__(self) -> None:
        self.ready = self.committed = 0.0
        self.stages: dict[str, float] = {}

    def on_event(self, event: Event) -> None:
        """Take the time."""
        if isinstance(event, WorkerReady):
            self.ready = time.monotonic()
        elif isinstance(event, UnitCommitted):
            self.committed = time.monotonic()
        elif isinstance(event, StagesTimed):
            self.stages = dict(event.seconds)

    def close(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize("concurrency", [1, 2])
def test_the_stages_add_up(tmp_path: Path, concurrency: int) -> None:
    """What a device did, and what it waited for, is all of its time up to the last commit."""
    write_shards(tmp_path / "in", [1600, 1600])
    sections = {"seconds_per_batch": 0.02 * concurrency}
    job = doubling_job(tmp_path, model=sections, compute={"concurrency": concurrency})
    watch = Watch()
    batchinfer_.run_job(job, observers=[watch])
    assert set(watch.stages) == set(STAGES)
    assert all(seconds >= 0 for seconds in watch.stages.values())
    assert watch.stages["compute"] >= 100 * 0.02 * concurrency
    whole = (watch.committed - watch.ready) * concurrency
    assert sum(watch.stages.values()) == pytest.approx(whole, rel=0.05)


def slow_step(folder: Path, server: FaultServer) -> dict[str, Any]:
    """Let a step take ten times as long as the model."""
    (folder / "steps.py").write_text(STEP)
    write_shards(folder / "in", [640])
    return {
        "preprocess": [
            {"python": {"function": "steps:slow", "columns": ["x"], "output": {"x": "float32"}}},
        ],
        "compute": {"readers": 1},
    }


def slow_to_read(folder: Path, server: FaultServer) -> dict[str, Any]:
    """Let every request for the input take a while."""
    write_shards(folder / "in", [100] * 20)
    for path in (folder / "in").iterdir():
        server.put(f"bucket/in/{path.name}", path.read_bytes(), {})
    return {"input": {"path": "s3://bucket/in/", "storage_options": far(server)}}


def slow_to_commit(folder: Path, server: FaultServer) -> dict[str, Any]:
    """Let every part take a while to arrive."""
    write_shards(folder / "in", [3000])
    server.latency_s = 0
    server.faults.append(Fault("slow", pattern="*/part-*", seconds=0.4))
    return {"output": {"path": "s3://bucket/out/", "storage_options": far(server)}}


def far(server: FaultServer) -> dict[str, str]:
    """Return what is needed to reach a server."""
    return {"endpoint_url": server.endpoint, "key": "k", "secret": "${env:BATCHINFER_TEST_SECRET}"}


WAITED = {"decode": "for decoding", "read": "for reading", "commit": "for the store"}


@pytest.mark.parametrize(
    ("stage", "plant"), [("decode", slow_step), ("read", slow_to_read), ("commit", slow_to_commit)]
)
def test_a_bottleneck_is_named(
    tmp_path: Path, batchinfer: Run, stage: str, plant: Callable[[Path, FaultServer], dict[str, Any]]
) -> None:
    """Where one stage takes longer than the model, the device waits for it, more than for all else."""
    with FaultServer(latency_s=0.25) as server:
        job = doubling_job(tmp_path, **{"model": {"seconds_per_batch": 0.002}, **plant(tmp_path, server)})
        end = figures(batchinfer, job)
    stages = end["stage_seconds"]
    assert stages.pop(stage) > sum(stages.values()), stages
    assert WAITED[stage] in end["advice"][0]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_efficiency(tmp_path: Path, batchinfer: Run, concurrency: int) -> None:
    """`--measure` compares with the model alone: a step that takes as long as the model, one after the
    other, halves it; and the output is the same."""
    (tmp_path / "steps.py").write_text(STEP.replace("0.03", "0.02"))
    write_shards(tmp_path / "in", [1280])
    step = {"function": "steps:slow", "columns": ["x"], "output": {"x": "float32"}}
    job = doubling_job(
        tmp_path,
        preprocess=[{"python": step}],
        model={"seconds_per_batch": 0.02 * concurrency},
        compute={"readers": 1, "concurrency": concurrency},
    )
    end = figures(batchinfer, job, "--measure")
    # A batch of 32 rows takes 20 ms; a busy machine adds to that.
    assert 800 < end["model_rows_per_second"] < 1.02 * 1600
    assert end["steady_rows_per_second"] < 1.02 * 1600
    assert end["rows_ok"] == 1280
    again = batchinfer("verify", "--deep", str(job))
    assert again.returncode == 0, again.stderr


def test_batches_at_once_change_nothing(tmp_path: Path, batchinfer: Run) -> None:
    """However many batches are computed at once, the output is the same, byte for byte."""
    parts = []
    for concurrency in (1, 4):
        folder = tmp_path / str(concurrency)
        folder.mkdir()
        write_shards(folder / "in", [300, 170])
        job = doubling_job(folder, model={"seconds_per_batch": 0.001}, compute={"concurrency": concurrency})
        assert batchinfer("run", str(job)).returncode == 0
        parts.append([path.read_bytes() for path in sorted((folder / "out").glob("part-*"))])
        assert len(parts[-1]) == 5
    # The version of the input (when it was written) stands in each part.
    tables = [[pq.read_table(pa.BufferReader(data)) for data in group] for group in parts]
    assert tables[0] == tables[1]


def test_memory_does_not_grow_with_the_input(tmp_path: Path, batchinfer: Run) -> None:
    """Ten times the rows take the same memory; and a row group of two gigabytes is read in pieces."""
    peaks = []
    for groups in (1, 10):
        folder = tmp_path / str(groups)
        (folder / "in").mkdir(parents=True)
        rows = 51_200 * groups
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(rows * 1024, np.float32)), 1024)
        table = pa.table({"id": pa.array(np.arange(rows)), "x": vectors})
        pq.write_table(table, folder / "in" / "a.parquet", row_group_size=rows, compression="zstd")
        del vectors, table
        job = doubling_job(
            folder,
            model={"signature": {"inputs": {"x": "float32[?, 1024]"}, "outputs": {"y": "float32[?]"}}},
            batching={"size": "auto"},
            checkpoint={"unit_rows": "auto"},
            compute={"host_memory": "256MiB"},
        )
        end = figures(batchinfer, job)
        assert end["rows_ok"] == rows
        peaks.append(end["peak_bytes"])
    # What an allocator keeps differs from run to run; rows that stayed would be all of the input's growth.
    assert peaks[1] - peaks[0] < 0.1 * 9 * 51_200 * 4096, peaks
    assert peaks[1] < 700 * 2**20, peaks


def test_freed_memory_goes_back(tmp_path: Path, batchinfer: Run) -> None:
    """Workers and their loaders let Arrow allocate by jemalloc, which gives back what is freed, where Arrow
    has it."""
    (tmp_path / "steps.py").write_text(POOL)
    write_shards(tmp_path / "in", [64])
    step = {"function": "steps:pool", "columns": ["x"], "output": {"x": "float32"}}
    job = doubling_job(tmp_path, preprocess=[{"python": step}])
    assert batchinfer("run", str(job)).returncode == 0
    (part,) = (tmp_path / "out").glob("part-*")
    wanted = 2.0 if "jemalloc" in pa.supported_memory_backends() else 0.0
    assert set(pq.read_table(part)["y"].to_pylist()) == {wanted}
