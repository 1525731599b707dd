"""Postprocessing steps against NumPy and torch, and their refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from batchinfer.data import TensorSpec
from batchinfer.errors import ContractError, DataError
from tests.postprocess.examine import check, f32, make, spec

LOGITS = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 6), st.integers(1, 8)), elements=st.floats(-200, 200, width=32)
)


@given(LOGITS)
def test_softmax_equals_torch(logits: Any) -> None:
    """Also for large logits, where the plain formula overflows."""
    found = check(make("softmax"), {"logits": logits}, spec("logits", logits.shape[1]))
    np.testing.assert_allclose(
        found["probabilities"], torch.softmax(torch.from_numpy(logits), -1).numpy(), atol=1e-6
    )


@given(LOGITS)
def test_probabilities_sum_to_one(logits: Any) -> None:
    """Rows sum to one, nothing is negative; half precision is computed in float32."""
    for values in (logits, logits.astype(np.float16)):
        found = make("softmax").apply({"x": values}, {})["probabilities"]
        assert found.dtype == np.float32
        assert (found >= 0).all()
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


def test_infinite_logits() -> None:
    """A logit of minus infinity has probability zero; a row that is all of it has none, and no warning."""
    logits = f32([[-np.inf, 0], [-np.inf, -np.inf], [np.nan, 0]])
    found = make("softmax").apply({"x": logits}, {})["probabilities"]
    np.testing.assert_array_equal(found, f32([[0, 1], [np.nan, np.nan], [np.nan, np.nan]]))
    ends = make("sigmoid").apply({"x": f32([-np.inf, np.inf, np.nan])}, {})["probability"]
    np.testing.assert_array_equal(ends, f32([0, 1, np.nan]))


@given(LOGITS)
def test_sigmoid_equals_torch(logits: Any) -> None:
    """Also at both ends; a vector of one becomes a number."""
    found = check(make("sigmoid"), {"x": logits[:, :1]}, spec("x", 1))
    np.testing.assert_allclose(
        found["probability"], torch.sigmoid(torch.from_numpy(logits[:, 0])).numpy(), atol=1e-6
    )


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


def test_mean_pool_leaves_padding_alone() -> None:
    """NaN and infinity at padding, as some models leave there, do not reach the mean; a real NaN does."""
    states = f32([[[1, 2], [np.nan, np.inf]], [[np.nan] * 2, [np.nan] * 2], [[np.nan, 1], [1, 3]]])
    mask = np.array([[1, 0], [0, 0], [1, 1]])
    found = check(make("mean_pool"), {"h": states}, spec("h", None, 2), {"attention_mask": mask})
    np.testing.assert_array_equal(found["embedding"], f32([[1, 2], [0, 0], [np.nan, 2]]))


def test_mean_pool_adds_up_in_float32() -> None:
    """Half precision would run out at 65504."""
    states = np.full((1, 4, 1), 60_000, np.float16)
    found = make("mean_pool").apply({"h": states}, {"attention_mask": np.ones((1, 4), np.int64)})["embedding"]
    assert found.tolist() == [[60_000]]
    assert found.dtype == np.float32


def test_a_mask_of_other_tokens() -> None:
    """A mask that does not belong to the token vectors is an error that gives both shapes."""
    with pytest.raises(DataError, match=r"'h' of shape \(1, 2, 3\) and 'attention_mask' of shape \(1, 4\)"):
        make("mean_pool").apply({"h": np.ones((1, 2, 3), np.float32)}, {"attention_mask": np.ones((1, 4))})


@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(1, 5), st.integers(1, 6)), elements=st.floats(-1e3, 1e3, width=32)
    )
)
def test_normalize_equals_torch(vectors: Any) -> None:
    """The same vectors of length one, zeros included."""
    found = check(make("normalize"), {"v": vectors}, spec("v", vectors.shape[1]))["v"]
    expected = torch.nn.functional.normalize(torch.from_numpy(vectors.copy()), dim=1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


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


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (f32([np.nan]), "int32"),
        (f32([1e20]), "int64"),
        (f32([np.inf]), "uint8"),
        (np.array([300]), "uint8"),
        (np.array([-1]), "uint8"),
        (f32([1e6]), "float16"),
        (np.array([1e300]), "float32"),
        (f32([np.nan]), "bool"),
    ],
)
def test_a_cast_makes_no_other_number(values: Any, dtype: str) -> None:
    """What has no place in the new type is an error, not garbage in the output."""
    with pytest.raises(
        DataError, match=f"cast: 'x' holds NaN, infinity or a number that does not fit {dtype}"
    ):
        make("cast", dtype=dtype).apply({"x": values}, {})


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        (f32([1.9, -1.9, 255.5]), "int32", [1, -1, 255]),
        (f32([255.5, -0.5]), "uint8", [255, 0]),
        (f32([np.nan, np.inf]), "float16", [np.nan, np.inf]),
        (np.array([2**53 + 1]), "float32", [2**53]),
        (f32([0, 0.5]), "bool", [False, True]),
        (np.array([True]), "int8", [1]),
    ],
)
def test_a_cast_cuts_and_rounds(values: Any, dtype: str, expected: list[Any]) -> None:
    """Fractions are cut, floats are rounded to the nearest there is; NaN stays NaN among floats."""
    found = check(make("cast", dtype=dtype), {"x": values}, spec("x", dtype=values.dtype.name))["x"]
    np.testing.assert_array_equal(found, np.array(expected, dtype))
    assert found.dtype == dtype


def test_bfloat16_is_cast() -> None:
    """What the model calls bfloat16 comes as float32, and is numbers too."""
    said = make("cast", dtype="float16").output_specs(spec("x", 2, dtype="bfloat16"))
    assert str(said["x"]) == "x: float16[?, 2]"


@pytest.mark.parametrize(
    ("name", "options", "specs", "message"),
    [
        ("argmax", {"from": "nope"}, spec("logits", 3), "there is no result 'nope'; there are logits"),
        ("argmax", {}, {**spec("a", 3), **spec("b", 3)}, r"there are several results \(a, b\)"),
        ("argmax", {}, {}, "there is no result to take"),
        ("argmax", {}, spec("x"), r"needs a float vector per row, and `x: float32\[\?\]` is none"),
        ("top_k", {}, spec("x", 3, dtype="int64"), "needs a float vector per row"),
        ("softmax", {"from": "a", "to": "b"}, {**spec("a", 3), **spec("b")}, "there is already a result 'b'"),
        ("cast", {"dtype": "int8", "keep": True}, spec("x"), "there is already a result 'x'"),
        ("normalize", {}, spec("x", None, 3), "needs a float vector per row"),
        ("cls_pool", {}, spec("x", 3), "needs a float vector per token"),
        ("mean_pool", {}, spec("x", None, 3, dtype="int64"), "needs a float vector per token"),
        ("labels", {"names": ["a"]}, spec("x", 3, dtype="int64"), "needs one number per row"),
        ("sigmoid", {}, spec("x", dtype="int64"), "needs floats"),
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
