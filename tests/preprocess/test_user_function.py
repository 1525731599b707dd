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
        ("fails", "users_code:fails raised RuntimeError: no luck"),
        ("wrong", "returned int, not a RecordBatch or a dict"),
        ("texts", "returned string in 'y', where double was declared"),
    ],
)
def test_broken_words(module: str, function: str, message: str) -> None:
    """Too few rows, an exception, another type: an error that names the function."""
    made = step(f"{module}:{function}", output={"y": "float64"})
    made.output_schema(ROWS.schema)
    with pytest.raises(DataError, match=message):
        made.encode(ROWS)


def test_the_line_is_named(module: str) -> None:
    """An exception in the user's code is shown with its file and line."""
    made = step(f"{module}:fails", output={"y": "float64"})
    made.output_schema(ROWS.schema)
    with pytest.raises(DataError) as caught:
        made.encode(ROWS)
    assert caught.value.where is not None
    assert caught.value.where.endswith("users_code.py:15")


def test_refusals(module: str) -> None:
    """A function that is not there, or that takes no empty batch and declares nothing."""
    with pytest.raises(ContractError, match="cannot import users_code:nope"):
        step(f"{module}:nope").output_schema(ROWS.schema)
    with pytest.raises(ContractError, match="declare them") as caught:
        step(f"{module}:picky").output_schema(ROWS.schema)
    assert "does not take an empty batch" in str(caught.value)
