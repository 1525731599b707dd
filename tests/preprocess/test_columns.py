"""`columns`: casts, stacks, and what it does with nulls and numbers that do not fit."""

from __future__ import annotations

import json
import re
from decimal import Decimal
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


def encoded(rows: pa.RecordBatch, **options: Any) -> tuple[pa.RecordBatch, dict[int, str]]:
    """Encode, and hold the result against the schema that was promised."""
    made = step(**options)
    promised = made.output_schema(rows.schema)
    found = made.encode(rows)
    assert found.rows.schema.names == promised.names
    assert found.rows.schema.types == promised.types
    assert found.rows.num_rows == rows.num_rows
    return found.rows, {row: failure.message for row, failure in found.failed.items()}


def batch(**columns: Any) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns)


def test_stacks_into_a_vector() -> None:
    """Scalars and fixed lists become one vector per row, in the order of the job, in one dtype."""
    made = step(columns=["b", "v", "flag"], to="features", dtype="float32", nulls="zero")
    schema = made.output_schema(ROWS.schema)
    assert schema.field("features").type == pa.list_(pa.float32(), 4)
    done = made.encode(ROWS)
    assert done.failed == {}
    values = tensors.to_numpy(done.rows["features"])
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
    done = step(columns=["a"], dtype="int32", nulls="zero").encode(ROWS)
    assert {row: failure.message for row, failure in done.failed.items()} == {
        3: "column 'a' holds a number that does not fit int32"
    }
    assert done.rows["a"].to_pylist()[:3] == [1, 2, 0]


@pytest.mark.parametrize(
    ("column", "dtype", "bad"),
    [
        (pa.array([-1, 1], pa.int8()), "uint8", {0}),
        (pa.array([2**63, 1], pa.uint64()), "int64", {0}),
        (pa.array([300, -300, 5], pa.int16()), "int8", {0, 1}),
        (pa.array([1e300, 1.0, float("inf"), float("nan")]), "float32", {0}),
        (pa.array([70_000, 1]), "float16", {0}),
        (pa.array([2, 1, 0]), "bool", {0}),
        (pa.array([float("nan"), 1.5, 2.0, float("inf")]), "int32", {0, 1, 3}),
        (pa.array([2.0**63, -(2.0**63), 2.0**62]), "int64", {0}),
        (pa.array([True, False]), "int8", set()),
        (pa.array([2**40 + 1]), "float32", set()),
    ],
)
def test_no_number_becomes_another(column: pa.Array, dtype: str, bad: set[int]) -> None:
    """What wraps around, is cut or grows infinite costs its row; what is merely rounded does not."""
    _, failed = encoded(batch(c=column), columns=["c"], dtype=dtype)
    assert failed == dict.fromkeys(sorted(bad), f"column 'c' holds a number that does not fit {dtype}")


@given(
    st.lists(st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-300, 300)), min_size=1, max_size=20),
    st.sampled_from(["int8", "int16", "int32", "uint8", "int64"]),
)
def test_whole_numbers_survive_or_fail(numbers: list[int], dtype: str) -> None:
    """After a cast among whole numbers, a row holds its own number or has failed."""
    rows, failed = encoded(batch(c=pa.array(numbers, pa.int64())), columns=["c"], dtype=dtype)
    bounds = np.iinfo(dtype)
    assert set(failed) == {at for at, n in enumerate(numbers) if not bounds.min <= n <= bounds.max}
    kept = [at for at in range(len(numbers)) if at not in failed]
    assert [rows["c"][at].as_py() for at in kept] == [numbers[at] for at in kept]


def test_no_rows() -> None:
    """A chunk whose rows have all failed before is encoded like any other."""
    none = ROWS.slice(0, 0)
    rows, failed = encoded(none, columns=["a", "b", "v"], to="f", dtype="float32")
    assert (rows.num_rows, failed) == (0, {})
    assert encoded(none, columns=["a"], dtype="int8")[1] == {}


def test_a_column_may_stand_twice() -> None:
    """A column that is named twice is two features."""
    rows, _ = encoded(batch(x=[1.0, 2.0], y=[3.0, 4.0]), columns=["x", "y", "x"], to="f")
    assert rows["f"].to_pylist() == [[1, 3, 1], [2, 4, 2]]


