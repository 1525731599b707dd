"""`python` in postprocess: the user's function is held to its word on every batch."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from batchinfer.errors import ContractError, DataError
from tests.postprocess.examine import check, f32, make, spec

AFTER_CODE = """
import numpy as np
import pyarrow as pa

def short(results):
    return {"y": results["x"][:1]}

def more(results):
    return {"y": results["x"] * 2.0, "extra": results["x"]}

def words(results):
    return {"y": ["w"] * len(results["x"])}

def arrow(results):
    return {"y": pa.chunked_array([pa.array(["w"] * len(results["x"]), pa.string())])}

def none(results):
    return None

def nonsense(results):
    return {"y": object()}

def wide(results):
    return {"y": np.ones((len(results["x"]), 2))}

def halves(results):
    return {"y": results["x"] / 2}
"""


@pytest.fixture
def after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put the user's module on the path."""
    (tmp_path / "after_words.py").write_text(AFTER_CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "after_words", raising=False)
    return "after_words"


@pytest.mark.parametrize(
    ("function", "output", "message"),
    [
        ("short", {"y": "float32"}, "after_words:short got 3 rows and returned 1 in 'y'"),
        ("short", {"z": "float32"}, "after_words:short returned no 'z'"),
        ("none", {"y": "float32"}, "after_words:none returned NoneType, not a dict"),
        ("nonsense", {"y": "float32"}, "after_words:nonsense returned object in 'y', which is no column"),
        ("words", {"y": "float32"}, r"returned `y: string\[\?\]` where `y: float32\[\?\]` was declared"),
        ("wide", {"y": "float32"}, r"returned `y: float64\[\?, 2\]` where `y: float32\[\?\]` was"),
        ("wide", {"y": "float32[3]"}, r"returned `y: float64\[\?, 2\]` where `y: float32\[\?, 3\]` was"),
        ("halves", {"y": "int64"}, r"returned `y: float32\[\?\]` where `y: int64\[\?\]` was declared"),
    ],
)
def test_the_user_is_held_to_his_word(
    after: str, function: str, output: dict[str, str], message: str
) -> None:
    """Rows, names and types are checked on every batch, and the function is named."""
    step = make("python", function=f"{after}:{function}", output=output)
    step.output_specs(spec("x"))
    with pytest.raises(DataError, match=message):
        step.apply({"x": f32([1, 2, 3])}, {})


def test_what_the_user_may_return(after: str) -> None:
    """Declared results only, cast to their types; texts as lists, words of Arrow in chunks."""
    x = {"x": f32([1, 2])}
    found = check(make("python", function=f"{after}:more", output={"y": "float64"}), x, spec("x"))
    assert (list(found), found["y"].dtype) == (["y"], np.float64)
    for function in ("words", "arrow"):
        step = make("python", function=f"{after}:{function}", output={"y": "string"})
        assert check(step, x, spec("x"))["y"].to_pylist() == ["w", "w"]
    step = make("python", function=f"{after}:wide", output={"y": "float32[2]"})
    assert check(step, x, spec("x"))["y"].dtype == np.float32
    assert check(make("python", function=f"{after}:arrow"), x, spec("x"))["y"].type == pa.string()


def test_results_of_unknown_type(after: str) -> None:
    """An empty list says nothing of its type; a function that is not there is found before any row."""
    with pytest.raises(ContractError, match="after_words:words returns 'y' without a type for empty arrays"):
        make("python", function=f"{after}:words").output_specs(spec("x"))
    with pytest.raises(ContractError, match="takes no empty arrays, so that its results are unknown: after_"):
        make("python", function=f"{after}:none").output_specs(spec("x"))
    with pytest.raises(ContractError, match="cannot import after_words:nope"):
        make("python", function=f"{after}:nope", output={"y": "float32"}).output_specs(spec("x"))
    with pytest.raises(ContractError, match="no such type"):
        make("python", function=f"{after}:more", output={"y": "flaot"}).output_specs(spec("x"))


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
