"""`errors.max`: how many rows may fail, whichever units come first."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batchinfer as library
from batchinfer.errors import BudgetExceeded, Interrupted
from batchinfer.runner.earlier import Earlier
from tests.conftest import Run, doubling_job, numbers, parts_of, write_shards
from tests.runner.bad_rows import job_of as failing_job_of

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
    assert "none of the first 1000 rows succeeded" in done.stderr
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


SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "column": {},
    "separate": {"errors": {"to": "separate"}},
    "folders": {"output": {"carry": ["id", "kind"], "partition_by": ["kind"]}},
    "jsonl": {"output": {"format": "jsonl"}},
}


def one_in_each(folder: Path, *, bad: dict[int, str], allowed: int, **more: dict[str, Any]) -> Path:
    """Write a job of ten units of 100 rows, of which these fail, with a model that takes its time."""
    write_shards(folder / "in", [1000])
    faults = {str(row * 0.5): fault for row, fault in bad.items()}
    errors = {"max": allowed, **more.pop("errors", {})}
    model = {"faults": faults, "seconds_per_batch": 0.03}
    return doubling_job(folder, model=model, errors=errors, compute={"workers_per_device": 1}, **more)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_failed_before_counts(tmp_path: Path, batchinfer: Run, shape: str) -> None:
    """A repeated run ends at its first failed rows where they and those of earlier runs are too many, and says
    how many there are in all: it does not compute everything little by little."""
    bad = {unit * 100 + 50: "error" for unit in range(UNITS)}
    job = str(one_in_each(tmp_path, bad=bad, allowed=3, **SHAPES[shape]))
    assert batchinfer("run", job, "--set", "limits.max_rows=300").returncode == 75
    again = batchinfer("run", job)
    assert again.returncode == 3, again.stderr
    found = re.search(r"error.*: (\d+) of 1000 rows failed \((\d+) of them in earlier runs\)", again.stderr)
    assert found, again.stderr
    assert int(found[1]) > 3
    assert found[2] == "3"
    assert "shard-0.parquet row 350, model" in again.stderr
    status = json.loads(batchinfer("status", job, "--json").stdout)
    assert status["units_done"] < UNITS


def test_an_object_store_tells_it_by_its_stamps(tmp_path: Path) -> None:
    """The same on a store whose objects carry what they hold, tables of failed rows included, and for the
    budget of a partition."""
    bad = {unit * 100 + 50: "error" for unit in range(UNITS)}
    more: dict[str, dict[str, Any]] = {
        "errors": {"to": "separate", "max_per_partition": 3},
        "output": {"path": "memory://budget/out", "storage_options": {}},
    }
    job = one_in_each(tmp_path, bad=bad, allowed=1000, **more)
    with pytest.raises(Interrupted):
        library.run_job(job, limits__max_rows=300)
    with pytest.raises(BudgetExceeded, match=r"partition \.: [4-9] of 1000 rows failed"):
        library.run_job(job)


def test_nobody_is_asked_where_nothing_fails(tmp_path: Path) -> None:
    """A run that resumes, and in which no row fails, looks at no finished part before its end."""
    job = one_in_each(
        tmp_path,
        bad={50: "error"},
        allowed=3,
        output={"path": "memory://budget-2/out", "storage_options": {}},
    )
    with pytest.raises(Interrupted):
        library.run_job(job, limits__max_rows=300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Earlier, "ask", lambda _: pytest.fail("somebody asked"))
        assert library.run_job(job).rows_error == 1


def test_bad_rows_at_the_beginning(tmp_path: Path, batchinfer: Run) -> None:
    """Rows that fail one after the other at the beginning are counted like any others."""
    write_shards(tmp_path / "in", [2000])
    job = failing_job_of(tmp_path / "bad", "error", list(range(300)), errors={"max": "50%"})
    done = batchinfer("run", str(job))
    assert done.returncode == 0, done.stderr
    assert "300 (15.0 %) of 1,000 allowed" in done.stderr


def test_bad_rows_where_a_run_resumes(tmp_path: Path, batchinfer: Run) -> None:
    """Where rows went well in an earlier run, what this one begins with may all fail, within the budget."""
    write_shards(tmp_path / "in", [3000])
    bad = list(range(500, 1700))
    whole = {"checkpoint": {"unit_rows": 500}, "errors": {"max": "50%"}}
    job = str(failing_job_of(tmp_path / "bad", "class", bad, **whole))
    assert batchinfer("run", job, "--set", "limits.max_rows=500").returncode == 75
    done = batchinfer("run", job)
    assert done.returncode == 0, done.stderr
    assert "1,800 ok + 1,200 error" in done.stderr


@pytest.mark.parametrize(
    ("kind", "loaders"),
    [
        ("class", "threads"),
        ("preprocess", "processes"),
        ("preprocess", "threads"),
        ("postprocess", "threads"),
    ],
)
def test_what_fails_on_everything_is_not_asked_for_ever(
    tmp_path: Path, batchinfer: Run, kind: str, loaders: str
) -> None:
    """None of the first 1,000 rows of a long unit goes well: the run ends with 3, the row and what was said;
    where the budget allows all of them, it goes on."""
    write_shards(tmp_path / "in", [1100])
    whole = {
        "checkpoint": {"unit_rows": 5000},
        "errors": {"max": "99%"},
        "compute": {"loaders": loaders, "readers": 1},
    }
    job = str(failing_job_of(tmp_path / "bad", kind, list(range(1100)), **whole))
    done = batchinfer("run", job)
    assert done.returncode == 3, done.stderr
    assert "error[errors]: none of the first 1000 rows succeeded, and errors.max (99%) allows" in done.stderr
    assert "ValueError" in done.stderr
    assert re.search(r"\n  at shard-0\.parquet row \d+", done.stderr), done.stderr
    assert "or raise errors.max" in done.stderr
    assert not parts_of(tmp_path / "bad" / "out")
    more = batchinfer("run", job, "--set", "errors.max=1100")
    assert more.returncode == 0, more.stderr
