"""Loader processes: the same output as with threads, no GIL in common, no death that costs more than its row."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from batchinfer.data import Chunk, Shard, Unit
from batchinfer.engine import loaders as loaders_module
from batchinfer.engine.loaders import Loaders
from batchinfer.errors import DeviceError
from tests.conftest import CANARY, Run, doubling_job, environment, parts_of, write_shards

STEPS = """
import ctypes, json, os, signal, sys, time
from pathlib import Path
import numpy as np
import pyarrow as pa

HERE = Path(__file__).parent
KEPT = []

def with_nulls(rows):
    x = [None if i % 10 == 3 else v for i, v in zip(rows["id"].to_pylist(), rows["x"].to_pylist())]
    return {"x": pa.array(x, pa.float32())}

def ragged(rows):
    ids = [[len(text)] * (len(text) % 5 + 1) for text in rows["text"].to_pylist()]
    return {"ids": pa.array(ids, pa.list_(pa.int64())), "kind": rows["kind"].dictionary_encode()}

def greedy(rows):
    # Whoever keeps views of rows keeps what they show.
    KEPT.append((rows, rows["text"].to_pylist()))
    assert all(kept["text"].to_pylist() == texts for kept, texts in KEPT)
    return {"x": rows["x"]}

def raises(rows):
    if 250 in rows["id"].to_pylist():
        raise ValueError("the text of row 250, " + os.environ["BATCHINFER_TEST_SECRET"])
    return {"x": rows["x"]}

def names(rows):
    (HERE / f"names-{os.getpid()}").write_text(json.dumps(rows.schema.names))
    return {"x": rows["x"]}

def noisy(rows):
    print("said on stdout")
    print("said on stderr", file=sys.stderr)
    os.write(1, b"said behind Python's back\\n")
    return {"x": rows["x"]}

def looks_around(rows):
    with open(HERE / f"seen-{os.getpid()}", "a") as file:
        print(json.dumps({
            "heavy": sorted({"torch", "onnxruntime"} & set(sys.modules)),
            "maps": [name for name in ("/dev/shm", "memfd:batchinfer") if name in Path("/proc/self/maps").read_text()],
            "fds": len(os.listdir("/proc/self/fd")),
            "fds_of_worker": len(os.listdir(f"/proc/{os.getppid()}/fd")),
        }), file=file)
    return {"x": rows["x"]}

def killed_once(rows):
    if 250 in rows["id"].to_pylist() and not (HERE / "killed").exists():
        (HERE / "killed").touch()
        if os.fork() == 0:
            # Has all that the loader has, its line among it, and stays.
            (HERE / "left-behind").write_text(str(os.getpid()))
            time.sleep(600)
            os._exit(0)
        while not (HERE / "left-behind").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return {"x": rows["x"]}

def kills(rows):
    ids = rows["id"].to_pylist()
    if 17 in ids:
        ctypes.string_at(0)
    if 361 in ids:
        os._exit(3)
    return {"x": rows["x"]}

def holds_the_gil(rows):
    # Python without a pause, until another process is in here too.
    if rows.num_rows:
        began = time.monotonic()
        sys.setswitchinterval(3600)
        (HERE / f"began-{os.getpid()}").touch()
        while len(list(HERE.glob("began-*"))) < 2:
            pass
        (HERE / f"interval-{os.getpid()}-{began}").write_text(json.dumps([os.getpid(), began, time.monotonic()]))
    return {"x": rows["x"]}

def waits(rows):
    if rows.num_rows:
        (HERE / f"pid-{os.getpid()}").write_text(str(os.getppid()))
        while not (HERE / "go").exists():
            time.sleep(0.02)
    return {"x": rows["x"]}
