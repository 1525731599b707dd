"""The receipt of every run: what it says, that it is valid, and what `verify` makes of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import batchinfer as batchinfer_
from batchinfer.config import load_job
from batchinfer.data import STAGES, ErrorCode
from batchinfer.events import PlanFollowed, StagesTimed
from batchinfer.hardware import Gpu, GpuSample
from batchinfer.telemetry.devices import Devices
from batchinfer.telemetry.receipt import receipt_of
from batchinfer.telemetry.recording import Recording
from batchinfer.telemetry.report import report
from batchinfer.telemetry.summary import summary
from batchinfer.telemetry.tally import Tally
from batchinfer.xids import Xids
from tests.conftest import CANARY, Run, doubling_job, environment, write_shards
from tests.runner.commands import start, wait_for_parts
from tests.telemetry.conftest import Clock
from tests.telemetry.conftest import Run as Invented

SCHEMA = json.loads((Path(__file__).parents[2] / "schemas" / "run-receipt.schema.json").read_text())


def receipts(out: Path) -> list[dict[str, Any]]:
    """Return the receipts beside an output, in the order of their runs; each is valid and holds no secret."""
    found = []
    for path in (out / "_batchinfer" / "runs").glob("*.json"):
        text = path.read_text()
        assert CANARY not in text
        receipt = json.loads(text)
        problems = [f"{error.json_path}: {error.message}" for error in VALID.iter_errors(receipt)]
        assert problems == []
        assert receipt["run"] == path.stem
        assert path.with_suffix(".html").is_file() == (receipt["finished_at"] is not None)
        assert (receipt["finished_at"] is None) == (receipt["exit_code"] is None)
        found.append(receipt)
    return sorted(found, key=lambda receipt: receipt["started_at"])


VALID = Draft202012Validator(SCHEMA, format_checker=Draft202012Validator.FORMAT_CHECKER)


def test_the_schema_knows_the_words_of_the_code() -> None:
    """The schema is one, describes every key, and lists the stages and error codes that there are."""
    Draft202012Validator.check_schema(SCHEMA)
    assert all("description" in key or "const" in key for key in SCHEMA["properties"].values())
    assert SCHEMA["properties"]["stage_seconds"]["propertyNames"]["enum"] == list(STAGES)
    assert SCHEMA["properties"]["errors"]["propertyNames"]["enum"] == list(ErrorCode)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job that fails over its error budget, and goes on with a larger one, with two workers of which one
    dies on a row. Returns its output."""
    folder = tmp_path_factory.mktemp("receipts")
    write_shards(folder / "in", [500, 700])
    faults = {"250.0": "error", "550.0": "kill", "40.0": "nan"}
    job = doubling_job(
        folder,
        model={"faults": faults, "seconds_per_batch": 0.002, "version": "v7"},
        errors={"max": 0, "check_finite": True},
        limits={"price_per_device_hour": 3.2},
    )
    more = ["--set", "errors.max=5%", "--set", "compute.workers_per_device=2"]
    for code, arguments in ((3, []), (0, more)):
        command = [sys.executable, "-m", "batchinfer", "run", str(job), *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment(), timeout=120, check=False
        )
        assert done.returncode == code, done.stderr
        if code == 0:
            assert f"report    {folder}/out/_batchinfer/report.html" in done.stderr
    return folder / "out"


def test_a_failed_run_and_the_one_that_completes_it(two_runs: Path) -> None:
    """Both leave a receipt: why the first ended, and what the second did; together they did every row."""
    first, second = receipts(two_runs)
    assert (first["exit_code"], first["complete"], first["output_rows"]) == (3, False, None)
    assert "errors.max" in first["error"]
    assert first["plan"]["manifest_sha256"] is None

    seal = json.loads((two_runs / "_SUCCESS").read_text())
    assert (second["exit_code"], second["complete"], second["error"]) == (0, True, None)
    assert second["plan"]["manifest_sha256"] == seal["manifest_sha256"]
    assert second["output_rows"] == {"ok": 1197, "error": 3, "filtered": 0}
    assert first["plan"] | {"manifest_sha256": None} == second["plan"] | {"manifest_sha256": None}
    rows = second["rows"]
    assert rows["reused"] == sum(first["rows"][name] for name in ("ok", "error", "filtered"))
    assert rows["reused"] + rows["ok"] + rows["error"] == rows["total"] == 1200
    assert sum(first["errors"].values()) + sum(second["errors"].values()) == 3
    assert second["errors"]["crash"] == 1
    assert first["units"]["committed"] + second["units"]["committed"] == second["units"]["total"] == 12


