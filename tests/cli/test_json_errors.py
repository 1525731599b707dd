"""`--log-format json`: every line of standard error is an object, whoever refuses the run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run, doubling_job, environment, write_shards

FIELDS = ["timestamp", "level", "event", "job", "run", "kind", "message", "where", "hint"]
JSON = ("--log-format", "json")


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """Return what was said, all of which is JSON."""
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_a_bad_job_file_is_one_error(tmp_path: Path, batchinfer: Run) -> None:
    """Several mistakes are one line with each of them, its place and its guess, under the names of the log."""
    path = tmp_path / "job.yaml"
    path.write_text("job: x\ninput:\n  pth: in/\nmodel:\n  backend: nope\nbatching:\n  size: -3\n")
    done = batchinfer("run", str(path), *JSON)
    assert done.returncode == 78
    (line,) = lines(done)
    assert list(line) == FIELDS
    assert (line["level"], line["event"], line["kind"]) == ("error", "error", "job")
    problems = line["message"].splitlines()
    assert problems == batchinfer("run", str(path)).stderr.removeprefix("error[job]: ").splitlines()
    assert len(problems) > 3
    assert any(
        "job.yaml:3:3  input.pth: unknown key; did you mean 'path'?" in problem for problem in problems
    )


@pytest.mark.parametrize(
    ("arguments", "code", "kind", "says"),
    [
        (("none.yaml",), 78, "job", "there is no such file"),
        (("job.yaml", "--shard", "9/3"), 2, "usage", "names no share"),
        (("job.yaml", "--param", "novalue"), 2, "usage", "has no value"),
        (("job.yaml", "--log-fil", "x"), 2, "usage", "No such option"),
        (("job.yaml", "--log-file", "none/log"), 78, "job", "the log file cannot be opened"),
        (("job.yaml", "--set", "input.path=nowhere"), 66, "input", "matches no file"),
    ],
)
def test_a_refusal_is_one_error(
    tmp_path: Path,
    batchinfer: Run,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    kind: str,
    says: str,
) -> None:
    """A wrong command line, a file that is missing and an input that is empty: one line of the same shape, and
    the exit code that it has in text."""
    monkeypatch.chdir(tmp_path)
    doubling_job(tmp_path)
    done = batchinfer("run", *arguments, "--log-format=json")
    assert done.returncode == code
    (line,) = lines(done)
    assert (list(line), line["kind"]) == (FIELDS, kind)
    assert says in line["message"]
    assert batchinfer("run", *arguments).returncode == code


def test_a_run_that_fails_says_why_once(tmp_path: Path, batchinfer: Run) -> None:
    """Too many failed rows: the log has the error and the end of the same run, and no text after it."""
    write_shards(tmp_path / "in", [60])
    done = batchinfer("run", str(doubling_job(tmp_path, model={"faults": {"1.0": "error"}})), *JSON)
    assert done.returncode == 3
    said = lines(done)
    errors = [line for line in said if line["event"] == "error"]
    assert [line["kind"] for line in errors] == ["errors"]
    assert said[-1]["event"] == "run_finished"
    assert said[-1]["run"] == errors[0]["run"] != ""


def test_in_text_nothing_changes(tmp_path: Path, batchinfer: Run) -> None:
    """Without JSON, or with text asked for last, the error is a message for people."""
    job = str(doubling_job(tmp_path))
    for arguments in ((), (*JSON, "--log-format", "text")):
        done = batchinfer("run", job, *arguments)
        assert done.returncode == 66
        assert done.stderr.startswith("error[input]: input.path matches no file: ")


def test_the_traceback_of_a_bug_is_kept() -> None:
    """A fault of ours is a line of JSON too, with the traceback that the log of the run never holds."""
    script = """
import sys
from batchinfer.cli import app

def broken(**_):
    raise ZeroDivisionError("oh")

app.app = broken
sys.exit(app.run_app())
"""
    done = subprocess.run(
        [sys.executable, "-c", script, "run", "job.yaml", *JSON],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    assert done.returncode == 1
    (line,) = lines(done)
    assert list(line) == [*FIELDS, "details"]
    assert (line["kind"], line["message"]) == ("bug", "ZeroDivisionError")
    assert line["details"].endswith("ZeroDivisionError: oh\n")
