"""`errors.max`: how many rows may fail, whichever units come first."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import Run, doubling_job, numbers, parts_of

UNITS = 10
ROWS = 2_000


def job_of(folder: Path, *, bad: dict[int, int], allowed: str | int) -> Path:
    """Write ten files of 2,000 rows, of which these hold so many bad ones, and a job over them."""
    (folder / "in").mkdir()
    for unit in range(UNITS):
        rows = numbers(unit * ROWS, (unit + 1) * ROWS)
        x = rows["x"].to_pylist()
        x[: bad.get(unit, 0)] = [float("nan")] * bad.get(unit, 0)
        table = rows.set_column(rows.schema.get_field_index("x"), "x", pa.array(x, pa.float32()))
        pq.write_table(table, folder / "in" / f"shard-{unit}.parquet")
    return doubling_job(
        folder,
        batching={"size": 256},
        checkpoint={"unit_rows": ROWS},
        errors={"max": allowed, "check_finite": True},
    )


def test_one_bad_file_is_within_the_budget_of_all(tmp_path: Path, batchinfer: Run) -> None:
    """A quarter of the first file is more than 3 % of what was done by then, and less than that of all."""
    done = batchinfer("run", str(job_of(tmp_path, bad={0: 500}, allowed="3%")))
    assert done.returncode == 0, done.stderr
    assert len(parts_of(tmp_path / "out")) == UNITS


def test_above_the_budget_at_the_end(tmp_path: Path, batchinfer: Run) -> None:
    """One row more than the whole input may have: exit code 3, what is committed stays, and is counted."""
    done = batchinfer("run", str(job_of(tmp_path, bad={0: 500, 9: 101}, allowed="3%")))
    assert done.returncode == 3
    assert "rows failed, more than errors.max (3%) allows" in done.stderr
    assert len(parts_of(tmp_path / "out")) >= 2


def test_a_run_stops_where_nothing_succeeds(tmp_path: Path, batchinfer: Run) -> None:
    """Where no row succeeds, the run does not wait until half of the input has failed."""
    done = batchinfer("run", str(job_of(tmp_path, bad=dict.fromkeys(range(10), ROWS), allowed="60%")))
    assert done.returncode == 3
    assert "of 2000 rows failed" in done.stderr
    assert len(parts_of(tmp_path / "out")) < 6


@pytest.mark.parametrize(
    ("folders", "told"), [(("dt=1", "dt=2"), "dt=2"), (("a", "b"), "b"), (("", ""), ".")]
)
def test_each_partition_has_its_own(
    tmp_path: Path, batchinfer: Run, folders: tuple[str, str], told: str
) -> None:
    """`errors.max_per_partition` counts the rows of each hive partition, or of each folder, whatever the whole
    input may have; what is committed counts as well when the run is repeated."""
    for number, (folder, bad) in enumerate(zip(folders, (1, 12), strict=True)):
        rows = numbers(300 * number, 300 * number + 300)
        x = [float("nan")] * bad + rows["x"].to_pylist()[bad:]
        (tmp_path / "in" / folder).mkdir(parents=True, exist_ok=True)
        table = rows.set_column(1, "x", pa.array(x, pa.float32()))
        pq.write_table(table, tmp_path / "in" / folder / f"{number}.parquet")
    errors = {"max": "50%", "check_finite": True, "to": "separate"}
    job = str(doubling_job(tmp_path, errors={**errors, "max_per_partition": "2%"}))
    done = batchinfer("run", job)
    assert done.returncode == 3, done.stderr
    failed, rows_there = (13, 600) if told == "." else (12, 300)
    assert f"partition {told}: {failed} of " in done.stderr
    assert "more than errors.max_per_partition (2%) allows" in done.stderr
    again = batchinfer("run", job, "--set", "errors.max_per_partition=13")
    assert again.returncode == 0, again.stderr
    last = batchinfer("run", job)
    assert last.returncode == 3
    assert f"partition {told}: {failed} of {rows_there} rows failed" in last.stderr
