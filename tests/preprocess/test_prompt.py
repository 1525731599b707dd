"""`prompt` renders its template over a row, and reaches nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batchinfer.errors import ContractError
from batchinfer.preprocess.prompt import Prompt, PromptOptions

ROWS = pa.RecordBatch.from_pydict({"title": ["A", None], "n": [1, 2], "tags": [["x", "y"], []]})


def step(**options: Any) -> Prompt:
    return Prompt(PromptOptions.model_validate_json(json.dumps(options)))


def test_renders_each_row() -> None:
    """Columns are names, a null is None, lists are lists; the needed columns are known beforehand."""
    made = step(template="{{ title or 'none' }}: {{ tags | join('+') }}", to="text")
    assert made.input_columns() == {"title", "tags"}
    assert made.output_schema(ROWS.schema).field("text").type == pa.string()
    assert made.encode(ROWS).rows["text"].to_pylist() == ["A: x+y", "none: "]


def test_a_template_without_columns() -> None:
    """A constant prompt is one per row."""
    assert step(template="hi").encode(ROWS).rows["prompt"].to_pylist() == ["hi", "hi"]


def test_a_row_that_fails() -> None:
    """What goes wrong in one row costs that row."""
    encoded = step(template="{{ 10 // (n - 1) }}").encode(ROWS)
    assert encoded.failed[0].message.startswith("the template failed: ZeroDivisionError")
    assert encoded.rows["prompt"].to_pylist() == [None, "10"]
    long = step(template="{{ 'x' * n }}", max_chars=1).encode(ROWS)
    assert long.failed[1].message == "the text has 2 characters, max_chars is 1"


@pytest.mark.parametrize(
    "attack",
    [
        "{{ title.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ tags.append('z') }}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_the_sandbox_holds(attack: str) -> None:
    """A template reaches neither Python nor the data behind the row."""
    encoded = step(template=attack).encode(ROWS)
    assert set(encoded.failed) == {0, 1}


def test_refusals(tmp_path: Path) -> None:
    """A template that is none, two of them, or a file that is not there."""
    with pytest.raises(ContractError, match="the template is wrong in line 2"):
        step(template="ok\n{{ oops").input_columns()
    with pytest.raises(ValueError, match="needs either template or template_file"):
        step(template="a", template_file="b")
    with pytest.raises(ContractError, match="the template cannot be read"):
        step(template_file=str(tmp_path / "no")).input_columns()
