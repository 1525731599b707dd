"""The examples in jobs/ are complete: they name the schema, obey it, and give the right results."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.conftest import Run, environment

ROOT = Path(__file__).resolve().parents[2]
JOBS = sorted(ROOT.glob("jobs/*/job.yaml"))
NAMES = {"image-classification", "tabular-scoring", "text-classification", "text-embedding"}
ABSENT = ("not installed", "could not be fetched")


def test_there_are_four() -> None:
    """The README's list is what the folder holds."""
    assert {job.parent.name for job in JOBS} >= NAMES


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.parent.name)
def test_an_editor_finds_the_schema(job: Path) -> None:
    """The first line names the schema for editors, by a path that exists."""
    first, _, _ = job.read_text().partition("\n")
    before, _, path = first.partition("$schema=")
    assert before == "# yaml-language-server: "
    assert (job.parent / path).resolve() == ROOT / "schemas" / "job.schema.json"


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.parent.name)
def test_it_obeys_the_schema(job: Path) -> None:
    """What an editor would underline does not occur."""
    schema = json.loads((ROOT / "schemas" / "job.schema.json").read_text())
    problems = [
        error.message for error in Draft202012Validator(schema).iter_errors(yaml.safe_load(job.read_text()))
    ]
    assert problems == []


@pytest.mark.slow
def test_tabular_scoring(batchinfer: Run, tmp_path: Path) -> None:
    """Nine of ten flights are judged right, and cancelled ones say why they are not judged."""
    rows = results(copied("tabular-scoring", tmp_path), batchinfer)
    assert len(rows) == 336_776
    cancelled = rows.filter(pc.is_valid(rows["_error"]))
    assert len(cancelled) == 8_255
    assert set(pc.struct_field(cancelled["_error"].combine_chunks(), "message").to_pylist()) == {
        "column 'dep_delay' is null"
    }
    arrived = rows.filter(pc.is_valid(rows["arr_delay"]))
    right = pc.mean(pc.equal(arrived["late"], pc.greater(arrived["arr_delay"], 15))).as_py()
    assert right > 0.87  # to say "in time" of every flight is right for 76%


@pytest.mark.slow
def test_image_classification(batchinfer: Run, tmp_path: Path) -> None:
    """Photos of animals get their names."""
    rows = results(copied("image-classification", tmp_path), batchinfer)
    best = {row["path"]: (row["top_index"][0], row["top_label"][0]) for row in rows.to_pylist()}
    expected = {
        "mammals-cats-tiger.png": (292, "tiger"),
        "mammals-equines-zebra.png": (340, "zebra"),
        "mammals-elephant.png": (386, "African elephant"),
        "marsupials-koala.png": (105, "koala"),
    }
    assert {name: best[name] for name in expected} == expected


@pytest.mark.slow
def test_text_classification(batchinfer: Run, tmp_path: Path) -> None:
    """Most docstrings that the model has not seen are ascribed to their package; accuracy.py says so."""
    folder = copied("text-classification", tmp_path)
    rows = results(folder, batchinfer, "--set", "input.sample=15%")
    assert 120 < len(rows) < 240
    right = pc.mean(pc.equal(rows["label"], rows["package"])).as_py()
    assert right > 0.55  # guessing is right for 25%
    assert f"{right:.1%} of {len(rows)} are right" in said(folder / "accuracy.py")


@pytest.mark.slow
def test_text_embedding(batchinfer: Run, tmp_path: Path) -> None:
    """A search for a text that was embedded finds it first."""
    folder = copied("text-embedding", tmp_path)
    rows = results(folder, batchinfer, "--set", "input.limit=200")
    module, text = rows["module"][7].as_py(), rows["text"][7].as_py()
    (first,) = [line for line in said(folder / "search.py", text).splitlines() if line.startswith("1.000")]
    assert module in first


def copied(name: str, folder: Path) -> Path:
    """Copy an example with what is prepared there: other tests and people use the original."""
    for beside in ROOT.glob("jobs/*.py"):
        shutil.copy(beside, folder)
    ignored = shutil.ignore_patterns("output", "*.partial", "__pycache__")
    return Path(shutil.copytree(ROOT / "jobs" / name, folder / name, ignore=ignored))


def results(folder: Path, batchinfer: Run, *options: str) -> pa.Table:
    """Prepare an example as its head says; validate, plan and run it; read what it wrote."""
    prepared = subprocess.run(
        [sys.executable, folder / "prepare.py"],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    if prepared.returncode and not os.environ.get("CI") and any(word in prepared.stderr for word in ABSENT):
        pytest.skip(prepared.stderr.strip())
    assert prepared.returncode == 0, prepared.stderr
    for verb in ("validate", "plan", "run", "run"):
        done = batchinfer(verb, str(folder / "job.yaml"), *options)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing left to do" in done.stderr + done.stdout
    return ds.dataset(folder / "output", partitioning="hive").to_table()


def said(program: Path, *arguments: str) -> str:
    """Run a program of an example and return what it printed."""
    done = subprocess.run(
        [sys.executable, program, *arguments], capture_output=True, text=True, env=environment(), check=True
    )
    return done.stdout
