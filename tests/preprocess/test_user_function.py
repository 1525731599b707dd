"""`python` in preprocess: the user's function is held to its word on every batch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batchinfer.errors import ContractError, DataError
from batchinfer.preprocess.user_function import Python, PythonOptions

CODE = """
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

def doubled(rows):
    return rows.append_column("y", pc.multiply(rows["x"], 2))

def as_dict(rows):
    return {"y": [value * 2 for value in rows["x"].to_pylist()]}

def shorter(rows):
    return {"y": pa.array([1.0] * max(rows.num_rows - 1, 0))}

def fails(rows):
    raise RuntimeError("no luck")

def wrong(rows):
    return 3

def picky(rows):
    return {"y": pa.array([rows["x"][0].as_py()])}

def lower(rows):
    return {"t": pc.utf8_lower(rows["t"])}

def table(rows):
    return pa.table({"y": rows["x"]})

def two_axes(rows):
    return {"y": np.ones((rows.num_rows, 3))}

def untyped(rows):
    return {"y": [1.0 for _ in range(rows.num_rows)]}

def seen(rows):
    return {"y": pa.array([",".join(rows.schema.names)] * rows.num_rows, pa.string())}

def nonsense(rows):
    return {"y": [object()] * rows.num_rows}

def missing(rows):
    return {"z": rows["x"]}

def texts(rows):
    return {"y": pa.array(["a"] * rows.num_rows)}
"""
ROWS = pa.RecordBatch.from_pydict({"x": [1.0, 2.0, 3.0]})


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put the user's module on the path."""
    (tmp_path / "users_code.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "users_code", raising=False)
    return "users_code"


def step(function: str, **options: Any) -> Python:
    return Python(PythonOptions.model_validate_json(json.dumps({"function": function, **options})))


def test_arrow_in_arrow_out(module: str) -> None:
    """A batch comes back with its new column; the type is known from an empty batch."""
    made = step(f"{module}:doubled")
    assert made.output_schema(ROWS.schema) == pa.schema([("x", pa.float64()), ("y", pa.float64())])
    assert made.encode(ROWS).rows["y"].to_pylist() == [2.0, 4.0, 6.0]


def test_a_dict_with_declared_types(module: str) -> None:
    """A dict of lists is cast to what the job declares."""
    made = step(f"{module}:as_dict", output={"y": "float32"})
    made.output_schema(ROWS.schema)
    assert made.encode(ROWS).rows["y"].type == pa.float32()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("shorter", "got 3 rows and returned 2 in 'y'"),
        ("fails", "users_code:fails raised RuntimeError\n"),
        ("wrong", "returned int, not a RecordBatch or a dict"),
        ("missing", "users_code:missing returned no column 'y'"),
        ("nonsense", "returned list in 'y', where float64 was declared"),
        ("two_axes", r"returned float64\[\?, 3\] in 'y', where float64 was declared"),
        ("texts", "returned string in 'y', where float64 was declared"),
    ],
)
def test_broken_words(module: str, function: str, message: str) -> None:
    """Too few rows, an exception, another type: an error that names the function."""
    made = step(f"{module}:{function}", output={"y": "float64"})
    made.output_schema(ROWS.schema)
    with pytest.raises(DataError, match=message):
        made.encode(ROWS)


def test_a_column_of_the_same_type_is_replaced(module: str) -> None:
    """What the function returns counts, also where the type is that of the input."""
    rows = pa.RecordBatch.from_pydict({"t": ["Ab", "C"], "n": [1, 2]})
    made = step(f"{module}:lower")
    assert made.output_schema(rows.schema) == rows.schema
    assert made.encode(rows).rows.to_pydict() == {"t": ["ab", "c"], "n": [1, 2]}


def test_tables_and_numpy(module: str) -> None:
    """A Table is taken as a batch is; a NumPy array of two axes becomes a vector per row, cast as declared."""
    made = step(f"{module}:table")
    made.output_schema(ROWS.schema)
    assert made.encode(ROWS).rows["y"].to_pylist() == [1.0, 2.0, 3.0]
    made = step(f"{module}:two_axes")
    assert made.output_schema(ROWS.schema).field("y").type == pa.list_(pa.float64(), 3)
    made = step(f"{module}:two_axes", output={"y": "float32[3]"})
    made.output_schema(ROWS.schema)
    assert made.encode(ROWS).rows["y"].type == pa.list_(pa.float32(), 3)


def test_no_rows_are_no_news(module: str) -> None:
    """A function that needs a row is not called for a chunk without one."""
    made = step(f"{module}:picky", output={"y": "float64"})
    made.output_schema(ROWS.schema)
    found = made.encode(ROWS.slice(0, 0)).rows
    assert (found.num_rows, found.schema.field("y").type) == (0, pa.float64())


def test_only_named_columns_are_given(module: str) -> None:
    """`columns` is what the function gets, for no rows as for all; by default all there are."""
    rows = pa.RecordBatch.from_pydict({"x": [1.0], "other": [2]})
    named = step(f"{module}:seen", columns=["x"])
    assert named.input_columns() == frozenset({"x"})
    named.output_schema(rows.schema)
    assert named.encode(rows).rows["y"].to_pylist() == ["x"]
    every = step(f"{module}:seen")
    every.output_schema(rows.schema)
    assert every.encode(rows).rows["y"].to_pylist() == ["x,other"]


def test_the_line_is_named(module: str) -> None:
    """An exception in the user's code is shown with its file and line."""
    made = step(f"{module}:fails", output={"y": "float64"})
    made.output_schema(ROWS.schema)
    with pytest.raises(DataError) as caught:
        made.encode(ROWS)
    assert caught.value.where is not None
    assert caught.value.where.endswith("users_code.py:16")


def test_refusals(module: str) -> None:
    """A function that is not there, or that takes no empty batch and declares nothing."""
    for output in (None, {"y": "float32"}):
        with pytest.raises(ContractError, match="cannot import users_code:nope"):
            step(f"{module}:nope", output=output).output_schema(ROWS.schema)
    with pytest.raises(ContractError, match="no such type: 'flaot'"):
        step(f"{module}:picky", output={"y": "flaot"}).output_schema(ROWS.schema)
    with pytest.raises(ContractError, match="users_code:untyped returns 'y' without a type for an empty"):
        step(f"{module}:untyped").output_schema(ROWS.schema)
    with pytest.raises(ContractError, match="declare them") as caught:
        step(f"{module}:picky").output_schema(ROWS.schema)
    assert "does not take an empty batch" in str(caught.value)
