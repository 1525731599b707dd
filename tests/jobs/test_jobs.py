"""The examples in jobs/ are complete: they name the schema, obey it, and give the right results."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest
import yaml
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

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
    """Every flight's probability is what onnxruntime gives for it, and cancelled flights say why."""
    import onnxruntime

    folder = copied("tabular-scoring", tmp_path)
    rows = results(folder, batchinfer)
    flights = ds.dataset(folder / "data", partitioning="hive").to_table()
    assert len(rows) == len(flights) == 336_776
    job = yaml.safe_load((folder / "job.yaml").read_text())
    # Partitions come in the order of their names, in the output as in the input.
    assert rows["flight"].equals(flights["flight"])
    known = pc.is_valid(flights["dep_delay"])
    assert rows["_error"].is_null().equals(known)
    names = job["preprocess"][0]["columns"]["columns"]
    features = np.stack([flights[name].filter(known).to_numpy().astype(np.float32) for name in names], axis=1)
    session = onnxruntime.InferenceSession(
        folder / "model" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    logit = session.run(None, {"input": features})[0][:, 0].astype(np.float64)
    scored = rows.filter(known)
    np.testing.assert_allclose(scored["p_late"].to_numpy(), 1 / (1 + np.exp(-logit)), atol=1e-6)
    late = pc.greater(scored["arr_delay"], 15)
    right = pc.mean(pc.equal(scored["late"], late)).as_py()
    assert right > 0.85  # 76% arrive in time


@pytest.mark.slow
def test_image_classification(batchinfer: Run, tmp_path: Path) -> None:
    """Photos of animals get their names."""
    rows = results(copied("image-classification", tmp_path), batchinfer)
    best = {Path(row["path"]).stem: row for row in rows.to_pylist()}
    expected = {
        "mammals-cats-tiger": (292, "tiger"),
        "mammals-cats-tiger_sumatran": (292, "tiger"),
        "mammals-equines-zebra": (340, "zebra"),
        "mammals-elephant": (386, "African elephant"),
        "marsupials-koala": (105, "koala"),
    }
    assert {name: (best[name]["top_index"][0], best[name]["top_label"][0]) for name in expected} == expected
    assert rows["_error"].null_count == len(rows) > 100
    assert all(sorted(row["top_score"], reverse=True) == row["top_score"] for row in best.values())


@pytest.mark.slow
def test_text_classification(batchinfer: Run, tmp_path: Path) -> None:
    """Most docstrings that the model has not seen are ascribed to their package."""
    rows = results(copied("text-classification", tmp_path), batchinfer, "--set", "input.sample=25%")
    assert 200 < len(rows) < 400
    right = pc.mean(pc.equal(rows["label"], rows["package"])).as_py()
    assert right > 0.55  # guessing gives 25%
    assert pc.min(rows["score"]).as_py() >= 0.25


@pytest.mark.slow
def test_text_embedding(batchinfer: Run, tmp_path: Path) -> None:
    """Embeddings are those of sentence-transformers, to 1e-5, and a search finds what is meant."""
    from sentence_transformers import SentenceTransformer

    rows = results(copied("text-embedding", tmp_path), batchinfer, "--set", "input.limit=400")
    sys.path.insert(0, str(ROOT / "jobs"))
    try:
        from minilm import model_folder  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    model = SentenceTransformer(str(model_folder()), device="cpu")
    model.max_seq_length = 128
    wanted = model.encode(rows["text"].to_pylist(), normalize_embeddings=True, show_progress_bar=False)
    found = vectors(rows["embedding"])
    assert found.shape == (400, 384)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose((found * wanted).sum(axis=1), 1, atol=1e-5)
    sought = subprocess.run(
        [sys.executable, tmp_path / "text-embedding" / "search.py", rows["text"][7].as_py()],
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    )
    (first,) = [line for line in sought.stdout.splitlines() if line.startswith("1.000")]
    assert rows["module"][7].as_py()[:30] in first


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


def vectors(column: Any) -> np.ndarray:
    """Return a column of fixed-size lists as a matrix."""
    flat = column.combine_chunks().flatten().to_numpy()
    return np.asarray(flat.reshape(len(column), -1))
