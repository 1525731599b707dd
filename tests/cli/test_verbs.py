"""The verbs besides `run`, as a user types them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from tests.conftest import Run, doubling_job, parts_of, write_shards

ROOT = Path(__file__).parents[2]


def test_a_job_from_stdin_with_overrides(
    tmp_path: Path, batchinfer: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`-` reads the job from stdin, relative to the working directory; --param and --set change it."""
    monkeypatch.chdir(tmp_path)
    write_shards(tmp_path / "in", [60])
    text = """
job: from-stdin
params: {where_to: nowhere}
input: {path: in/}
model: {backend: simulated, seconds_per_batch: 0}
output: {path: "${param:where_to}/", carry: [id]}
"""
    done = batchinfer("run", "-", "--param", "where_to=there", "--set", "input.limit=7", stdin=text)
    assert done.returncode == 0, done.stderr
    status = batchinfer("status", "there", "--json")
    assert json.loads(status.stdout)["rows_done"] == 7
    assert not (tmp_path / "nowhere").exists()


def test_preview_touches_nothing(tmp_path: Path, batchinfer: Run) -> None:
    """Preview runs the first rows and prints them; the output folder does not even come to be."""
    write_shards(tmp_path / "in", [60])
    job = str(doubling_job(tmp_path))
    shown = batchinfer("preview", job, "-n", "3", "--json")
    assert shown.returncode == 0, shown.stderr
    assert [json.loads(line)["y"] for line in shown.stdout.splitlines()] == [0.0, 1.0, 2.0]
    table = batchinfer("preview", job, "-n", "2")
    assert "id" in table.stdout
    assert not (tmp_path / "out").exists()


def test_validate_and_plan_write_nothing(tmp_path: Path, batchinfer: Run) -> None:
    """Validate loads the model, plan counts; neither leaves a trace."""
    write_shards(tmp_path / "in", [60, 90])
    job = str(doubling_job(tmp_path))
    checked = batchinfer("validate", job)
    assert checked.returncode == 0, checked.stderr
    assert "x: float32[?] -> y: float32[?]" in checked.stdout
    assert "output  y: float32" in checked.stdout
    planned = json.loads(batchinfer("plan", job, "--json").stdout)
    assert (planned["rows"], planned["units"], planned["units_done"], planned["shards"]) == (150, 2, 0, 2)
    assert not (tmp_path / "out").exists()


def test_validate_reports_every_problem_with_its_place(tmp_path: Path, batchinfer: Run) -> None:
    """Several mistakes in a job file come in one report, each with line, column, key and a guess."""
    (tmp_path / "job.yaml").write_text(
        "job: x\ninput:\n  pth: in/\nmodel:\n  backend: simulated\nbatching:\n  size: many\noutput:\n  path: out/\n"
    )
    done = batchinfer("validate", str(tmp_path / "job.yaml"))
    assert done.returncode == 78
    assert "job.yaml:3:3" in done.stderr
    assert "did you mean 'path'?" in done.stderr
    assert "job.yaml:7:3" in done.stderr
    assert "batching.size" in done.stderr


def test_verify_names_what_changed(tmp_path: Path, batchinfer: Run) -> None:
    """A part that was changed, one that was added, one that is gone: each is named, exit 65."""
    write_shards(tmp_path / "in", [300])
    job = str(doubling_job(tmp_path))
    assert batchinfer("run", job).returncode == 0
    first, second, third = sorted(parts_of(tmp_path / "out"))
    data = bytearray((tmp_path / "out" / first).read_bytes())
    data[40] ^= 1
    (tmp_path / "out" / first).write_bytes(bytes(data))
    (tmp_path / "out" / second).unlink()
    (tmp_path / "out" / "stray.parquet").write_bytes(b"")
    found = batchinfer("verify", "--deep", job)
    assert found.returncode == 65
    assert f"{first}: its content changed" in found.stderr
    assert f"{second}: is missing" in found.stderr
    assert "stray.parquet: is not in the manifest" in found.stderr
    assert third not in found.stderr


def test_status_of_nothing(tmp_path: Path, batchinfer: Run) -> None:
    """A folder that holds no output is named, exit 66."""
    done = batchinfer("status", str(tmp_path))
    assert done.returncode == 66
    assert "no batchinfer output is here" in done.stderr


def test_schema_is_the_committed_one(batchinfer: Run) -> None:
    """`schema` prints a valid JSON Schema, the one in schemas/."""
    printed = json.loads(batchinfer("schema").stdout)
    jsonschema.Draft202012Validator.check_schema(printed)
    assert printed == json.loads((ROOT / "schemas" / "job.schema.json").read_text())


def test_doctor_answers(batchinfer: Run) -> None:
    """Doctor tells versions and devices, also for scripts."""
    facts = json.loads(batchinfer("doctor", "--json").stdout)
    assert facts["cores"] >= 1
    assert "CPUExecutionProvider" in facts["providers"]
    assert batchinfer("doctor").stdout.startswith("batchinfer ")


def test_init_proposes_a_job_that_validates(tmp_path: Path, batchinfer: Run) -> None:
    """What init writes for a model and its data is a job file that validate accepts."""
    from tests.cli.test_bad_input import identity

    write_shards(tmp_path / "in", [20])
    identity(tmp_path / "model.onnx", width=2)
    job = tmp_path / "job.yaml"
    made = batchinfer(
        "init",
        str(tmp_path / "model.onnx"),
        str(tmp_path / "in"),
        "--output",
        str(tmp_path / "out"),
        "-w",
        str(job),
    )
    assert made.returncode == 0, made.stderr
    assert "columns: [id, x], to: features, dtype: float32" in job.read_text()
    checked = batchinfer("validate", str(job))
    assert checked.returncode == 0, checked.stderr
    refused = batchinfer("init", str(tmp_path / "model.onnx"), str(tmp_path / "in"), "-w", str(job))
    assert refused.returncode == 2
    assert "exists already" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rnu",), "No such command 'rnu'"),
        (("run",), "Missing argument 'JOB'"),
        (("run", "x.yaml", "--param", "novalue"), "--param 'novalue' has no value"),
    ],
)
def test_wrong_command_lines(batchinfer: Run, arguments: tuple[str, ...], message: str) -> None:
    """A wrong command line is exit 2, with what is wrong."""
    done = batchinfer(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_version_and_completion(batchinfer: Run) -> None:
    """--version prints it; the shell completion can be shown."""
    assert batchinfer("--version").stdout.startswith("batchinfer 0.")
    assert "--install-completion" in batchinfer("--help").stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_signal_before_the_run(number: signal.Signals, code: int) -> None:
    """Ctrl-C before anything has begun ends the command as such, also where a library that it interrupts
    reports a fault of its own."""
    script = f"""
import os, sys, time
from batchinfer.cli import app

def interrupted(**_):
    try:
        os.kill(os.getpid(), {int(number)})
        time.sleep(10)
    except KeyboardInterrupt as error:
        raise ValueError("the table cannot be built") from error

app.app = interrupted
sys.exit(app.run_app())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "should not happen" not in done.stderr
