"""Scores to decisions: argmax, top_k, threshold, labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from batchinfer.errors import ContractError, DataError
from tests.postprocess.examine import check, f32, make, spec

LOGITS = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 6), st.integers(1, 8)), elements=st.floats(-200, 200, width=32)
)


@given(LOGITS)
def test_argmax_and_top_k_agree(logits: Any) -> None:
    """The best of the k best is the argmax; scores fall; ties go by number."""
    classes = logits.shape[1]
    k = min(3, classes)
    best = check(make("argmax"), {"s": logits}, spec("s", classes))["class"]
    top = check(make("top_k", k=k), {"s": logits}, spec("s", classes))
    np.testing.assert_array_equal(top["top_index"][:, 0], best)
    assert (np.diff(top["top_score"], axis=1) <= 0).all()
    order = np.array([sorted(range(classes), key=lambda at: (-row[at], at))[:k] for row in logits])
    np.testing.assert_array_equal(top["top_index"], order)


def test_top_k_with_labels(tmp_path: Path) -> None:
    """Names come beside numbers and scores; their number must be that of the classes."""
    (tmp_path / "labels.txt").write_text("cat\ndog\ncow\n")
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]], np.float32)
    step = make("top_k", k=2, labels=str(tmp_path / "labels.txt"), to="best")
    found = check(step, {"s": scores}, spec("s", 3))
    assert found["best_label"].to_pylist() == [["dog", "cow"], ["cat", "dog"]]
    with pytest.raises(ContractError, match="there are 3 labels for 4 classes"):
        step.output_specs(spec("s", 4))


def test_argmax_with_labels(tmp_path: Path) -> None:
    """The name of the best class comes beside its number."""
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    step = make("argmax", labels=str(tmp_path / "labels.txt"))
    found = check(step, {"s": f32([[0.1, 0.7], [0.5, 0.3]])}, spec("s", 2))
    assert found["class"].tolist() == [1, 0]
    assert found["class_label"].to_pylist() == ["dog", "cat"]
    with pytest.raises(ContractError, match="there are 2 labels for 3 classes"):
        step.output_specs(spec("s", 3))
    with pytest.raises(DataError, match="argmax: class 2 has no label"):
        step.apply({"s": f32([[0, 0, 1]])}, {})


def test_top_k_of_too_few_classes() -> None:
    """Where the number of classes is not known beforehand, too few of them are an error, not a short list."""
    step = make("top_k", k=3)
    step.output_specs(spec("s", None))
    with pytest.raises(DataError, match="top_k: k is 3, and 's' came with only 2 classes"):
        step.apply({"s": f32([[1, 2]])}, {})


@pytest.mark.parametrize(
    ("name", "text", "labels"),
    [
        ("l.txt", "cat\ndog\n", ["cat", "dog"]),
        ("l.txt", "\ufeffcat\r\ndog\r\n\r\n", ["cat", "dog"]),
        ("l.txt", "one\u2028line\n two ", ["one\u2028line", " two "]),
        ("l.json", '["a", "b"]', ["a", "b"]),
        ("l.json", json.dumps({str(at): str(at) for at in range(11)}), [str(at) for at in range(11)]),
    ],
)
def test_label_files(tmp_path: Path, name: str, text: str, labels: list[str]) -> None:
    """Labels are read as editors and models write them, in the order of their numbers."""
    (tmp_path / name).write_bytes(text.encode())
    step = make("labels", path=str(tmp_path / name))
    found = step.apply({"c": np.arange(len(labels))}, {})["label"]
    assert found.to_pylist() == labels


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.txt", "\n\n", "there are no labels in the file"),
        ("l.json", "[]", "there are no labels in the file"),
        ("l.json", "{", "the labels cannot be read"),
        ("l.json", "3", "the labels are no list of texts"),
        ("l.json", "[1, 2]", "the labels are no list of texts"),
        ("l.json", '{"a": "b"}', "the labels are no list and no object from number to label"),
        ("l.json", '{"id2label": ["a"]}', "the labels are no list and no object from number to label"),
        ("l.json", '{"0": "a", "2": "c"}', "the labels leave out class 1"),
        ("l.json", '{"1": "a", "2": "c"}', "the labels leave out class 0"),
    ],
)
def test_label_files_that_are_none(tmp_path: Path, name: str, text: str, message: str) -> None:
    """A file that would give a class another's name is refused, and named."""
    (tmp_path / name).write_text(text)
    with pytest.raises(ContractError, match=message) as caught:
        make("labels", path=str(tmp_path / name)).output_specs(spec("c", dtype="int64"))
    assert caught.value.where == str(tmp_path / name)


def test_labels(tmp_path: Path) -> None:
    """Class numbers become names, from a model's config too; a number beyond them is an error."""
    (tmp_path / "config.json").write_text('{"id2label": {"1": "no", "0": "yes"}}')
    step = make("labels", path=str(tmp_path / "config.json"), to="answer")
    found = check(step, {"c": np.array([0, 1, 0])}, spec("c", dtype="int64"))
    assert found["answer"].to_pylist() == ["yes", "no", "yes"]
    for number in (2, -1):
        with pytest.raises(DataError, match=f"labels: class {number} has no label: there are 2"):
            step.apply({"c": np.array([0, number])}, {})


def test_threshold() -> None:
    """From the threshold on it is yes; NaN is no."""
    found = check(make("threshold", at=0.5, to="late"), {"p": f32([0.5, 0.49, np.nan])}, spec("p"))
    assert found["late"].tolist() == [True, False, False]


def test_threshold_with_words() -> None:
    """Two labels stand for no and yes; a vector of one counts as a number."""
    step = make("threshold", at=0.7, labels=["early", "late"])
    found = check(step, {"p": f32([[0.7], [0.69], [np.nan]])}, spec("p", 1))
    assert found["positive"].to_pylist() == ["late", "early", "early"]
    with pytest.raises(ContractError, match="needs one number per row"):
        step.output_specs(spec("p", 3))
