"""Labels of texts, held against transformers' own pipeline for the same model folder."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.correctness.conftest import Prepare, Run, apart, matrix

MAX_TOKENS = 64
LOG = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def job(prepare: Prepare) -> Path:
    """The example's job file, with its model and texts beside it."""
    return prepare("text-classification") / "job.yaml"


@pytest.fixture(scope="module")
def texts(job: Path) -> list[str]:
    """A hundred of the example's texts from all its classes; the last ten are its longest."""
    lines = (job.parent / "data" / "docstrings.jsonl").read_text().splitlines()
    every = [json.loads(line)["text"] for line in lines]
    longest = sorted(every, key=len)[-10:]
    others = [text for text in every if text not in longest]
    return [others[at * len(others) // 90] for at in range(90)] + longest


@pytest.mark.usefixtures("one_thread")
def test_labels_are_those_of_the_pipeline(job: Path, texts: list[str], run: Run, tmp_path: Path) -> None:
    """A hundred texts get the label, its score and all probabilities that transformers' pipeline gives
    them one by one; the texts that are too long are cut at the same token."""
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    columns = {"label": "string", "score": "float32", "probabilities": "float32[4]"}
    found = run(job, input__path=str(data), output__carry=["text"], output__columns=columns)

    assert found["text"].to_pylist() == texts
    assert found["_error"].null_count == len(texts) == 100
    answers = ask_pipeline(job.parent / "model", texts)
    best = [max(answer.items(), key=lambda pair: pair[1]) for answer in answers]
    assert found["label"].to_pylist() == [label for label, _ in best]
    assert len({label for label, _ in best}) == 4
    names = json.loads((job.parent / "model" / "config.json").read_text())["id2label"]
    wanted = np.array([[answer[names[str(at)]] for at in range(4)] for answer in answers])
    far = apart(matrix(found["probabilities"]), wanted)
    LOG.info("100 texts, max abs %.2e", far)
    assert far < 1e-5
    assert apart(found["score"].to_numpy(), wanted.max(axis=1)) < 1e-5


def ask_pipeline(folder: Path, texts: list[str]) -> list[dict[str, float]]:
    """Return label -> probability of each text."""
    from transformers import pipeline

    classify: Any = pipeline("text-classification", model=str(folder), tokenizer=str(folder), device="cpu")
    lengths = [len(classify.tokenizer(text)["input_ids"]) for text in texts]
    assert min(lengths) < MAX_TOKENS < max(lengths)
    answers = classify(texts, top_k=None, truncation=True, max_length=MAX_TOKENS, batch_size=1)
    return [{entry["label"]: entry["score"] for entry in answer} for answer in answers]
