"""A worker that waits for what it will do: it is used once, or it ends."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from batchinfer.config import Machine, load_job, resolve
from batchinfer.events import Event, WorkerReady
from batchinfer.lifeline import is_running
from batchinfer.runner.job import run
from batchinfer.runner.messages import Expect
from batchinfer.runner.process import ProcessWorker
from batchinfer.runner.standby import Standby, prepare
from tests.conftest import doubling_job, write_shards

MACHINE = Machine(cores=2)


class Listener:
    """Keeps the events of a run."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_event(self, event: Event) -> None:
        """Keep one."""
        self.events.append(event)

    def close(self) -> None:
        """Do nothing."""


def pid_of(standby: Standby) -> int:
    assert standby._worker is not None
    return standby._worker.pid


def test_the_worker_on_standby_is_the_first(tmp_path: Path) -> None:
    """A run takes the worker that waits, and its results are all there."""
    write_shards(tmp_path / "in", [250, 50])
    listener = Listener()
    with Standby() as standby:
        pid = pid_of(standby)
        report = run(load_job(doubling_job(tmp_path)), MACHINE, [listener], standby=standby)
    assert report.rows_ok == 300
    assert [event.pid for event in listener.events if isinstance(event, WorkerReady)] == [pid]
    assert sorted(ds.dataset(tmp_path / "out").to_table()["id"].to_pylist()) == list(range(300))


def test_it_has_the_environment_of_any_worker(tmp_path: Path) -> None:
    """User code in a worker that waited finds the variables that it finds in one that was started late."""
    write_shards(tmp_path / "in", [10])
    (tmp_path / "telling.py").write_text(
        "import json, os\n"
        "NAMES = ('OMP_NUM_THREADS', 'RAYON_NUM_THREADS', 'TOKENIZERS_PARALLELISM')\n"
        "class Telling:\n"
        "    def __call__(self, tensors):\n"
        "        said = json.dumps({name: os.environ.get(name) for name in NAMES})\n"
        "        return {'said': [said] * len(tensors['x'])}\n"
    )
    model = {"backend": "python", "entry": "telling:Telling", "seconds_per_batch": None}
    path = doubling_job(tmp_path, compute={"threads": 3}, output={"carry": ["id"]})
    document = json.loads(path.read_text())
    del model["seconds_per_batch"]
    document["model"] = {
        **model,
        "signature": {"inputs": {"x": "float32[?]"}, "outputs": {"said": "string[?]"}},
    }
    said = []
    for name in ("waited", "late"):
        document["output"]["path"] = name
        path.write_text(json.dumps(document))
        standby = Standby() if name == "waited" else None
        run(load_job(path), MACHINE, [], standby=standby)
        said.append(set(ds.dataset(tmp_path / name).to_table()["said"].to_pylist()))
    wanted = {"OMP_NUM_THREADS": "3", "RAYON_NUM_THREADS": "3", "TOKENIZERS_PARALLELISM": "true"}
    assert said == [{json.dumps(wanted)}] * 2


def test_nobody_takes_it(tmp_path: Path) -> None:
    """Where a job is wrong, or nothing is left to do, the worker that waited is gone when the run is."""
    write_shards(tmp_path / "in", [10])
    job = load_job(doubling_job(tmp_path))
    run(job, MACHINE, [])
    with Standby() as standby:
        pid = pid_of(standby)
        assert run(job, MACHINE, [], standby=standby).units_reused == 1
        assert is_running(pid)
    assert not is_running(pid)
    standby.close()


def test_a_store_that_only_this_process_sees(tmp_path: Path) -> None:
    """Where the worker is a thread, the process that waited ends at once."""
    write_shards(tmp_path / "in", [10])
    job = load_job(doubling_job(tmp_path, output={"path": "memory://standby/out", "storage_options": {}}))
    with Standby() as standby:
        assert run(job, MACHINE, [], standby=standby).rows_ok == 10
        assert standby.take() is None


def test_a_dead_one_is_not_handed_out() -> None:
    """A worker that died while it waited counts as none, and is not held against the job."""
    with Standby() as standby:
        worker = standby._worker
        assert worker is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker._process.wait()
        standby.expect(resolve(load_job(JOB), MACHINE), {})
        assert standby.take() is None


def test_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no worker can wait, there is none, and the run says what is wrong when it needs one."""

    def refuse(**_: Any) -> ProcessWorker:
        raise BlockingIOError

    monkeypatch.setattr("batchinfer.runner.standby.ProcessWorker", refuse)
    with Standby() as standby:
        standby.expect(resolve(load_job(JOB), MACHINE), {})
        assert standby.take() is None


def test_code_of_others_waits_for_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is imported early is ours; a component from another package, or none at all, is left alone."""
    asked: list[str] = []
    monkeypatch.setattr("batchinfer.registry.load", lambda _, name: asked.append(name))
    components = (("sources", "parquet"), ("preprocessors", "theirs"), ("sinks", "gone"))
    prepare(Expect(environment={}, components=components, device="cpu"))
    assert asked == ["parquet"]


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_libraries_are_imported_early_on_a_cpu(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """A worker with a GPU first moves next to it, and imports the model's library then."""
    name = "a_library_of_a_model"
    monkeypatch.setitem(sys.modules, name, None)
    component = type("Component", (), {"libraries": (name,)})
    monkeypatch.setattr("batchinfer.registry.load", lambda *_: component)
    imported: list[str] = []
    real = importlib.import_module

    def note(wanted: str) -> Any:
        imported.append(wanted)
        return real(wanted)

    monkeypatch.setattr("importlib.import_module", note)
    prepare(Expect(environment={}, components=(("backends", "onnx"),), device=device))
    assert (name in imported) is (device == "cpu")


def test_a_schema_of_any_width(tmp_path: Path) -> None:
    """What a worker is told at first may take more than one read of the pipe."""
    (tmp_path / "in").mkdir()
    columns = {f"column_with_a_long_name_{at:05d}": np.arange(10.0) for at in range(1500)}
    table = pa.table({**columns, "id": np.arange(10), "x": np.arange(10, dtype=np.float32)})
    pq.write_table(table, tmp_path / "in" / "0.parquet")
    job = load_job(doubling_job(tmp_path))
    assert run(job, MACHINE, []).rows_ok == 10


JOB = {
    "job": "waiting",
    "input": {"path": "in"},
    "model": {"backend": "simulated", "seconds_per_batch": 0},
    "output": {"path": "out"},
}
