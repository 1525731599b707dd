"""`batchinfer errors`: which rows of an output failed, and why."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from tests.conftest import Run, doubling_job, write_shards

FAULTS = {str(row * 0.5): "error" for row in (3, 70, 71, 250)} | {str(row * 0.5): "nan" for row in (8, 120)}


@pytest.fixture(params=["parquet", "jsonl"])
def output(tmp_path: Path, batchinfer: Run, request: pytest.FixtureRequest) -> str:
    """Run a job in which six of 300 rows fail."""
    write_shards(tmp_path / "in", [200, 100])
    job = doubling_job(
        tmp_path,
        model={"faults": FAULTS},
        errors={"max": 10, "check_finite": True},
        output={"format": request.param},
    )
    done = batchinfer("run", str(job))
    assert done.returncode == 0, done.stderr
    assert "batchinfer errors" in done.stderr
    return str(tmp_path / "out")


def test_what_it_shows(batchinfer: Run, output: str) -> None:
    """Counts by code and stage, and the rows with their places, at most as many as asked for."""
    shown = batchinfer("errors", output, "-n", "5").stdout
    assert "6 of 300 rows failed (2.00%)" in shown
    assert "6  model     model" in shown
    assert "shard-0.parquet row 70   model in model: the simulated model refuses a row" in shown
    assert "shard-1.parquet row 50" not in shown
    assert "and 1 more: --export FILE writes all of them" in shown


def test_for_scripts(batchinfer: Run, output: str) -> None:
    """The same as JSON; `--where` chooses."""
    said = json.loads(batchinfer("errors", output, "--json", "--where", "source=shard-1.parquet").stdout)
    assert (said["rows_total"], said["rows_error"]) == (300, 1)
    assert said["samples"][0]["row"] == 50
    assert said["groups"][0]["code"] == "model"


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_export(batchinfer: Run, output: str, tmp_path: Path, suffix: str) -> None:
    """Every failed row, in a file that other tools read."""
    file = tmp_path / f"failed.{suffix}"
    assert batchinfer("errors", output, "--export", str(file)).returncode == 0
    table = pq.read_table(file) if suffix == "parquet" else pyarrow.csv.read_csv(file)
    assert table.column_names == ["part", "stage", "code", "message", "attempts", "source", "row"]
    assert table["row"].to_pylist() == [3, 8, 70, 71, 120, 50]


def test_bad_questions(batchinfer: Run, output: str, tmp_path: Path) -> None:
    """What cannot be answered is said, with exit code 2; and where there is no output, 66."""
    for arguments, said in (
        (["--where", "colour=red"], "failed rows have code, stage, source, message"),
        (["--where", "code"], "has no value"),
        (["--where", "code=modle"], "no row fails with that; did you mean 'model'?"),
        (["--where", "code=model", "--where", "code=user"], "--where code is given twice"),
        (["--export", "rows.xlsx"], "name a .parquet or a .csv file"),
    ):
        asked = batchinfer("errors", output, *arguments)
        assert asked.returncode == 2
        assert said in asked.stderr
    for where, said in (
        (["code=nope"], "codes are decode, schema, model,"),
        (["code=model", "code=user"], "--where code is given twice, and a row has one code"),
    ):
        asked = batchinfer("retry", output, *(word for one in where for word in ("--where", one)))
        assert asked.returncode == 2
        assert said in asked.stderr
    assert batchinfer("errors", str(tmp_path / "nowhere")).returncode == 66


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_an_export_that_cannot_be_written(batchinfer: Run, output: str, tmp_path: Path, suffix: str) -> None:
    """A folder that is not there, or a folder in place of a file: exit 74, with the place and a way out."""
    (tmp_path / f"folder.{suffix}").mkdir()
    for file in (tmp_path / "nowhere" / f"x.{suffix}", tmp_path / f"folder.{suffix}"):
        done = batchinfer("errors", output, "--export", str(file))
        assert done.returncode == 74, done.stderr
        assert "error[disk]: the failed rows cannot be written: " in done.stderr
        assert f"at {file}" in done.stderr
        assert "Traceback" not in done.stderr


def test_nothing_failed(batchinfer: Run, tmp_path: Path) -> None:
    """An output without a failed row says so."""
    write_shards(tmp_path / "in", [20])
    job = doubling_job(tmp_path)
    assert batchinfer("run", str(job)).returncode == 0
    assert "0 of 20 rows failed (0.00%)" in batchinfer("errors", str(tmp_path / "out")).stdout