"""


def step_job(folder: Path, *functions: str, **sections: Any) -> Path:
    """Write 400 rows in 4 units, the steps, and a job that runs some of them before it doubles `x`."""
    write_shards(folder / "in", [400])
    (folder / "steps.py").write_text(STEPS)
    steps = [{"python": f"steps:{name}"} for name in functions]
    compute = {"devices": "cpu", "readers": 2, **sections.pop("compute", {})}
    return doubling_job(folder, preprocess=steps, compute=compute, **sections)


def started(job: Path) -> subprocess.Popen[str]:
    """Start a run, and do not wait for it."""
    return subprocess.Popen(
        [sys.executable, "-m", "batchinfer", "run", str(job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    )


def output_of(folder: Path) -> pa.Table:
    """Return the rows of an output."""
    return ds.dataset(folder / "out", format="parquet").to_table().sort_by("id")


def is_whole(folder: Path) -> bool:
    """Tell whether every row is there, doubled."""
    rows = output_of(folder)
    return bool(rows["id"].to_pylist() == list(range(400)) and rows["y"].to_pylist() == list(range(400)))


def until(holds: Callable[[], bool]) -> bool:
    """Wait until something holds, 30 seconds at most."""
    deadline = time.monotonic() + 30
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds()


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def errors_of(said: str) -> str:
    """Return what a run says of its end, from the error on."""
    return said[said.index("error[") :]


@pytest.mark.parametrize("functions", [("with_nulls", "ragged")])
def test_the_same_bytes_for_any_number_of_loaders(
    tmp_path: Path, batchinfer: Run, functions: tuple[str, ...]
) -> None:
    """Rows that fail, ragged and dictionary columns: what threads write, processes write, to the byte."""
    signature = {"inputs": {"x": "float32[?]", "ids": "int64[?, ?]"}, "outputs": {"y": "float32[?]"}}
    job = step_job(
        tmp_path,
        *functions,
        model={"signature": signature},
        output={"carry": ["id", "text"], "meta": ["_source", "_row"]},
        errors={"max": "20%"},
    )
    outputs = []
    for kind, readers in (("threads", 1), ("processes", 1), ("processes", 3)):
        folder = tmp_path / f"out-{kind}-{readers}"
        sets = {"output.path": folder, "compute.loaders": kind, "compute.readers": readers}
        done = batchinfer("run", str(job), *(f"--set={key}={value}" for key, value in sets.items()))
        assert done.returncode == 0, done.stdout + done.stderr
        outputs.append(parts_of(folder))
    assert len(outputs[0]) == 4
    assert outputs[1] == outputs[0]
    assert outputs[2] == outputs[0]


def test_an_error_is_told_as_with_threads(
    tmp_path: Path, batchinfer: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception of the user's is told with the same words and code, and its secret stays one."""
    job = step_job(tmp_path, "raises")
    told = []
    for kind in ("threads", "processes"):
        done = batchinfer("run", str(job), f"--set=compute.loaders={kind}", f"--set=output.path=out-{kind}")
        told.append((done.returncode, errors_of(done.stderr)))
    assert told[0] == told[1]
    assert told[1][0] == 3
    assert "steps:raises raised ValueError" in told[1][1]
    monkeypatch.setenv("BATCHINFER_DEBUG", "1")
    done = batchinfer("run", str(job))
    assert "ValueError: the text of row 250, ***" in done.stderr
    assert CANARY not in done.stderr


def test_the_first_failed_row_ends_the_run(tmp_path: Path, batchinfer: Run) -> None:
    """`on_error: fail` says the same of the same row, wherever the steps run."""
    job = step_job(tmp_path, "with_nulls", errors={"on_error": "fail"})
    told = []
    for kind in ("threads", "processes"):
        done = batchinfer("run", str(job), f"--set=compute.loaders={kind}", "--set=compute.readers=1")
        told.append((done.returncode, errors_of(done.stderr)))
    assert told[0] == told[1]
    assert told[1][0] == 3
    assert "column 'x' is null" in told[1][1]


