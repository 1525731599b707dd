"""The log file of a run, from the command line and from the job."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from batchinfer.telemetry.records import EVENT_NAMES
from tests.conftest import Run, doubling_job, write_shards

DOCUMENT = Path(__file__).parents[2] / "docs" / "observing.md"


def records(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_and_the_next_one_are_in_the_log(tmp_path: Path, batchinfer: Run) -> None:
    """Each line is an object with the moment, the level, the event, the job and the run; units carry their
    device and time; a run that fails says why; what came before stays. The option goes before the job's key."""
    write_shards(tmp_path / "in", [300])
    job = str(doubling_job(tmp_path, observe={"log_file": "logs/run.jsonl"}))
    (tmp_path / "logs").mkdir()
    log, other = tmp_path / "logs" / "run.jsonl", tmp_path / "other.jsonl"
    shown = batchinfer("run", job)
    assert shown.returncode == 0
    assert "event=unit_committed" not in shown.stderr
    found = records(log)
    assert Counter(record["event"] for record in found) == {
        "run_started": 1,
        "settings": 1,
        "worker_ready": 1,
        "unit_committed": 3,
        "worker_exited": 1,
        "progress": 1,
        "run_finished": 1,
    }
    for record in found:
        assert list(record)[:5] == ["timestamp", "level", "event", "job", "run"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record["timestamp"])
        assert dt.datetime.fromisoformat(record["timestamp"]).tzinfo == dt.UTC
        assert record["event"] in EVENT_NAMES
    units = [record for record in found if record["event"] == "unit_committed"]
    assert {record["unit"] for record in units} == {0, 1, 2}
    assert all(record["device"] == "cpu" and 0 <= record["seconds"] < 60 for record in units)
    (tmp_path / "in" / "shard-0.parquet").write_bytes(b"PAR1 no more")
    assert batchinfer("run", job).returncode == 67
    assert records(log)[: len(found)] == found
    last = records(log)[len(found) :]
    assert [(record["event"], record["level"]) for record in last] == [("error", "error")]
    assert last[0]["kind"] == "fingerprint"
    assert last[0]["message"]
    assert batchinfer("run", job, "--log-file", str(other)).returncode == 67
    assert len(records(log)) == len(found) + 1
    assert [record["event"] for record in records(other)] == ["error"]


def test_a_log_that_cannot_be_opened_is_an_error_before_the_run(tmp_path: Path, batchinfer: Run) -> None:
    """Nothing is computed for a log that would be missed."""
    write_shards(tmp_path / "in", [20])
    job = str(doubling_job(tmp_path))
    done = batchinfer("run", job, "--log-file", str(tmp_path / "nowhere" / "run.jsonl"))
    assert done.returncode == 78
    assert done.stderr.splitlines() == [
        "error[job]: the log file cannot be opened: No such file or directory",
        f"  at {tmp_path}/nowhere/run.jsonl",
        "  → name a file in a folder that is there: --log-file, or observe.log_file",
    ]
    assert not (tmp_path / "out").exists()


def test_the_document_lists_the_events() -> None:
    """docs/observing.md has a row for every event of a log, and for no other."""
    table = DOCUMENT.read_text().split("| event |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, flags=re.MULTILINE)) == set(EVENT_NAMES)
