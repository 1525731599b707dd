"""Real processes under real signals: what they leave is what an undisturbed run leaves."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from batchinfer import crash
from tests.conftest import Run, doubling_job, environment, parts_of, write_shards
from tests.runner.commands import read, start, wait_for_parts

ROOT = Path(__file__).parents[2]
CGROUP = Path("/sys/fs/cgroup/memory")

GREEDY = """
import pathlib
FLAG = pathlib.Path(__file__).with_name("grew")

def grow(rows):
    if rows["id"][0].as_py() >= 200 and not FLAG.exists():
        FLAG.touch()
        hoard = [bytearray(b"x" * (64 << 20)) for _ in range(40)]
    return {"z": rows["x"]}
"""


def program(name: str, *arguments: str) -> str:
    """Run one of the programs of this folder; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.protocol.{name}", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment(),
        timeout=880,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("batch", range(2))
def test_the_protocol_under_kills(batch: int) -> None:
    """Forked processes that die at random crash points on a real file system leave the golden output."""
    said = program("kills", "--schedules", "300", "--seed", str(300 * batch))
    found = re.search(r"300 schedules, ([\d,]+) SIGKILLs, 0 mismatches", said)
    assert found, said
    assert int(found[1].replace(",", "")) > 200


@pytest.mark.parametrize("batch", range(2))
def test_whole_runs_under_kills(batch: int) -> None:
    """Whole runs, parents and workers, killed, stopped and terminated at random, one to three at once,
    leave the golden output; who is asked to stop does so in time; nothing outlives the test."""
    said = program("whole", "--schedules", "40", "--seed", str(40 * batch))
    assert re.search(r"40 schedules, .* 0 mismatches", said), said


@pytest.mark.parametrize("text", ["commit.after", "no.such.point:1", "commit.after:x"])
def test_crash_points_are_for_tests(tmp_path: Path, text: str) -> None:
    """The variable is refused by anybody's run, and by a test's where it names no point."""
    write_shards(tmp_path / "in", [50])
    settings = {**environment(), crash.VARIABLE: text}
    if text != "commit.after":
        settings[crash.PERMISSION] = "1"
    done = subprocess.run(
        [sys.executable, "-m", "batchinfer", "run", str(doubling_job(tmp_path))],
        capture_output=True,
        text=True,
        check=False,
        env=settings,
        timeout=60,
    )
    assert done.returncode == 78
    assert crash.VARIABLE in done.stderr
    assert not (tmp_path / "out").exists()


def test_every_crash_point_is_in_the_code() -> None:
    """The list and the code name the same points."""
    code = "\n".join(path.read_text() for path in (ROOT / "batchinfer").rglob("*.py"))
    assert set(re.findall(r'crash_point\("([\w.]+)"\)', code)) == set(crash.CRASH_POINTS)


