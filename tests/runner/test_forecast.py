"""`plan --sample` runs a few rows, writes nothing, and says what the rest will take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import batchinfer as package
from tests.conftest import Run, doubling_job, write_shards


def test_a_forecast(tmp_path: Path, batchinfer: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output is not touched, limits that will not be kept are named, rows that are done are left out, and
    the report of the run says how it came out."""
    monkeypatch.setenv("BATCHINFER_CACHE", str(tmp_path / "kept"))
    write_shards(tmp_path / "in", [3000, 3000])
    model = {"seconds_per_batch": 0.002, "seconds_per_row": 0.0002}
    limits = {"price_per_device_hour": 3600, "max_cost": 0.1, "deadline": 600, "max_device_hours": 0.00001}
    job = doubling_job(tmp_path, model=model, limits=limits, checkpoint={"unit_rows": 500})
    done = batchinfer("plan", str(job), "--sample", "2000", "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)["forecast"]
    assert not (tmp_path / "out").exists()
    assert made["rows"] == 6000
    assert 1800 <= made["sampled_rows"] <= 2100
    assert made["output_bytes"] > 6000
    assert [line["devices"] for line in made["lines"]] == [1, 2, 4, 8]
    here = made["here"]
    # The device alone computes for 6,000 x 0.2 ms, and 192 x 2 ms more: no run is faster.
    assert 0.5 * 1.6 < here["seconds"]["low"] < here["seconds"]["expected"] < here["seconds"]["high"]
    assert here["seconds"]["expected"] > 1.6
    assert here["cost"]["low"] == pytest.approx(here["seconds"]["low"])
    assert here["device_hours"]["high"] == pytest.approx(here["seconds"]["high"] / 3600)
    assert here["energy_joules"] is None
    assert made["lines"][3]["seconds"]["expected"] < here["seconds"]["expected"]
    assert made["warnings"] == [
        "limits.max_device_hours 1e-05 will end the run before it is complete",
        "limits.max_cost 0.1 will end the run before it is complete",
    ]
    begun = batchinfer("run", str(job), "--set", "limits={max_rows: 1000}")
    assert begun.returncode == 75, begun.stderr
    done = batchinfer("plan", str(job), "--sample", "1000")
    assert done.returncode == 0, done.stderr
    assert "left     5,000 rows" in done.stdout
    for words in ("1 machine ", "8 machines", "cost", "energy not known", "warning  limits.max_cost"):
        assert words in done.stdout
    report = package.run_job(job, limits={})
    assert report.forecast is not None
    assert report.forecast["actual"] == report.seconds
    inside = report.forecast["low"] <= report.seconds <= report.forecast["high"]
    assert report.forecast["inside"] == inside
    nothing = batchinfer("plan", str(job), "--sample", "10")
    assert nothing.returncode == 66
    assert "nothing is left to do" in nothing.stderr
