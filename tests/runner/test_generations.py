"""Generations: --force computes anew beside the old parts, incremental runs add what came since."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import Run, doubling_job, numbers, parts_of, write_shards
from tests.runner.commands import read, start, wait_for_parts


def manifest_of(out: Path) -> dict[str, object]:
    """Read the manifest that `_SUCCESS` names."""
    seal = json.loads((out / "_SUCCESS").read_text())
    found: dict[str, object] = json.loads((out / seal["manifest"]).read_text())
    return found


def ids_of(out: Path) -> list[int]:
    """Return the ids of the parts that the manifest names, in order."""
    parts = manifest_of(out)["parts"]
    assert isinstance(parts, list)
    return sorted(row for part in parts for row in pq.read_table(out / part["name"])["id"].to_pylist())


def test_force_computes_anew_and_gc_removes_the_old(tmp_path: Path, batchinfer: Run) -> None:
    """--force on a finished output makes a second generation; verify names what is superseded, gc removes it."""
    write_shards(tmp_path / "in", [250])
    job = str(doubling_job(tmp_path))
    assert batchinfer("run", job).returncode == 0
    before = parts_of(tmp_path / "out")
    forced = batchinfer("run", job, "--force")
    assert forced.returncode == 0, forced.stderr
    assert "3 parts of earlier generations are still beside the new ones" in forced.stderr
    assert parts_of(tmp_path / "out").items() > before.items()
    assert manifest_of(tmp_path / "out")["generation"] == 2
    told = batchinfer("verify", job)
    assert told.returncode == 65
    assert "is of another generation" in told.stderr
    dry = batchinfer("gc", job)
    assert "generation 1 is superseded" in dry.stdout
    assert len(parts_of(tmp_path / "out")) == 6
    swept = batchinfer("gc", job, "--delete")
    assert swept.returncode == 0, swept.stderr
    assert not parts_of(tmp_path / "out").keys() & before.keys()
    assert batchinfer("verify", "--deep", job).returncode == 0
    assert ids_of(tmp_path / "out") == list(range(250))
    assert "nothing to delete" in batchinfer("gc", job).stdout


def test_force_takes_a_changed_job(tmp_path: Path, batchinfer: Run) -> None:
    """A job that changed is refused, and begins a new generation with --force."""
    write_shards(tmp_path / "in", [150])
    assert batchinfer("run", str(doubling_job(tmp_path))).returncode == 0
    changed = str(doubling_job(tmp_path, batching={"size": 16}))
    refused = batchinfer("run", changed)
    assert refused.returncode == 67
    assert "--force" in refused.stderr
    assert batchinfer("run", changed, "--force").returncode == 0
    assert manifest_of(tmp_path / "out")["generation"] == 2


def test_a_killed_forced_run_is_resumed_by_the_same_command(tmp_path: Path, batchinfer: Run) -> None:
    """The second generation, killed in the middle, is gone on with, not begun a third time."""
    write_shards(tmp_path / "in", [900])
    assert batchinfer("run", str(doubling_job(tmp_path))).returncode == 0
    slow = str(doubling_job(tmp_path, model={"seconds_per_batch": 0.05}))
    process = start("run", slow, "--force")
    wait_for_parts(tmp_path / "out", 11)
    process.kill()
    process.communicate(timeout=20)
    again = batchinfer("run", slow, "--force")
    assert again.returncode == 0, again.stderr
    assert manifest_of(tmp_path / "out")["generation"] == 2
    assert ids_of(tmp_path / "out") == list(range(900))
    assert "reused" in again.stderr


def test_a_superseded_run_stops(tmp_path: Path, batchinfer: Run) -> None:
    """A run whose output is taken over by --force notices at its next heartbeat, and exits with 67."""
    write_shards(tmp_path / "in", [900])
    slow = {"model": {"seconds_per_batch": 0.2}, "compute": {"heartbeat": 0.2}}
    process = start("run", str(doubling_job(tmp_path, **slow)))
    wait_for_parts(tmp_path / "out", 1)
    other = tmp_path / "other"
    other.mkdir()
    paths = {"input": {"path": str(tmp_path / "in")}, "output": {"path": str(tmp_path / "out")}}
    forced = batchinfer("run", str(doubling_job(other, batching={"size": 50}, **paths)), "--force")
    assert forced.returncode == 0, forced.stderr
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 67, stderr
    assert "has taken this one's place" in stderr
    assert ids_of(tmp_path / "out") == list(range(900))


def test_incremental_runs_do_what_came_since(tmp_path: Path, batchinfer: Run) -> None:
    """New files are added as a generation that keeps the parts there are; without any, nothing is done."""
    write_shards(tmp_path / "in", [150])
    job = str(doubling_job(tmp_path, input={"incremental": True}))
    assert batchinfer("run", job).returncode == 0
    before = parts_of(tmp_path / "out")
    assert "nothing left to do" in batchinfer("run", job).stderr
    pq.write_table(numbers(150, 200), tmp_path / "in" / "shard-9.parquet")
    second = batchinfer("run", job)
    assert second.returncode == 0, second.stderr
    pq.write_table(numbers(200, 260), tmp_path / "in" / "shard-a.parquet")
    assert batchinfer("run", job).returncode == 0
    after = parts_of(tmp_path / "out")
    assert after.items() > before.items()
    assert len(after) == len(before) + 2
    assert ids_of(tmp_path / "out") == list(range(260))
    assert sorted(read(tmp_path / "out")["id"].to_pylist()) == list(range(260))
    for level in ("--footer", "--deep"):
        verified = batchinfer("verify", level, job)
        assert verified.returncode == 0, verified.stderr
    assert "nothing left to do" in batchinfer("run", job).stderr
    batchinfer("gc", job, "--delete")
    assert parts_of(tmp_path / "out") == after


def test_files_that_come_during_a_killed_run_are_done_by_its_successor(
    tmp_path: Path, batchinfer: Run
) -> None:
    """The successor finishes what was begun and goes on with what came, in one command."""
    write_shards(tmp_path / "in", [600])
    sections = {"input": {"incremental": True}}
    process = start("run", str(doubling_job(tmp_path, model={"seconds_per_batch": 0.1}, **sections)))
    wait_for_parts(tmp_path / "out", 1)
    process.kill()
    process.communicate(timeout=20)
    pq.write_table(numbers(600, 700), tmp_path / "in" / "shard-9.parquet")
    again = batchinfer("run", str(doubling_job(tmp_path, model={"seconds_per_batch": 0.1}, **sections)))
    assert again.returncode == 0, again.stderr
    assert ids_of(tmp_path / "out") == list(range(700))
    assert manifest_of(tmp_path / "out")["generation"] == 2


@pytest.mark.parametrize("what", ["changed", "drifted"])
def test_incremental_input_that_does_not_fit_is_refused(tmp_path: Path, batchinfer: Run, what: str) -> None:
    """A file that was done and changed, and new files with other columns, are refused by name."""
    write_shards(tmp_path / "in", [150])
    job = str(doubling_job(tmp_path, input={"incremental": True}))
    assert batchinfer("run", job).returncode == 0
    if what == "changed":
        pq.write_table(numbers(0, 140), tmp_path / "in" / "shard-0.parquet")
    else:
        table = numbers(150, 200)
        pq.write_table(table.set_column(0, "id", table["text"]), tmp_path / "in" / "shard-9.parquet")
    refused = batchinfer("run", job)
    assert refused.returncode == (67 if what == "changed" else 65)
    assert ("shard-0.parquet" if what == "changed" else "'id' was int64 and is string") in refused.stderr
    assert batchinfer("verify", job).returncode == 0


def test_a_lost_part_is_computed_again(tmp_path: Path, batchinfer: Run) -> None:
    """A part that somebody deleted after the run is named by verify, and made anew by the same command."""
    write_shards(tmp_path / "in", [250])
    job = str(doubling_job(tmp_path))
    assert batchinfer("run", job).returncode == 0
    before = parts_of(tmp_path / "out")
    victim = sorted(before)[1]
    (tmp_path / "out" / victim).unlink()
    told = batchinfer("verify", job)
    assert told.returncode == 65
    assert f"{victim}: is missing" in told.stderr
    assert batchinfer("run", job).returncode == 0
    assert parts_of(tmp_path / "out") == before
    assert batchinfer("verify", "--deep", job).returncode == 0


def test_status_tells_who_is_at_work(tmp_path: Path, batchinfer: Run) -> None:
    """From the output alone: progress, the process at work, and after its death the units it had."""
    write_shards(tmp_path / "in", [3000])
    slow = str(doubling_job(tmp_path, model={"seconds_per_batch": 0.2}, compute={"heartbeat": 0.3}))
    process = start("run", slow)
    wait_for_parts(tmp_path / "out", 1)
    during = json.loads(batchinfer("status", str(tmp_path / "out"), "--json").stdout)
    assert during["state"] == "unfinished"
    assert len(during["processes"]) == 1
    subprocess.run(["kill", "-9", str(process.pid)], check=True)
    process.communicate(timeout=20)
    there = len(parts_of(tmp_path / "out"))
    restarted = start("run", slow)
    wait_for_parts(tmp_path / "out", there + 1)
    told = json.loads(batchinfer("status", str(tmp_path / "out"), "--json").stdout)
    restarted.terminate()
    _, stderr = restarted.communicate(timeout=20)
    assert restarted.returncode == 75
    assert "were being done when an earlier run died" in stderr
    assert told["units_done"] < told["units_total"]
    assert list((tmp_path / "out").rglob("suspect/*/1.json"))