def test_what_it_says_of_the_run(two_runs: Path) -> None:
    """Settings with why, versions, inputs, what each worker did, what it cost; samples without a row's content."""
    _, second = receipts(two_runs)
    assert second["settings"]["batching.size"] == {"value": "32", "why": "as asked"}
    assert second["settings"]["compute.workers_per_device"] == {"value": 2, "why": "as asked"}
    assert second["settings"]["compute.readers"]["why"] != "as asked"
    assert {"python", "pyarrow", "numpy"} <= second["versions"].keys()
    assert second["inputs"]["files"] == len(second["inputs"]["listed"]) == 2
    assert second["model"]["version"] == "v7"
    assert len(second["workers"]) == 2
    assert sum(worker["units"] for worker in second["workers"]) == second["units"]["committed"]
    assert sum(worker["deaths"] for worker in second["workers"]) >= 1
    for stage, seconds in second["stage_seconds"].items():
        each = sum(worker["stage_seconds"].get(stage, 0.0) for worker in second["workers"])
        assert each == pytest.approx(seconds, abs=1e-3)
    assert second["cost"] == pytest.approx(3.2 * second["device_hours"], abs=2.2e-6)
    assert any(warning["code"] == "worker_died" for warning in second["warnings"])
    assert {sample["code"] for sample in second["error_samples"]} <= {"model", "crash"}
    assert second["document"]["output"]["storage_options"] == {"password": "${env:BATCHINFER_TEST_SECRET}"}


def test_verify_holds_the_output_against_the_receipt(two_runs: Path, batchinfer: Run) -> None:
    """The newest receipt must agree with the manifest; one that is gone, or older, or of a later release, says
    nothing."""
    assert batchinfer("verify", str(two_runs)).returncode == 0
    _, second = receipts(two_runs)
    path = two_runs / "_batchinfer" / "runs" / f"{second['run']}.json"
    good = path.read_text()
    lies = {
        "counted 1199 rows, the manifest says 1200": {**second, "output_rows": {"ok": 1196, "error": 3}},
        "another manifest": {**second, "plan": {**second["plan"], "manifest_sha256": 64 * "0"}},
        "the receipt is damaged": [],
        "": {"format": 2},
    }
    for said, receipt in lies.items():
        path.write_text(json.dumps(receipt))
        done = batchinfer("verify", str(two_runs))
        assert done.returncode == (65 if said else 0), said
        assert said in done.stderr
    path.unlink()
    assert batchinfer("verify", str(two_runs)).returncode == 0
    path.write_text(good)


