"""Every kind of failure, at every kind of place, with both destinations, one worker and three: exactly the bad
rows are errors, and everything else is, byte for byte, as where nothing fails.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Run, write_shards
from tests.runner.bad_rows import DEADLY, KINDS, PLACES, SHARDS, check, job_of

PLANS = {
    "column 1 everywhere": ("column", 1, PLACES["everywhere"]),
    "separate 3 everywhere": ("separate", 3, PLACES["everywhere"]),
    "separate 1 last of a shard": ("separate", 1, PLACES["last of a shard"]),
    "column 3 neighbours": ("column", 3, PLACES["neighbours"]),
}
"""`everywhere` has first, inside and last of batches, units and shards at once."""

DEADLY_PLANS = {
    "column 1 first of all": ("column", 1, [0]),
    "separate 3 inside and last": ("separate", 3, [45, 306]),
}


def run_and_check(folder: Path, batchinfer: Run, kind: str, to: str, workers: int, bad: list[int]) -> None:
    """Run a job in which these rows go wrong, and compare its output and what it says of it."""
    write_shards(folder / "in", SHARDS)
    job = job_of(folder / "bad", kind, bad, compute={"workers_per_device": workers}, errors={"to": to})
    done = batchinfer("run", str(job), "--log-format", "json")
    assert done.returncode == 0, done.stderr
    stage, code = (KINDS | DEADLY)[kind]
    check(folder / "bad", bad, stage=stage, code=code)
    (end,) = [
        record
        for record in map(json.loads, filter(lambda line: line.startswith("{"), done.stderr.splitlines()))
        if record["event"] == "run_finished"
    ]
    assert (end["rows_ok"], end["rows_error"]) == (sum(SHARDS) - len(bad), len(bad))
    again = batchinfer("verify", "--deep", str(job))
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_fails(tmp_path: Path, batchinfer: Run, kind: str, plan: str) -> None:
    """A call that fails costs the rows on which it fails alone."""
    run_and_check(tmp_path, batchinfer, kind, *PLANS[plan])


@pytest.mark.parametrize("plan", DEADLY_PLANS)
@pytest.mark.parametrize("kind", DEADLY)
def test_what_kills(tmp_path: Path, batchinfer: Run, kind: str, plan: str) -> None:
    """So does what ends the process, or hangs it."""
    run_and_check(tmp_path, batchinfer, kind, *DEADLY_PLANS[plan])
