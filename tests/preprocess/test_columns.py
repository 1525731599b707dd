"""`columns`: casts, stacks, and what it does with nulls and numbers that do not fit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinfer import tensors
from batchinfer.errors import ContractError
from batchinfer.preprocess.columns import Columns, ColumnsOptions

ROWS = pa.RecordBatch.from_pydict(
    {
        "a": pa.array([1, 2, None, 2**40], pa.int64()),
        "b": pa.array([0.5, float("nan"), 1.5, 2.5], pa.float64()),
        "flag": pa.array([True, False, True, None]),
        "v": pa.array([[1, 2], [3, 4], None, [5, None]], pa.list_(pa.float32(), 2)),
        "t": pa.array(["x", "y", "z", "w"]),
    }
)


def step(**options: Any) -> Columns:
    return Columns(ColumnsOptions.model_validate_json(json.dumps(options)))


def test_stacks_into_a_vector() -> None:
    """Scalars and fixed lists become one vector per row, in the order of the job, in one dtype."""
    made = step(columns=["b", "v", "flag"], to="features", dtype="float32", nulls="zero")
    schema = made.output_schema(ROWS.schema)
    assert schema.field("features").type == pa.list_(pa.float32(), 4)
    encoded = made.encode(ROWS)
    assert encoded.failed == {}
    values = tensors.to_numpy(encoded.rows["features"])
    np.testing.assert_array_equal(
        values, np.array([[0.5, 1, 2, 1], [np.nan, 3, 4, 0], [1.5, 0, 0, 1], [2.5, 5, 0, 0]], np.float32)
    )


def test_a_null_fails_its_row() -> None:
    """A null costs its row, and the message names the column; also a null inside a list."""
    assert {row: failure.message for row, failure in step(columns=["a"]).encode(ROWS).failed.items()} == {
        2: "column 'a' is null"
    }
    assert set(step(columns=["v"]).encode(ROWS).failed) == {2, 3}


def test_nan_for_null() -> None:
    """nulls: nan puts NaN where a null was, for float results only."""
    made = step(columns=["a"], dtype="float64", nulls="nan")
    column = made.encode(ROWS).rows["a"].to_pylist()
    assert column[:2] == [1.0, 2.0]
    assert np.isnan(column[2])
    with pytest.raises(ContractError, match="needs a float dtype"):
        step(columns=["a"], nulls="nan").output_schema(ROWS.schema)


def test_a_number_that_does_not_fit_fails_its_row() -> None:
    """A cast that would change a whole number costs that row."""
    encoded = step(columns=["a"], dtype="int32", nulls="zero").encode(ROWS)
    assert {row: failure.message for row, failure in encoded.failed.items()} == {
        3: "column 'a' holds a number that does not fit int32"
    }
    assert encoded.rows["a"].to_pylist()[:3] == [1, 2, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": ["t"]}, "column 't' has type string, which is no number"),
        ({"columns": ["a", "b"], "to": "f"}, "columns of types float64 and int64 cannot be stacked"),
    ],
)
def test_what_cannot_be_a_tensor(options: dict[str, Any], message: str) -> None:
    """Text is no number, and types are not mixed silently."""
    with pytest.raises(ContractError, match=message):
        step(**options).output_schema(ROWS.schema)


def test_no_copy_where_none_is_needed() -> None:
    """A single column of the wanted type goes to the tensor as the memory it was read into."""
    rows = pa.RecordBatch.from_pydict({"x": pa.array(np.arange(8, dtype=np.float32))})
    encoded = step(columns=["x"], dtype="float32").encode(rows)
    assert tensors.to_numpy(encoded.rows["x"]).ctypes.data == tensors.to_numpy(rows["x"]).ctypes.data


@given(st.lists(st.tuples(st.integers(-100, 100), st.floats(-10, 10, width=32)), min_size=1, max_size=30))
def test_stacking_equals_numpy(rows: list[tuple[int, float]]) -> None:
    """The stacked vector holds the row's numbers, as NumPy casts them."""
    batch = pa.RecordBatch.from_pydict(
        {"i": pa.array([i for i, _ in rows], pa.int64()), "f": pa.array([f for _, f in rows], pa.float32())}
    )
    encoded = step(columns=["i", "f"], to="x", dtype="float32").encode(batch)
    np.testing.assert_array_equal(tensors.to_numpy(encoded.rows["x"]), np.array(rows, np.float32))