def test_a_run_that_is_stopped(tmp_path: Path) -> None:
    """After SIGTERM a receipt says how far it came; a run that had nothing left to do leaves none, one that had
    only to complete the output does."""
    write_shards(tmp_path / "in", [600])
    job = doubling_job(tmp_path, model={"seconds_per_batch": 0.05})
    process = start("run", str(job))
    wait_for_parts(tmp_path / "out", 2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    (stopped,) = receipts(tmp_path / "out")
    assert (stopped["exit_code"], stopped["complete"]) == (75, False)
    assert stopped["units"]["committed"] >= 2

    batchinfer_.run_job(str(job), model__seconds_per_batch=0)
    batchinfer_.run_job(str(job), model__seconds_per_batch=0)
    assert [receipt["exit_code"] for receipt in receipts(tmp_path / "out")] == [75, 0]

    # Killed between the last unit and the manifest: the next run has only that to do, and says so.
    (tmp_path / "out" / "_SUCCESS").unlink()
    next((tmp_path / "out" / "_batchinfer").glob("*/manifest.json")).unlink()
    batchinfer_.run_job(str(job))
    last = receipts(tmp_path / "out")[-1]
    assert (last["complete"], last["units"]["committed"], last["bottleneck"]) == (True, 0, None)
    assert last["plan"]["manifest_sha256"] is not None


def test_a_run_that_is_killed(tmp_path: Path, batchinfer: Run) -> None:
    """A run that dies without a word has left a receipt that says when it began. The run that completes its output
    shows it among the runs of this output, and that it reused what the dead one had done; `verify` copes, also
    where the receipt without an end is the newest."""
    write_shards(tmp_path / "in", [600])
    out, job = tmp_path / "out", str(doubling_job(tmp_path, model={"seconds_per_batch": 0.05}))
    process = start("run", job)
    wait_for_parts(out, 2)
    deadline = time.monotonic() + 60
    while not receipts(out):
        assert time.monotonic() < deadline, "it did not tell that it began"
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=60)
    (dead,) = receipts(out)
    assert (dead["finished_at"], dead["exit_code"], dead["complete"]) == (None, None, False)
    assert (dead["rows"]["total"], dead["units"]["committed"], dead["output_rows"]) == (600, 0, None)
    assert not (out / "_batchinfer" / "report.html").exists()

    done = batchinfer("run", job, "--set", "model.seconds_per_batch=0")
    assert done.returncode == 0, done.stderr
    first, second = receipts(out)
    assert first == dead
    assert (second["exit_code"], second["complete"]) == (0, True)
    reused = second["rows"]["reused"]
    assert reused >= 200
    page = (out / "_batchinfer" / "report.html").read_text()
    runs = page[page.index("<h2>Runs of this output</h2>") :].partition("</section>")[0]
    assert f"<td>{dead['started_at'].replace('T', ' ')[:19]}</td><td>{dead['run']}</td><td>–</td>" in runs
    assert runs.count("<td>died, or is still at it</td>") == runs.count("<td>done</td>") == 1
    assert (
        f"This run reused {reused} rows; what run {dead['run']} had committed by then is among them." in runs
    )

    (out / "_batchinfer" / "runs" / f"{dead['run']}.json").touch()
    assert batchinfer("verify", str(out)).returncode == 0


def test_a_receipt_that_cannot_be_written_fails_nothing(tmp_path: Path, batchinfer: Run) -> None:
    """A store that does not take it is a warning. A job that is refused leaves nothing in the output."""
    write_shards(tmp_path / "in", [100])
    (tmp_path / "out" / "_batchinfer").mkdir(parents=True)
    (tmp_path / "out" / "_batchinfer" / "runs").write_text("in the way")
    done = batchinfer("run", str(doubling_job(tmp_path)))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning=receipt") == 1
    assert "report    " not in done.stderr

    wrong = doubling_job(tmp_path, model={"inputs": {"x": "text"}}, output={"path": "other/"})
    assert batchinfer("run", str(wrong)).returncode == 78
    assert not (tmp_path / "other" / "_batchinfer" / "runs").exists()


class _NoXids:
    """GPUs that report nothing."""

    def poll(self) -> None:
        """Take in nothing."""

    def of(self, uuid: str) -> Xids | None:
        """Know nothing."""

    def close(self) -> None:
        """Do nothing."""


PLAN = PlanFollowed(
    plan="0123abcd",
    generation=1,
    fingerprint=64 * "a",
    depends_on={},
    inputs=(),
    settings={"limits.price_per_device_hour": (3.6, "as asked")},
    cores=8,
)


