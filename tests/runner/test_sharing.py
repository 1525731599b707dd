"""Several processes on one output: shares that are dealt, blocks that are claimed, copies by accident."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from batchinfer import run_job as batchinfer_run
from batchinfer.errors import UsageError
from batchinfer.events import BatchFinished, Event
from batchinfer.runner.shares import Share, share_of
from tests.conftest import Run, doubling_job, parts_of, write_shards
from tests.runner.commands import read, start, wait_for_parts

SLOW: dict[str, Any] = {"model": {"seconds_per_batch": 0.02}, "compute": {"heartbeat": 0.5}}
LEASE: dict[str, Any] = {
    "model": {"seconds_per_batch": 0.02},
    "compute": {"heartbeat": 0.5, "claims": "lease"},
}


def golden(tmp_path: Path, batchinfer: Run, sizes: list[int]) -> dict[str, bytes]:
    """Return the parts of an undisturbed run."""
    write_shards(tmp_path / "in", sizes)
    assert batchinfer("run", str(doubling_job(tmp_path, output={"path": "calm/"}))).returncode == 0
    return parts_of(tmp_path / "calm")


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("0/4", {}, Share(0, 4)),
        ("3/4", {"JOB_COMPLETION_INDEX": "9"}, Share(3, 4)),
        (None, {}, Share()),
        (None, {"JOB_COMPLETION_INDEX": "2", "JOB_COMPLETIONS": "8"}, Share(2, 8)),
        (None, {"JOB_COMPLETION_INDEX": "0", "JOB_COMPLETIONS": "1"}, Share()),
        (None, {"JOB_COMPLETION_INDEX": "2"}, Share(2)),
    ],
)
def test_which_share(text: str | None, environment: dict[str, str], expected: Share) -> None:
    """A share comes from the command line, or from what an indexed Job says."""
    assert share_of(text, environment) == expected


@pytest.mark.parametrize("text", ["4/4", "1", "a/b", "-1/2", "1/0"])
def test_no_share(text: str) -> None:
    """A share that names none is refused with the way to write it."""
    with pytest.raises(UsageError, match="names no share"):
        share_of(text, {})


def counted(done: subprocess.CompletedProcess[str] | subprocess.Popen[str], stderr: str) -> dict[str, Any]:
    """Return what the last line of a log says of the rows."""
    assert done.returncode == 0, stderr
    lines = [json.loads(line) for line in stderr.splitlines() if line.startswith("{")]
    (end,) = [line for line in lines if line["event"] == "run_finished"]
    progress = [line for line in lines if line["event"] == "progress"]
    assert progress[-1]["rows_settled"] == progress[-1]["rows_total"]
    names = "rows_total", "rows_committed", "rows_reused", "rows_of_others"
    return {name: end[name] for name in names}


def test_a_share_counts_its_own(tmp_path: Path, batchinfer: Run) -> None:
    """What other shares have to do is none of this one's rows, and no row is taken for an earlier run's."""
    write_shards(tmp_path / "in", [450])
    job = str(doubling_job(tmp_path))
    found = []
    for share in ("0/3", "2/3", "1/3"):
        done = batchinfer("run", job, "--shard", share, "--log-format", "json")
        found.append(tuple(counted(done, done.stderr).values()))
    # Units 0 and 3, 2, 1 and 4, of which the last has fifty rows.
    assert found == [(200, 200, 0, 0), (100, 100, 0, 0), (450, 450, 0, 300)]
    again = batchinfer("run", job, "--shard", "0/3")
    assert "nothing left to do   doubling   all 450 rows are committed" in again.stderr


def test_claims_count_what_others_do(tmp_path: Path, batchinfer: Run) -> None:
    """Processes that claim units hear of each other: together they count every row once."""
    write_shards(tmp_path / "in", [1500])
    job = str(doubling_job(tmp_path, **LEASE))
    runs = [start("run", job, "--log-format", "json") for _ in range(2)]
    ends = [counted(run, run.communicate(timeout=120)[1]) for run in runs]
    for end in ends:
        assert (end["rows_total"], end["rows_committed"], end["rows_reused"]) == (1500, 1500, 0)
    assert sum(end["rows_total"] - end["rows_of_others"] for end in ends) == 1500
    assert all(end["rows_of_others"] > 0 for end in ends)


def test_shares_make_up_the_whole(tmp_path: Path, batchinfer: Run) -> None:
    """Each share does its units and ends with 0; the last one seals the output."""
    calm = golden(tmp_path, batchinfer, [450])
    job = str(doubling_job(tmp_path))
    first = batchinfer("run", job, "--shard", "0/2")
    assert first.returncode == 0, first.stderr
    assert "others have units left" in first.stderr
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert batchinfer("run", job, "--shard", "1/2").returncode == 0
    assert parts_of(tmp_path / "out") == calm
    assert batchinfer("verify", "--deep", job).returncode == 0
    assert "nothing left to do" in batchinfer("run", job, "--shard", "0/2").stderr


def test_shares_from_python(tmp_path: Path) -> None:
    """`run_job` takes a share, and says how many units are left to others; `force` begins anew."""
    write_shards(tmp_path / "in", [450])
    job = str(doubling_job(tmp_path))
    first = batchinfer_run(job, shard="1/2")
    assert (first.units_total, first.units_left, first.rows_ok) == (5, 3, 200)
    whole = batchinfer_run(job, shard="0/2")
    assert (whole.units_left, whole.rows_in, whole.rows_ok) == (0, 450, 450)
    assert batchinfer_run(job, force=True).rows_reused == 0


@pytest.mark.parametrize("sections", [SLOW, LEASE], ids=["copies", "leases"])
def test_copies_of_one_command_agree(
    tmp_path: Path, batchinfer: Run, sections: dict[str, dict[str, Any]]
) -> None:
    """Three processes started at once leave what one would have left."""
    calm = golden(tmp_path, batchinfer, [950, 150])
    job = str(doubling_job(tmp_path, **sections))
    processes = [start("run", job) for _ in range(3)]
    for process in processes:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
    assert parts_of(tmp_path / "out") == calm
    assert batchinfer("verify", "--deep", job).returncode == 0


def test_a_dead_owner_is_succeeded(tmp_path: Path, batchinfer: Run) -> None:
    """What a killed process had claimed is claimed again by a live one, which finishes alone."""
    calm = golden(tmp_path, batchinfer, [1900])
    job = str(doubling_job(tmp_path, **{**LEASE, "model": {"seconds_per_batch": 0.1}}))
    one, other = start("run", job), start("run", job)
    wait_for_parts(tmp_path / "out", 2)
    os.kill(one.pid, signal.SIGKILL)
    one.communicate(timeout=20)
    _, stderr = other.communicate(timeout=120)
    assert other.returncode == 0, stderr
    assert parts_of(tmp_path / "out") == calm


def test_a_zombie_changes_nothing(tmp_path: Path, batchinfer: Run) -> None:
    """A process that slept while others did its work wakes up, finds it done, and harms nothing."""
    calm = golden(tmp_path, batchinfer, [900])
    job = str(doubling_job(tmp_path, **LEASE))
    zombie = start("run", job)
    wait_for_parts(tmp_path / "out", 1)
    children = Path(f"/proc/{zombie.pid}/task/{zombie.pid}/children").read_text().split()
    pids = [zombie.pid, *map(int, children)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    done = batchinfer("run", job)
    assert done.returncode == 0, done.stderr
    sealed = (tmp_path / "out" / "_SUCCESS").read_bytes()
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    _, stderr = zombie.communicate(timeout=60)
    assert zombie.returncode == 0, stderr
    assert parts_of(tmp_path / "out") == calm
    assert (tmp_path / "out" / "_SUCCESS").read_bytes() == sealed


def test_different_jobs_at_once_give_one_output(tmp_path: Path, batchinfer: Run) -> None:
    """Two different jobs started on one output: one of them does it, the other is refused with 67."""
    write_shards(tmp_path / "in", [300])
    other = tmp_path / "other"
    other.mkdir()
    paths: dict[str, Any] = {
        "input": {"path": str(tmp_path / "in")},
        "output": {"path": str(tmp_path / "out"), "carry": ["id"]},
    }
    jobs = [
        doubling_job(tmp_path, **SLOW, **paths),
        doubling_job(other, **SLOW, **paths, batching={"size": 50}),
    ]
    processes = [start("run", str(job)) for job in jobs]
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 67], said
    assert read(tmp_path / "out")["id"].to_pylist() == list(range(300))


def test_put_aside_batches_are_not_computed_again(tmp_path: Path) -> None:
    """A unit killed late goes on from its finished batches, with the same output, and clears up after it."""
    write_shards(tmp_path / "in", [3200], row_group=3200)
    sections = {"checkpoint": {"unit_rows": 4000, "every": 0.4}, "model": {"seconds_per_batch": 0.05}}
    job = str(doubling_job(tmp_path, **sections))
    process = start("run", job)
    deadline = time.monotonic() + 60
    while len(spilled(tmp_path / "out")) < 3:
        assert time.monotonic() < deadline, "nothing was put aside"
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=20)
    assert not parts_of(tmp_path / "out")
    counter = Counting()
    assert batchinfer_run(job, observers=[counter]).exit_code == 0
    assert 0 < counter.num_rows < 3200 - 3 * 200
    assert spilled(tmp_path / "out") == []
    table = read(tmp_path / "out")
    assert table["id"].to_pylist() == list(range(3200))
    assert table["y"].to_pylist() == [row * 1.0 for row in range(3200)]


class Counting:
    """Counts the rows that the device has seen."""

    def __init__(self) -> None:
        self.num_rows = 0

    def on_event(self, event: Event) -> None:
        """Count a batch."""
        if isinstance(event, BatchFinished):
            self.num_rows += event.rows

    def close(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize("harm", ["flip", "cut", "empty"])
def test_damaged_put_aside_batches_are_ignored(tmp_path: Path, batchinfer: Run, harm: str) -> None:
    """What was put aside and is damaged is computed again, and the output is right."""
    write_shards(tmp_path / "in", [1600], row_group=1600)
    sections = {"checkpoint": {"unit_rows": 4000, "every": 0.2}, "model": {"seconds_per_batch": 0.05}}
    job = str(doubling_job(tmp_path, **sections))
    process = start("run", job)
    deadline = time.monotonic() + 60
    while len(spilled(tmp_path / "out")) < 2:
        assert time.monotonic() < deadline, "nothing was put aside"
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=20)
    for path in spilled(tmp_path / "out"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes({"flip": bytes(data), "cut": bytes(data[:40]), "empty": b""}[harm])
    assert batchinfer("run", job).returncode == 0
    assert read(tmp_path / "out")["y"].to_pylist() == [row * 1.0 for row in range(1600)]


def spilled(out: Path) -> list[Path]:
    """Return the files that were put aside."""
    return sorted(path for path in out.rglob("spill/*/*.arrow") if not path.name.startswith("."))