def test_only_the_null_becomes_nan() -> None:
    """nulls: nan and nulls: zero replace what is null, not the numbers beside it; also in a slice."""
    column = pa.array([[9, 9], [5, None], None, [7, 8]], pa.list_(pa.float32(), 2))
    rows, _ = encoded(batch(v=column).slice(1), columns=["v"], nulls="nan")
    np.testing.assert_array_equal(
        tensors.to_numpy(rows["v"]), np.array([[5, np.nan], [np.nan, np.nan], [7, 8]], np.float32)
    )
    rows, _ = encoded(batch(v=column).slice(1), columns=["v"], nulls="zero")
    assert rows["v"].to_pylist() == [[5, 0], [0, 0], [7, 8]]


def test_other_ways_to_hold_numbers() -> None:
    """Decimals, dictionaries of numbers and tensors of one axis are numbers like any other."""
    tensor = pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float32(), [2]), pa.array([[1, 2], None], pa.list_(pa.float32(), 2))
    )
    rows = batch(
        price=pa.array([Decimal("1.5"), Decimal("2.25")]),
        kind=pa.array([7, 8], pa.int32()).dictionary_encode(),
        t=tensor,
    )
    stacked, _ = encoded(rows, columns=["price", "kind", "t"], to="f", dtype="float32", nulls="zero")
    assert stacked["f"].to_pylist() == [[1.5, 7, 1, 2], [2.25, 8, 0, 0]]


def test_a_row_keeps_its_first_reason() -> None:
    """A row that fails in two columns is told of the first, in the order of the job."""
    rows = batch(a=pa.array([None], pa.int64()), b=pa.array([None], pa.int64()))
    assert encoded(rows, columns=["b", "a"])[1] == {0: "column 'b' is null"}


@pytest.mark.parametrize(
    ("column", "options", "message", "hint"),
    [
        (pa.array(["x"]), {}, "column 'c' has type string, which is no number", "by a python step"),
        (pa.array([0], pa.date32()), {}, "has type date32, which is no number", r"\(a year, an hour\)"),
        (pa.array([0], pa.timestamp("us")), {}, r"has type timestamp\[us\], which is no number", "a year"),
        (pa.array([[1.0]]), {}, "has type list<float64>, which is no number", "fixed-size lists"),
        (pa.array([b"x"]), {}, "has type binary, which is no number", "by a python step"),
        (pa.array([1]), {"nulls": "nan"}, "nulls: nan needs a float dtype", "set dtype: float32"),
        (
            pa.array([1]),
            {"columns": ["c", "d"], "to": "f"},
            "columns of types float64 and int64 cannot be stacked",
            "set a dtype for them all",
        ),
    ],
)
def test_refusals(column: pa.Array, options: dict[str, Any], message: str, hint: str) -> None:
    """What is no tensor is refused before any row, with the way out."""
    schema = pa.schema([("c", column.type), ("d", pa.float64())])
    with pytest.raises(ContractError, match=message) as caught:
        step(**{"columns": ["c"], **options}).output_schema(schema)
    assert caught.value.hint is not None
    assert re.search(hint, caught.value.hint)


def test_no_copy_where_none_is_needed() -> None:
    """A column of the wanted type goes to the tensor as the memory it was read into, stacked alone too."""
    rows = pa.RecordBatch.from_pydict({"x": pa.array(np.arange(8, dtype=np.float32))})
    done = step(columns=["x"], dtype="float32").encode(rows)
    assert tensors.to_numpy(done.rows["x"]).ctypes.data == tensors.to_numpy(rows["x"]).ctypes.data
    alone = step(columns=["x"], to="f").encode(rows)
    assert tensors.to_numpy(alone.rows["f"]).ctypes.data == tensors.to_numpy(rows["x"]).ctypes.data


@given(st.lists(st.tuples(st.integers(-100, 100), st.floats(-10, 10, width=32)), min_size=1, max_size=30))
def test_stacking_equals_numpy(rows: list[tuple[int, float]]) -> None:
    """The stacked vector holds the row's numbers, as NumPy casts them."""
    table = pa.RecordBatch.from_pydict(
        {"i": pa.array([i for i, _ in rows], pa.int64()), "f": pa.array([f for _, f in rows], pa.float32())}
    )
    done = step(columns=["i", "f"], to="x", dtype="float32").encode(table)
    np.testing.assert_array_equal(tensors.to_numpy(done.rows["x"]), np.array(rows, np.float32))
