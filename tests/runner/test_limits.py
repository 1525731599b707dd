"""Limits stop a run at the border of a unit, with exit code 75, and the same command goes on."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from tests.conftest import Run, doubling_job, write_shards


def num_committed(folder: Path) -> int:
    """Return the rows that are in the output."""
    return int(ds.dataset(folder / "out", format="parquet").count_rows()) if (folder / "out").exists() else 0


def test_rows(tmp_path: Path, batchinfer: Run) -> None:
    """Of 500 rows in units of 100, `max_rows: 150` does two units a run, and the third run is done."""
    write_shards(tmp_path / "in", [500])
    job = str(doubling_job(tmp_path, limits={"max_rows": 150}))
    for expected, code in ((200, 75), (400, 75), (500, 0)):
        done = batchinfer("run", job)
        assert done.returncode == code, done.stderr
        assert num_committed(tmp_path) == expected
        assert ("stopped at limits.max_rows (150)" in done.stderr) == (code == 75)
    assert batchinfer("verify", "--deep", job).returncode == 0


@pytest.mark.parametrize(
    "limits",
    [
        {"deadline": 2.0},
        {"max_device_hours": 2 / 3600},
        {"max_cost": 2.0, "price_per_device_hour": 3600.0},
    ],
)
def test_time(tmp_path: Path, batchinfer: Run, limits: dict[str, Any]) -> None:
    """Twenty units of 0.4 s are stopped after two seconds, and go on where they were."""
    write_shards(tmp_path / "in", [2000])
    job = str(doubling_job(tmp_path, model={"seconds_per_batch": 0.1}, limits=limits))
    done = batchinfer("run", job)
    assert done.returncode == 75, done.stderr
    assert f"stopped at limits.{next(iter(limits))}" in done.stderr
    first = num_committed(tmp_path)
    assert first % 100 == 0
    assert first < 1000
    again = batchinfer("run", job)
    assert again.returncode == 75
    assert num_committed(tmp_path) > first


def test_a_deadline_that_is_over(tmp_path: Path, batchinfer: Run) -> None:
    """Nothing is begun after the deadline: not even the model is loaded."""
    write_shards(tmp_path / "in", [300])
    over = (dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)).isoformat()
    done = batchinfer("run", str(doubling_job(tmp_path, limits={"deadline": over})))
    assert done.returncode == 75
    assert "stopped at limits.deadline" in done.stderr
    assert "worker_ready" not in done.stderr
    assert num_committed(tmp_path) == 0


def test_bad_limits(tmp_path: Path, batchinfer: Run) -> None:
    """A time without a zone, and a cost without a price, are refused with their place."""
    write_shards(tmp_path / "in", [10])
    done = batchinfer("validate", str(doubling_job(tmp_path, limits={"deadline": "2026-10-01T06:00:00"})))
    assert done.returncode == 78
    assert "a time with its zone" in done.stderr
    done = batchinfer("validate", str(doubling_job(tmp_path, limits={"max_cost": 3})))
    assert done.returncode == 78
    assert "max_cost needs price_per_device_hour" in done.stderr
