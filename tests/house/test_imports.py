"""Who does not run a model does not pay for it: nothing heavy is imported where it is not needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import doubling_job, environment, write_shards

HEAVY = ("torch", "onnxruntime", "transformers", "tokenizers")


def imported_by(code: str, *, cwd: Path | None = None) -> set[str]:
    """Run code in a fresh interpreter and return the top-level modules that it imported."""
    text = f"import sys\n{code}\nprint('MODULES', *sorted(m for m in sys.modules if '.' not in m))"
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
    code = (
        "from batchinfer.cli.app import run_app\n"
        f"sys.argv = ['batchinfer', *{arguments!r}]\n"
        "code = run_app()\nassert code == 0, code"
    )
    assert not imported_by(code, cwd=tmp_path) & set(HEAVY)