def test_a_step_sees_what_it_asks_for(tmp_path: Path, batchinfer: Run) -> None:
    """A carried column that no step has asked for is in the output, and need not cross; without `columns`
    a step sees it."""
    for columns in (["x"], None):
        job = step_job(tmp_path, output={"path": f"out-{columns}/", "carry": ["id", "text"]})
        document = json.loads(job.read_text())
        document["preprocess"] = [{"python": {"function": "steps:names", "columns": columns}}]
        job.write_text(json.dumps(document))
        done = batchinfer("run", str(job))
        assert done.returncode == 0, done.stderr
        rows = ds.dataset(tmp_path / f"out-{columns}", format="parquet").to_table().sort_by("id")
        assert rows["text"].to_pylist() == [f"row {row}" for row in range(400)]
        assert rows["y"].to_pylist() == list(range(400))
        seen = [json.loads(path.read_text()) for path in tmp_path.glob("names-*")]
        assert all(("text" in names) == (columns is None) for names in seen)
        for path in tmp_path.glob("names-*"):
            path.unlink()


def test_what_steps_print_is_shown(tmp_path: Path, batchinfer: Run) -> None:
    """A step may print: it reaches the log, and breaks nothing."""
    done = batchinfer("run", str(step_job(tmp_path, "noisy")))
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    for text in ("said on stdout", "said on stderr", "said behind Python's back"):
        assert said.count(text) >= 4
    assert is_whole(tmp_path)


def test_a_step_may_keep_its_rows(tmp_path: Path, batchinfer: Run) -> None:
    """A slab is not written to again while the user's code holds a view of it."""
    job = step_job(tmp_path, "greedy", checkpoint={"unit_rows": 8}, compute={"readers": 1})
    done = batchinfer("run", str(job))
    assert done.returncode == 0, done.stderr
    assert is_whole(tmp_path)


def test_a_loader_is_small_and_stays_so(tmp_path: Path, batchinfer: Run) -> None:
    """Loaders import neither torch nor onnxruntime, use memfd and not /dev/shm, and neither they nor the
    worker open more files the longer they run."""
    done = batchinfer("run", str(step_job(tmp_path, "looks_around", checkpoint={"unit_rows": 4})))
    assert done.returncode == 0, done.stderr
    seen = {
        path.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in tmp_path.glob("seen-*")
    }
    # The worker has asked the function for its columns; the others are loaders.
    loaders = [looks for looks in seen.values() if len(looks) > 1]
    assert sum(len(looks) - 1 for looks in loaders) == 100
    for looks in loaders:
        assert all(look["heavy"] == [] for look in looks)
        assert all(look["maps"] == ["memfd:batchinfer"] for look in looks[1:])
        half = len(looks) // 2
        # A few more or less are in flight at any moment; a leak would be one for each chunk.
        assert max(look["fds"] for look in looks[half:]) <= max(look["fds"] for look in looks[:half]) + 8
        assert looks[-1]["fds_of_worker"] < 150


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode != 0,
    reason="this machine lets nobody mount in a namespace of their own",
)
def test_dev_shm_may_be_small(tmp_path: Path) -> None:
    """Rows cross where /dev/shm has room for one page."""
    job = step_job(tmp_path, "greedy", compute={"readers": 1}, checkpoint={"unit_rows": 400})
    mounted = "mount -t tmpfs -o size=4k tmpfs /dev/shm && exec "
    run = f"{mounted} {sys.executable} -m batchinfer run {job}"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", run], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert is_whole(tmp_path)


def test_a_step_that_holds_the_gil_holds_up_nobody(tmp_path: Path, batchinfer: Run) -> None:
    """Two chunks are inside a busy loop of Python at the same time, each in its own process."""
    done = batchinfer("run", str(step_job(tmp_path, "holds_the_gil")))
    assert done.returncode == 0, done.stderr
    intervals = [json.loads(path.read_text()) for path in tmp_path.glob("interval-*")]
    assert len(intervals) == 4
    assert any(
        one[0] != other[0] and one[1] < other[2] and other[1] < one[2]
        for one in intervals
        for other in intervals
    )
    assert is_whole(tmp_path)