@pytest.mark.parametrize(
    ("counters", "watts", "joules", "shown"),
    [
        ({0: 5000.0, 10: 5150.0, 20: 20.0, 30: 70.0}, 1.0, 230.0, "230 J by the GPUs, whoever used them"),
        ({0: 5000.0, 10: 5150.0, 20: 20.0, 30: 70.0}, None, None, None),
    ],
    ids=["a counter that was reset", "a GPU that does not tell"],
)
def test_screen_receipt_and_report_agree(
    tmp_path: Path, counters: dict[int, float], watts: float | None, joules: float | None, shown: str | None
) -> None:
    """Energy, cost and device-hours are the same figures everywhere: a counter that was reset goes on, a GPU
    without one counts by its power, one that tells neither makes the sum unknown, and a device whose worker was
    never ready was paid for."""
    clock = Clock()

    def sample(gpu: Gpu) -> GpuSample:
        if gpu.index:
            return GpuSample(power_watts=watts)
        return GpuSample(energy_joules=counters[int(clock.now)])

    cards = tuple(Gpu(index=at, uuid=f"GPU-{at}", name="L4", memory_total_bytes=None) for at in range(2))
    devices = Devices(gpus=lambda: cards, sample=sample, watch=lambda _: _NoXids(), clock=clock)
    run, recording = Invented(clock, Tally(clock=clock, energy=devices.energy_joules)), Recording(clock=clock)
    run.hear = [devices.on_event, run.tally.on_event, recording.on_event]
    run.start(rows=60, units=1, workers=3, devices=("cuda:0", "cuda:1", "cuda:2"), price_per_device_hour=3.6)
    run.say(PLAN)
    run.ready(0, "cuda:0")
    run.ready(1, "cuda:1")
    for second in (0.0, 10.0, 20.0):
        clock.now = second
        recording.sample(devices.readings(run.tally.snapshot()))
    run.batch(60, after=10)
    run.commit(60)
    run.finish(rows_ok=60, rows_error=0, rows_filtered=0)
    devices.close()

    snapshot = run.tally.snapshot()
    write_shards(tmp_path / "in", [1])
    receipt = receipt_of(load_job(doubling_job(tmp_path)), recording, snapshot)
    assert receipt["energy_joules"] == snapshot.energy_joules == joules
    assert receipt["cost"] == pytest.approx(snapshot.cost)
    assert receipt["cost"] == pytest.approx(3 * 30 * 0.001)
    assert receipt["device_hours"] == pytest.approx(3 * 30 / 3600, abs=1e-6)
    page = report(receipt, recording, snapshot)
    screen = "\n".join(line.plain for line in summary(snapshot))
    assert "cost      0.09   0.025 device-hours" in screen
    assert "<dd>0.09</dd>" in page
    assert ">0.025 device-hours<" in page
    assert (f"energy    {shown}" in screen) if shown else ("energy" not in screen)
    assert ("<dd>230 J</dd>" in page) if shown else ("J a row" not in page)


def test_a_start_that_took_most_of_the_run(run: Any, tmp_path: Path) -> None:
    """The seconds until the first worker was ready are on the screen, in the receipt and in the report, and where
    they are most of the run that is the verdict, although the device was busy ever after."""
    recording = Recording(clock=run.clock)
    run.hear.append(recording.on_event)
    run.start(rows=100, units=1, workers=2)
    run.say(PLAN)
    run.clock.now = 6.1
    run.ready(0)
    run.clock.now = 6.5
    run.ready(1)
    run.batch(100, after=2.4, seconds=2.3)
    run.say(StagesTimed(worker=0, seconds={"compute": 2.75, "read": 0.05}, peak_bytes=2**30))
    run.commit(100)
    run.finish(rows_ok=100, rows_error=0, rows_filtered=0)

    snapshot = run.tally.snapshot()
    write_shards(tmp_path / "in", [1])
    receipt = receipt_of(load_job(doubling_job(tmp_path)), recording, snapshot)
    assert (receipt["start_s"], receipt["seconds"], receipt["bottleneck"]) == (6.1, 8.9, "compute")
    lines = [line.plain for line in summary(snapshot)]
    assert "start     6.1 s of 8.9 s (68.5 %), planning and loading the model" in lines
    said = "6.1 of 8.9 s were planning and loading the model"
    assert any(line.startswith(f"advice    {said}: ") for line in lines)
    page = report(receipt, recording, snapshot)
    assert f"<strong>{said}.</strong>" in page
    assert "Until the first worker was ready: 6.1 s of 8.9 s (68.5 %)" in page
    assert "The device is what limits this run" not in page
