"""Postprocessing steps against NumPy and torch, and their refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from batchinfer import registry, tensors
from batchinfer.data import TensorSpec
from batchinfer.errors import ContractError, DataError

LOGITS = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 6), st.integers(1, 8)), elements=st.floats(-200, 200, width=32)
)


def f32(values: Any) -> Any:
    """Return values as float32."""
    return np.array(values, np.float32)


def make(name: str, **options: Any) -> Any:
    cls = registry.load("postprocessors", name)
    return cls(cls.Options.model_validate_json(json.dumps(options)))


def spec(name: str, *shape: int | None, dtype: str = "float32") -> dict[str, TensorSpec]:
    return {name: TensorSpec(name, dtype, (None, *shape))}


def check(
    step: Any, results: dict[str, Any], specs: dict[str, TensorSpec], inputs: dict[str, Any] | None = None
) -> Any:
    """Apply a step, and hold what it gives against what it said it would give."""
    said = step.output_specs(specs)
    before = {name: np.array(value, copy=True) for name, value in results.items()}
    found = step.apply(results, inputs or {})
    assert list(found) == list(said)
    for name, column in found.items():
        array = tensors.to_arrow(column, tensors.arrow_type(said[name]))
        assert array.type == tensors.arrow_type(said[name])
    for name, value in before.items():
        np.testing.assert_array_equal(value, results[name])
    return found


@given(LOGITS)
def test_softmax_equals_torch(logits: Any) -> None:
    """Also for large logits, where the plain formula overflows."""
    found = check(make("softmax"), {"logits": logits}, spec("logits", logits.shape[1]))
    np.testing.assert_allclose(
        found["probabilities"], torch.softmax(torch.from_numpy(logits), -1).numpy(), atol=1e-6
    )


@given(LOGITS)
def test_sigmoid_equals_torch(logits: Any) -> None:
    """Also at both ends; a vector of one becomes a number."""
    found = check(make("sigmoid"), {"x": logits[:, :1]}, spec("x", 1))
    np.testing.assert_allclose(
        found["probability"], torch.sigmoid(torch.from_numpy(logits[:, 0])).numpy(), atol=1e-6
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


def test_labels(tmp_path: Path) -> None:
    """Class numbers become names, from a model's config too; a number beyond them is an error."""
    (tmp_path / "config.json").write_text('{"id2label": {"1": "no", "0": "yes"}}')
    step = make("labels", path=str(tmp_path / "config.json"), to="answer")
    found = check(step, {"c": np.array([0, 1, 0])}, spec("c", dtype="int64"))
    assert found["answer"].to_pylist() == ["yes", "no", "yes"]
    with pytest.raises(ValueError, match="class 2 has no label"):
        step.apply({"c": np.array([0, 2])}, {})


def test_threshold() -> None:
    """From the threshold on it is yes; NaN is no."""
    found = check(make("threshold", at=0.5, to="late"), {"p": f32([0.5, 0.49, np.nan])}, spec("p"))
    assert found["late"].tolist() == [True, False, False]


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.booleans())
def test_mean_pool_equals_sentence_transformers(rows: int, tokens: int, size: int, normalize: bool) -> None:
    """The mean over real tokens, as sentence-transformers' pooling computes it."""
    from sentence_transformers.sentence_transformer.modules import Pooling

    seed = np.random.default_rng(rows * 100 + tokens * 10 + size)
    states = seed.normal(size=(rows, tokens, size)).astype(np.float32)
    mask = (np.arange(tokens) < seed.integers(1, tokens + 1, rows)[:, None]).astype(np.int64)
    step = make("mean_pool", to="e", normalize=normalize)
    found = check(step, {"h": states}, spec("h", None, size), {"attention_mask": mask})["e"]
    pooled = Pooling(size, pooling_mode="mean")(
        {"token_embeddings": torch.from_numpy(states), "attention_mask": torch.from_numpy(mask)}
    )["sentence_embedding"]
    expected = torch.nn.functional.normalize(pooled, dim=1) if normalize else pooled
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_mean_pool_of_nothing() -> None:
    """A row without a real token pools to zeros, not to NaN; a missing mask is an error."""
    step = make("mean_pool", normalize=True)
    found = step.apply({"h": np.ones((1, 2, 3), np.float32)}, {"attention_mask": np.zeros((1, 2), np.int64)})
    assert found["embedding"].tolist() == [[0, 0, 0]]
    with pytest.raises(ContractError, match="needs the model input 'attention_mask'; there are ids"):
        step.apply({"h": np.ones((1, 2, 3), np.float32)}, {"ids": np.ones((1, 2))})


