"""Every kind of failure, at every kind of place, with both destinations, one worker and three: exactly the bad
rows are errors, and everything else is, bit for bit, as where nothing fails.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.conftest import Run, doubling_job, environment
from tests.runner.matrix_check import check, rows_of
from tests.runner.matrix_jobs import BATCH, DEADLY, KINDS, SIMULATED, UNIT, Plan, job_of, plan_of, write_input

FIXED: dict[str, Any] = {"batching": {"buckets": 1}}
BITS: dict[str, Any] = {"compute": {"determinism": "bit"}}

VARIANTS: dict[str, tuple[bool, dict[str, Any], str, int]] = {
    "column 1": (True, {}, "column", 1),
    "separate 3": (True, {}, "separate", 3),
    "column 3 no step after": (False, {}, "column", 3),
    "separate 1 no step after": (False, {}, "separate", 1),
    "separate 3 fixed shapes no step after": (False, FIXED, "separate", 3),
    "separate 1 bit": (True, BITS, "separate", 1),
    "column 3 fixed shapes bit no step after": (False, FIXED | BITS, "column", 3),
}
"""Whether a step follows the model, further sections, the destination and the workers."""

Clean = Callable[[bool, dict[str, Any], int], pa.Table]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Clean:
    """Return a function that gives the output of a job in which nothing fails: one run for each variant."""
    done: dict[str, pa.Table] = {}

    def run(after: bool, sections: dict[str, Any], num_rows: int) -> pa.Table:
        key = json.dumps([after, sections, num_rows], sort_keys=True)
        if key not in done:
            folder = tmp_path_factory.mktemp("clean")
            job = job_of(folder, {}, num_rows, after=after, **sections)
            command = [sys.executable, "-m", "batchinfer", "run", str(job)]
            subprocess.run(command, check=True, capture_output=True, timeout=120, env=environment())
            done[key] = rows_of(folder)
            assert done[key]["_error"].null_count == num_rows
            assert done[key]["y"].to_pylist() == [float(row) for row in range(num_rows)]
        return done[key]

    return run


def run_and_count(batchinfer: Run, job: Path, plan: Plan, num_rows: int) -> None:
    """Run a job, and compare what it says of its rows with the plan."""
    done = batchinfer("run", str(job), "--log-format", "json")
    assert done.returncode == 0, done.stderr
    (end,) = [
        record
        for record in map(json.loads, filter(lambda line: line.startswith("{"), done.stderr.splitlines()))
        if record["event"] == "run_finished"
    ]
    assert (end["rows_ok"], end["rows_error"]) == (num_rows - len(plan), len(plan))
    again = batchinfer("verify", "--deep", str(job))
    assert again.returncode == 0, again.stderr


def kinds_of(*, after: bool, bit: bool) -> list[str]:
    """Return the kinds that a job can have, with and without a step after its model. Infinity may be
    meant where a step follows, so that one row's costs its batch; and what fails before the model is in no
    batch, so that the batches behind it have other rows, and other bits."""
    meant = "model is infinite for all"
    kinds = [kind for kind in KINDS if (kind != meant if after else not kind.startswith("after "))]
    return [kind for kind in kinds if not bit or kind.startswith(("model ", "after "))]


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_fails(tmp_path: Path, batchinfer: Run, clean: Clean, variant: str) -> None:
    """A call that fails costs the rows on which it fails alone, whatever fails beside them."""
    after, sections, to, workers = VARIANTS[variant]
    plan, num_rows = plan_of(kinds_of(after=after, bit=sections.get("compute") is not None))
    more = {
        "compute": {**sections.get("compute", {}), "workers_per_device": workers},
        "errors": {"to": to},
    }
    job = job_of(tmp_path, plan, num_rows, after=after, **sections | more)
    run_and_count(batchinfer, job, plan, num_rows)
    check(tmp_path, clean(after, sections, num_rows), plan, KINDS)


FAULTS = {
    "column 3": ("column", 3, {}),
    "separate 1 fixed shapes": ("separate", 1, FIXED),
    "column 1 fixed shapes bit": ("column", 1, FIXED | BITS),
}


@pytest.mark.parametrize("variant", FAULTS)
def test_what_the_simulated_model_does(tmp_path: Path, batchinfer: Run, variant: str) -> None:
    """The faults of the simulated model cost their rows alone too: what it drops shifts nobody's result."""
    to, workers, sections = FAULTS[variant]
    plan, num_rows = plan_of(list(SIMULATED))
    write_input(tmp_path / "in", num_rows, {})
    outputs = {}
    for name, faults in (("clean", {}), ("bad", {str(row * 0.5): fault for row, fault in plan.items()})):
        (tmp_path / name).mkdir()
        job = doubling_job(
            tmp_path / name,
            input={"path": "../in/"},
            model={"faults": faults},
            batching={"size": BATCH, **sections.get("batching", {})},
            compute={"workers_per_device": workers, **sections.get("compute", {})},
            checkpoint={"unit_rows": UNIT},
            output={"carry": ["id", "text"]},
            errors={
                "to": to if faults else "column",
                "max": "100%",
                "check_finite": True,
                "retry": {"transient": 0, "timeout": 0},
            },
        )
        run_and_count(batchinfer, job, plan if faults else {}, num_rows)
        outputs[name] = tmp_path / name
    check(outputs["bad"], rows_of(outputs["clean"]), plan, SIMULATED)


DEADLY_PLANS: dict[str, tuple[str, int, dict[str, Any], Plan]] = {
    "separate 3": (
        "separate",
        3,
        {},
        {0: "model device", 39: "before kill", 40: "model segfault", 56: "model exit", 57: "after exit"},
    ),
    "column 1": (
        "column",
        1,
        {},
        {0: "before segfault", 16: "after kill", 56: "model abort", 113: "model kill"},
    ),
    "column 3 neighbours": (
        "column",
        3,
        FIXED,
        {5: "model segfault", 6: "model exit", 7: "model raises", 56: "before exit"},
    ),
    "separate 1 loader threads": (
        "separate",
        1,
        {"compute": {"loaders": "threads"}},
        {0: "before exit", 31: "model raises", 56: "before kill"},
    ),
    "column 1 bit": ("column", 1, BITS, {32: "model raises", 39: "model kill", 56: "model device"}),
    "separate 3 hangs": (
        "separate",
        3,
        {"compute": {"stall_timeout": 4}},
        {0: "before hang", 56: "model hang", 113: "after hang"},
    ),
}
"""Each death costs a restart, and each row three of them: so each kind is at some of the places only."""

TWO_SHARDS = 114


@pytest.mark.parametrize("name", DEADLY_PLANS)
def test_what_kills(tmp_path: Path, batchinfer: Run, clean: Clean, name: str) -> None:
    """What ends the process, or hangs it, costs its own row alone too."""
    to, workers, sections, plan = DEADLY_PLANS[name]
    compute = {**sections.get("compute", {}), "workers_per_device": workers}
    job = job_of(tmp_path, plan, TWO_SHARDS, **sections | {"compute": compute, "errors": {"to": to}})
    run_and_count(batchinfer, job, plan, TWO_SHARDS)
    same = {key: value for key, value in sections.items() if value in (FIXED["batching"], BITS["compute"])}
    check(tmp_path, clean(True, same, TWO_SHARDS), plan, KINDS | DEADLY)
