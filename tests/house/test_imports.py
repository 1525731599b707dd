"""Who does not run a model does not pay for it: nothing heavy is imported where it is not needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import doubling_job, environment, write_shards

HEAVY = ("torch", "onnxruntime", "transformers", "tokenizers")
STORES = ("obstore", "fsspec")
UNUSED = (
    *HEAVY,
    *STORES,
    "pandas",
    "PIL",
    "jinja2",
    "prometheus_client",
    "pyarrow.compute",
    "pyarrow.dataset",
)
"""What no verb needs for a job over local Parquet that has no condition."""


def imported_by(code: str, *, cwd: Path | None = None) -> set[str]:
    """Run code in a fresh interpreter and return the modules that it imported."""
    text = f"import sys\n{code}\nprint('MODULES', *sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", text],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
        cwd=cwd,
        timeout=120,
    )
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("MODULES"))
    return set(line.split())


def test_importing_does_nothing() -> None:
    """`import batchinfer` imports no library at all."""
    found = imported_by("import batchinfer")
    assert not found & {*HEAVY, "pyarrow", "pydantic", "rich", "typer", "yaml", "numpy", "obstore"}


@pytest.mark.parametrize("verb", ["--help", "run", "plan", "validate", "status", "verify"])
def test_the_parent_never_imports_a_model_library(tmp_path: Path, verb: str) -> None:
    """Neither validate nor the parent of a run, nor any verb, imports torch or onnxruntime: workers do."""
    write_shards(tmp_path / "in", [40])
    job = str(doubling_job(tmp_path))
    arguments = [verb] if verb == "--help" else [verb, job]
    if verb in {"status", "verify"}:
        first = [sys.executable, "-m", "batchinfer", "run", job]
        subprocess.run(first, check=True, env=environment(), capture_output=True, timeout=120)
    assert not imported_by(command(arguments), cwd=tmp_path) & set(HEAVY)


def command(arguments: list[str]) -> str:
    """Return code that runs the command line."""
    return (
        "from batchinfer.cli.app import run_app\n"
        f"sys.argv = ['batchinfer', *{arguments!r}]\n"
        "code = run_app()\nassert code == 0, code"
    )


def test_help_is_quick() -> None:
    """Who asks for help waits for no library but the one that prints it."""
    others = {"pyarrow", "numpy", "pydantic", "yaml", "pynvml", "importlib.metadata", "batchinfer.config"}
    assert not imported_by(command(["--help"])) & {*UNUSED, *others}


@pytest.mark.parametrize(
    "arguments", [["validate", "--no-model"], ["validate"], ["plan"], ["run"]], ids=" ".join
)
def test_a_verb_imports_what_it_needs(tmp_path: Path, arguments: list[str]) -> None:
    """The process that reads a job and plans it imports no store, step or display that the job has not."""
    write_shards(tmp_path / "in", [40])
    found = imported_by(command([*arguments, str(doubling_job(tmp_path))]), cwd=tmp_path)
    assert not found & set(UNUSED)
    if arguments[-1] in {"--no-model", "plan"}:
        assert not found & {"pynvml", "rich", "batchinfer.runner.messages", "batchinfer.engine.unit"}


def test_a_worker_on_standby_waits_for_its_environment() -> None:
    """Before it is told the number of threads, a worker imports nothing that would ask the system for it."""
    code = "import batchinfer.runner.worker\nfrom batchinfer.runner.standby import warm_up\nwarm_up()"
    found = imported_by(code)
    assert "batchinfer.config.load" in found
    assert not found & {*HEAVY, "numpy", "pyarrow"}