def test_a_loader_that_is_killed_costs_nothing(tmp_path: Path, batchinfer: Run) -> None:
    """SIGKILL in the middle of a chunk: another loader does it again, also while a child of the dead one
    holds its line open."""
    try:
        done = batchinfer("run", str(step_job(tmp_path, "killed_once")), timeout=60)
    finally:
        os.kill(int((tmp_path / "left-behind").read_text()), signal.SIGKILL)
    assert done.returncode == 0, done.stderr
    assert is_whole(tmp_path)


def test_a_row_that_kills_its_loader_fails_alone(tmp_path: Path, batchinfer: Run) -> None:
    """A segmentation fault and an exit of the user's code are traced to their rows, and cost no other."""
    job = step_job(tmp_path, "kills", checkpoint={"unit_rows": 4}, errors={"max": 2})
    done = batchinfer("run", str(job))
    assert done.returncode == 0, done.stdout + done.stderr
    failed = {row["id"]: row["_error"] for row in output_of(tmp_path).to_pylist() if row["_error"]}
    assert {row: (error["code"], error["row"]) for row, error in failed.items()} == {
        17: ("crash", 17),
        361: ("crash", 361),
    }
    assert "SIGSEGV" in failed[17]["message"]
    assert "exit code 3" in failed[361]["message"]
    good = [row for row in output_of(tmp_path).to_pylist() if not row["_error"]]
    assert [row["y"] for row in good] == [row["id"] for row in good]
    assert len(good) == 398


def test_loaders_that_keep_dying_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every row kills, the error says so and names the rows, and no process is left."""
    monkeypatch.setattr(loaders_module, "_MOST_DEATHS", 3)
    monkeypatch.setattr(loaders_module, "_MODULE", "this")  # prints, and ends
    shard = Shard(index=0, uri="s", key="s", size_bytes=1, version="", blocks=())
    chunk = Chunk(
        Unit(index=0, shard=shard, start=0, stop=8),
        pa.RecordBatch.from_pydict({"x": np.arange(8)}),
        np.arange(100, 108),
    )
    loaders = Loaders(1, on_retry=lambda _: None, on_done=lambda: None)
    try:
        with pytest.raises(DeviceError, match="died 4 times, the last time of exit code 0") as caught:
            loaders(chunk)
    finally:
        loaders.close()
    assert caught.value.where == "rows 100..102"


def test_no_loader_outlives_its_worker(tmp_path: Path) -> None:
    """A worker that is killed takes its loaders with it, in the middle of the user's code; the run goes on."""
    with started(step_job(tmp_path, "waits")) as run:
        try:
            assert until(lambda: len(list(tmp_path.glob("pid-*"))) == 2)
            files = list(tmp_path.glob("pid-*"))
            loaders = [int(path.name.removeprefix("pid-")) for path in files]
            os.kill(int(files[0].read_text()), signal.SIGKILL)
            assert until(lambda: not any(is_alive(pid) for pid in loaders))
            (tmp_path / "go").touch()
            said, _ = run.communicate(timeout=60)
            assert run.returncode == 0, said
        finally:
            run.kill()
    assert is_whole(tmp_path)


def test_a_stopped_run_leaves_no_loader(tmp_path: Path) -> None:
    """SIGTERM ends a run although a step does not come back, with the code for that; then it resumes."""
    job = step_job(tmp_path, "waits", limits={"grace": 0.5})
    with started(job) as run:
        try:
            assert until(lambda: len(list(tmp_path.glob("pid-*"))) == 2)
            loaders = [int(path.name.removeprefix("pid-")) for path in tmp_path.glob("pid-*")]
            run.send_signal(signal.SIGTERM)
            said, _ = run.communicate(timeout=60)
            assert run.returncode == 75, said
            assert until(lambda: not any(is_alive(pid) for pid in loaders))
        finally:
            run.kill()
    (tmp_path / "go").touch()
    with started(job) as again:
        said, _ = again.communicate(timeout=60)
        assert again.returncode == 0, said
    assert is_whole(tmp_path)