def test_cls_pool_and_normalize() -> None:
    """The first token's vector; a vector of length one, and zeros stay zeros."""
    states = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    found = check(make("cls_pool"), {"h": states}, spec("h", None, 3))["embedding"]
    assert found.tolist() == [[0, 1, 2], [6, 7, 8]]
    unit = check(make("normalize"), {"v": f32([[3, 4], [0, 0]])}, spec("v", 2))["v"]
    np.testing.assert_allclose(unit, f32([[0.6, 0.8], [0, 0]]), atol=1e-7)


def test_cast_rename_keep() -> None:
    """Cast keeps the name, rename changes it, keep leaves what was taken."""
    found = check(make("cast", dtype="float16"), {"x": f32([1.5])}, spec("x"))
    assert found["x"].dtype == np.float16
    found = check(make("rename", names={"x": "y"}), {"x": f32([1.5])}, spec("x"))
    assert list(found) == ["y"]
    found = check(make("threshold", keep=True), {"p": f32([1.0])}, spec("p"))
    assert list(found) == ["p", "positive"]


def test_the_users_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays by name in, arrays by name out; its exceptions name its line."""
    (tmp_path / "after_code.py").write_text(
        "def square(results):\n    return {'sq': results['x'] ** 2}\n\ndef bad(results):\n    return results['nope']\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = check(make("python", function="after_code:square"), {"x": f32([[3], [4]])}, spec("x", 1))
    assert found["sq"].tolist() == [[9], [16]]
    with pytest.raises(ContractError, match="declare them"):
        make("python", function="after_code:bad").output_specs(spec("x"))
    with pytest.raises(DataError, match="raised KeyError") as caught:
        make("python", function="after_code:bad", output={"y": "float32"}).apply({"x": np.zeros(1)}, {})
    assert caught.value.where == f"{tmp_path}/after_code.py:5"


@pytest.mark.parametrize(
    ("name", "options", "specs", "message"),
    [
        ("argmax", {"from": "nope"}, spec("logits", 3), "there is no result 'nope'; there are logits"),
        ("argmax", {}, {**spec("a", 3), **spec("b", 3)}, r"there are several results \(a, b\)"),
        ("softmax", {}, spec("x", None, 3), "needs a float vector per row"),
        ("softmax", {}, spec("x", 3, dtype="int64"), "needs a float vector per row"),
        ("mean_pool", {}, spec("x", 3), "needs a float vector per token"),
        ("top_k", {"k": 9}, spec("x", 3), "k is 9, and .* has only 3 classes"),
        ("labels", {"names": ["a"]}, spec("x"), "needs class numbers"),
        ("labels", {"path": "/nope"}, spec("x", dtype="int64"), "the labels cannot be read"),
        ("threshold", {}, spec("x", dtype="string"), "needs floats"),
        ("cast", {"dtype": "int64"}, spec("x", dtype="string"), "needs numbers"),
        ("rename", {"names": {"y": "z"}}, spec("x"), "there is no result 'y'"),
        ("rename", {"names": {"a": "b"}}, {**spec("a"), **spec("b")}, "two results would be called the same"),
    ],
)
def test_refusals(name: str, options: dict[str, Any], specs: dict[str, TensorSpec], message: str) -> None:
    """A step that cannot work with what it gets says what it got and what it needs, before any row."""
    with pytest.raises(ContractError, match=message):
        make(name, **options).output_specs(specs)


def test_strings_pass_through() -> None:
    """A step leaves results that it does not take as they are, texts included."""
    results = {"s": f32([[0.2, 0.8]]), "t": pa.array(["x"])}
    found = make("argmax", **{"from": "s"}).apply(results, {})
    assert found["t"] is results["t"]
