"""Whole runs through the command: complete, ordered, resumable, readable by others."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from tests.conftest import Run, doubling_job, numbers, parts_of, write_shards
from tests.runner.commands import alive, read, start, wait_for_parts


def test_a_run_writes_every_row_in_order(tmp_path: Path, batchinfer: Run) -> None:
    """Every input row is in the output once, in order, with its own result; the manifest agrees."""
    write_shards(tmp_path / "in", [250, 0, 75, 101])
    done = batchinfer("run", str(doubling_job(tmp_path)))

    assert done.returncode == 0, done.stderr
    table = read(tmp_path / "out")
    assert table["id"].to_pylist() == list(range(426))
    assert table["y"].to_pylist() == [float(row) for row in range(426)]
    assert table["_error"].null_count == 426
    seal = json.loads((tmp_path / "out" / "_SUCCESS").read_text())
    manifest = json.loads((tmp_path / "out" / seal["manifest"]).read_text())
    assert (seal["rows"], manifest["rows"], manifest["rows_error"]) == (426, 426, 0)
    assert {part["name"] for part in manifest["parts"]} == parts_of(tmp_path / "out").keys()
    verified = batchinfer("verify", "--deep", str(tmp_path / "out"))
    assert verified.returncode == 0, verified.stderr
    assert "426 rows" in verified.stdout


def test_others_read_the_output_as_it_is(tmp_path: Path, batchinfer: Run) -> None:
    """DuckDB, Polars, pandas and pyarrow.dataset read the folder, partitions included."""
    import duckdb
    import pandas as pd
    import polars as pl

    write_shards(tmp_path / "in", [120])
    job = doubling_job(tmp_path, output={"carry": ["id", "kind"], "partition_by": ["kind"]})
    assert batchinfer("run", str(job)).returncode == 0
    out = tmp_path / "out"

    expected = sum(range(120))
    assert duckdb.sql(
        f"select sum(y)::bigint, count(distinct kind) from read_parquet('{out}/**/part-*.parquet', hive_partitioning=true)"
    ).fetchall() == [(expected, 2)]
    frame = pl.scan_parquet(f"{out}/**/part-*.parquet", hive_partitioning=True).collect()
    assert int(frame["y"].sum()) == expected
    assert set(frame["kind"]) == {"even", "odd"}
    assert int(pd.read_parquet(out)["y"].sum()) == expected
    table = ds.dataset(out, partitioning="hive").to_table()
    assert sum(table["y"].to_pylist()) == expected
    assert set(table["kind"].to_pylist()) == {"even", "odd"}


@pytest.mark.parametrize("workers", [2, 3])
def test_the_output_does_not_depend_on_the_workers(tmp_path: Path, batchinfer: Run, workers: int) -> None:
    """One, two and three workers write the same bytes under the same names."""
    write_shards(tmp_path / "in", [350, 120])
    alone = doubling_job(tmp_path, output={"path": "alone/"})
    assert batchinfer("run", str(alone)).returncode == 0
    together = doubling_job(
        tmp_path, output={"path": "together/"}, compute={"devices": "cpu", "workers_per_device": workers}
    )
    assert batchinfer("run", str(together)).returncode == 0
    one, many = parts_of(tmp_path / "alone"), parts_of(tmp_path / "together")
    assert one == many
    assert len(one) == 6


def test_a_second_run_has_nothing_left_to_do(tmp_path: Path, batchinfer: Run) -> None:
    """The same command again does nothing, says so, and can say so by its exit code."""
    write_shards(tmp_path / "in", [150])
    job = str(doubling_job(tmp_path))
    assert batchinfer("run", job).returncode == 0
    before = parts_of(tmp_path / "out")
    again = batchinfer("run", job)
    assert again.returncode == 0
    assert "nothing left to do" in again.stdout + again.stderr
    assert batchinfer("run", job, "--exit-empty", "99").returncode == 99
    assert parts_of(tmp_path / "out") == before


def test_a_lost_part_is_computed_anew(tmp_path: Path, batchinfer: Run) -> None:
    """Deleting a part and running again brings back the very same file, and nothing else changes."""
    write_shards(tmp_path / "in", [300])
    job = str(doubling_job(tmp_path))
    assert batchinfer("run", job).returncode == 0
    before = parts_of(tmp_path / "out")
    (tmp_path / "out" / sorted(before)[1]).unlink()
    assert batchinfer("verify", str(tmp_path / "out")).returncode == 65
    done = batchinfer("run", job)
    assert done.returncode == 0, done.stderr
    assert parts_of(tmp_path / "out") == before


def test_a_changed_job_is_refused_with_a_diff(tmp_path: Path, batchinfer: Run) -> None:
    """Another batch size on the same output is another job: refused, with what changed, by exit code 67."""
    write_shards(tmp_path / "in", [150])
    assert batchinfer("run", str(doubling_job(tmp_path))).returncode == 0
    before = parts_of(tmp_path / "out")
    refused = batchinfer("run", str(doubling_job(tmp_path, batching={"size": 16})))
    assert refused.returncode == 67
    assert "this output belongs to another job" in refused.stderr
    assert "batching.size 32 -> 16" in refused.stderr
    assert parts_of(tmp_path / "out") == before


def test_changed_input_is_refused(tmp_path: Path, batchinfer: Run) -> None:
    """A file added to the input after the plan is named, not silently left out."""
    write_shards(tmp_path / "in", [150])
    job = str(doubling_job(tmp_path))
    assert batchinfer("run", job).returncode == 0
    pq.write_table(numbers(150, 200), tmp_path / "in" / "shard-9.parquet")
    refused = batchinfer("run", job)
    assert refused.returncode == 67
    assert "1 of 1 files added" in refused.stderr
    assert "shard-9.parquet" in refused.stderr


def test_a_job_that_never_committed_can_be_changed(tmp_path: Path, batchinfer: Run) -> None:
    """A first attempt that failed before any commit does not stand in the way of the mended job."""
    write_shards(tmp_path / "in", [150])
    broken = doubling_job(tmp_path, errors={"max": 0}, model={"forbid_nan": True})
    table = numbers(0, 150).set_column(1, "x", pa.array([float("nan")] * 150, pa.float32()))
    pq.write_table(table, tmp_path / "in" / "shard-0.parquet")
    bad = doubling_job(tmp_path, output={"path": "/dev/null/x"})
    assert batchinfer("run", str(bad)).returncode != 0
    pq.write_table(numbers(0, 150), tmp_path / "in" / "shard-0.parquet")
    assert broken == bad
    assert batchinfer("run", str(doubling_job(tmp_path))).returncode == 0


def test_a_folder_with_other_files_is_refused(tmp_path: Path, batchinfer: Run) -> None:
    """A folder that holds somebody else's files is no output: exit 67, nothing written."""
    write_shards(tmp_path / "in", [50])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.parquet").write_bytes(b"mine")
    refused = batchinfer("run", str(doubling_job(tmp_path)))
    assert refused.returncode == 67
    assert "precious.parquet" in refused.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious.parquet"]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 75), (signal.SIGTERM, 75), (signal.SIGKILL, -9)]
)
def test_a_stopped_run_resumes_to_the_same_output(
    tmp_path: Path, batchinfer: Run, number: signal.Signals, code: int
) -> None:
    """Stopped or killed in the middle, the same command resumes, and the output is as if undisturbed."""
    write_shards(tmp_path / "in", [900])
    calm = doubling_job(tmp_path, output={"path": "calm/"})
    assert batchinfer("run", str(calm)).returncode == 0
    slow = str(doubling_job(tmp_path, model={"seconds_per_batch": 0.05}))
    process = start("run", slow)
    wait_for_parts(tmp_path / "out", 2)
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == code
    committed = len(parts_of(tmp_path / "out"))
    assert 2 <= committed < 9
    resumed = batchinfer("run", slow)
    assert resumed.returncode == 0, resumed.stderr
    rows = [read(tmp_path / name)["y"].to_pylist() for name in ("calm", "out")]
    assert rows[0] == rows[1]
    assert not list((tmp_path / "out").rglob(".tmp-*")) or number == signal.SIGKILL