def test_two_signals_end_a_run_at_once(tmp_path: Path) -> None:
    """The second SIGTERM ends the run by that signal, and its workers with it."""
    write_shards(tmp_path / "in", [900])
    process = start("run", str(doubling_job(tmp_path, model={"seconds_per_batch": 3}, limits={"grace": 60})))
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").rglob("hb/*.json")):
        assert time.monotonic() < deadline, "the run did not begin"
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)  # two signals that come together are one
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=5)
    assert process.returncode == -signal.SIGTERM
    end = time.monotonic() + 5
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < end:
        time.sleep(0.05)
    assert not [child for child in children if Path(f"/proc/{child}").exists()]


def catches(pid: int, number: signal.Signals) -> bool:
    """Tell whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (number - 1) & 1)


def test_sigterm_while_planning(tmp_path: Path) -> None:
    """SIGTERM while the input is being listed and planned exits with 75 as well."""
    for index in range(3000):
        path = tmp_path / "in" / f"{index:05d}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"id": 1, "x": 1.0}\n')
    job = doubling_job(tmp_path, input={"path": "in/", "format": "jsonl"})
    process = start("run", str(job))
    deadline = time.monotonic() + 60
    while not catches(process.pid, signal.SIGTERM):
        assert time.monotonic() < deadline, "the run did not begin"
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 75, stderr
    assert "stopped by SIGTERM" in stderr


def test_a_hung_worker_is_replaced_with_a_dump(tmp_path: Path, batchinfer: Run) -> None:
    """A worker without progress is ended, where it stood is told, and another does its units."""
    (tmp_path / "steps.py").write_text(
        "import pathlib, time\nFLAG = pathlib.Path(__file__).with_name('hung')\n"
        "def hang(rows):\n"
        "    if rows['id'][0].as_py() >= 200 and not FLAG.exists():\n"
        "        FLAG.touch()\n        time.sleep(600)\n    return {'z': rows['x']}\n"
    )
    write_shards(tmp_path / "in", [450])
    sections = {
        "preprocess": [
            {"python": {"function": "steps:hang", "columns": ["id", "x"], "output": {"z": "float32"}}}
        ]
    }
    job = doubling_job(tmp_path, compute={"stall_timeout": 5}, **sections)
    done = batchinfer("run", str(job))
    assert done.returncode == 0, done.stderr
    assert "finished nothing for" in done.stderr
    assert "line 6 in hang" in done.stderr.partition("it stood at")[2]
    # A slow machine may be taken for hung once more.
    stacks = sorted((tmp_path / "out" / "_batchinfer" / "stacks").iterdir())
    assert f"all its stacks: {stacks[0]}" in done.stderr
    told = "".join(path.read_text() for path in stacks)
    assert "line 6 in hang" in told
    assert told.count("most recent call first") > 3
    assert len(parts_of(tmp_path / "out")) == 5
    assert batchinfer("verify", "--deep", str(job)).returncode == 0


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """Make a group of processes that may use 700 MiB together, because the group above it may."""
    above = CGROUP / f"batchinfer-test-{os.getpid()}"
    group = above / "task"
    try:
        group.mkdir(parents=True)
    except OSError:
        pytest.skip("no memory cgroup can be made here")
    (above / "memory.limit_in_bytes").write_text(str(700 << 20))
    yield group
    with contextlib.suppress(OSError):
        group.rmdir()
        above.rmdir()


def test_the_memory_killer_takes_a_worker(tmp_path: Path, batchinfer: Run, memory_group: Path) -> None:
    """A worker that the kernel kills for its memory is replaced; the output is complete and right."""
    (tmp_path / "steps.py").write_text(GREEDY)
    write_shards(tmp_path / "in", [450])
    sections = {
        "preprocess": [
            {"python": {"function": "steps:grow", "columns": ["id", "x"], "output": {"z": "float32"}}}
        ]
    }
    job = str(doubling_job(tmp_path, **sections))
    command = f"echo $$ > {memory_group}/cgroup.procs && exec {sys.executable} -m batchinfer run {job}"
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, check=False, env=environment(), timeout=120
    )
    assert (tmp_path / "grew").exists()
    if done.returncode == -signal.SIGKILL:  # it took the parent: the same command resumes
        done = batchinfer("run", job)
    assert done.returncode == 0, done.stderr
    assert batchinfer("verify", "--deep", job).returncode == 0


GLUTTON = """
class Doubling:
    inputs = {"x": "float32[?]"}
    outputs = {"y": "float32[?]"}

    def __call__(self, batch):
        devour(batch["x"])
        return {"y": batch["x"] * 2}

def devour(x):
    if 100.0 in x:
        hoard = [bytearray(b"x" * (16 << 20)) for _ in range(160)]

def step(rows):
    devour(rows["x"].to_pylist())
    return {"z": rows["x"]}
"""


@pytest.mark.parametrize("stage", ["preprocess", "model"])
def test_a_row_that_takes_all_memory(tmp_path: Path, batchinfer: Run, memory_group: Path, stage: str) -> None:
    """A row that would fill the container is found as one that kills, before the kernel ends the container."""
    (tmp_path / "glutton.py").write_text(GLUTTON)
    write_shards(tmp_path / "in", [450])
    step = {"function": "glutton:step", "columns": ["id", "x"], "output": {"z": "float32"}}
    sections: dict[str, Any] = {"preprocess": [{"python": step}]} if stage == "preprocess" else {}
    path = doubling_job(tmp_path, errors={"max": 1}, **sections)
    if stage == "model":
        document = json.loads(path.read_text())
        document["model"] = {"backend": "python", "entry": "glutton:Doubling"}
        path.write_text(json.dumps(document))
    command = f"echo $$ > {memory_group}/cgroup.procs && exec {sys.executable} -m batchinfer run {path}"
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, check=False, env=environment(), timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"took \d+ MiB of memory, where all processes together may take 700 MiB, and was ended", done.stderr
    )
    rows = read(tmp_path / "out")
    failed = rows.filter(pc.is_valid(rows["_error"])).to_pylist()
    assert [(row["id"], row["_error"]["stage"], row["_error"]["code"]) for row in failed] == [
        (200, stage, "memory")
    ]
    assert batchinfer("verify", "--deep", str(path)).returncode == 0


def test_a_group_killed_whole_leaves_its_suspects(tmp_path: Path, batchinfer: Run) -> None:
    """Where parent and workers are killed together, the next run records the units that they had."""
    write_shards(tmp_path / "in", [900])
    job = str(doubling_job(tmp_path, model={"seconds_per_batch": 0.1}, compute={"heartbeat": 0.2}))
    process = start("run", job)
    wait_for_parts(tmp_path / "out", 2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in (process.pid, *map(int, children)):
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=20)
    done = batchinfer("run", job)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "out").rglob("suspect/*/1.json"))