def test_no_worker_outlives_a_killed_parent(tmp_path: Path) -> None:
    """SIGKILL of the parent ends its workers within five seconds."""
    write_shards(tmp_path / "in", [900])
    process = start("run", str(doubling_job(tmp_path, model={"seconds_per_batch": 0.05})))
    wait_for_parts(tmp_path / "out", 1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    process.kill()
    process.communicate(timeout=10)
    deadline = time.monotonic() + 5
    while any(alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [child for child in children if alive(child)]


def test_a_killed_worker_is_replaced(tmp_path: Path, batchinfer: Run) -> None:
    """SIGKILL of a worker costs its unfinished units a repetition, nothing else."""
    write_shards(tmp_path / "in", [900])
    process = start("run", str(doubling_job(tmp_path, model={"seconds_per_batch": 0.05})))
    wait_for_parts(tmp_path / "out", 1)
    (child, *_) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    subprocess.run(["kill", "-9", child], check=True)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "died (SIGKILL)" in stderr
    assert read(tmp_path / "out")["id"].to_pylist() == list(range(900))


def test_json_lines_are_published_as_parquet_is(tmp_path: Path, batchinfer: Run) -> None:
    """The other output format goes the same way: complete, resumed, verified at every level."""
    write_shards(tmp_path / "in", [250])
    job = str(doubling_job(tmp_path, output={"format": "jsonl", "meta": ["_row"]}))
    done = batchinfer("run", job)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for data in parts_of(tmp_path / "out").values() for line in data.splitlines()]
    assert [row["id"] for row in rows] == list(range(250))
    for level in ("--footer", "--deep"):
        assert batchinfer("verify", level, job).returncode == 0
    assert "nothing left to do" in batchinfer("run", job).stderr
