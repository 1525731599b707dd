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
    assert long.failed[1].message == "the text is longer than max_chars, which is 1"


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


def test_a_value_that_cannot_be_read() -> None:
    """Text that is no UTF-8 and a date beyond year 9999 cost their rows, not the batch."""
    rows = pa.RecordBatch.from_pydict(
        {
            "t": pa.array([b"ok", b"\xff", b"ok"]).view(pa.string()),
            "d": pa.array([1, 2, 10**7], pa.int32()).cast(pa.date32()),
        }
    )
    encoded = step(template="{{ t }} {{ d }}").encode(rows)
    assert encoded.rows["prompt"].to_pylist() == ["ok 1970-01-02", None, None]
    assert {row: failure.code for row, failure in encoded.failed.items()} == {1: "decode", 2: "decode"}
    assert encoded.failed[1].message == "column 't' is not valid UTF-8"
    assert encoded.failed[2].message.startswith("column 'd' cannot be read as a value")


def test_times_have_microseconds() -> None:
    """A time in nanoseconds reads the same whether pandas is installed or not."""
    rows = pa.RecordBatch.from_pydict({"at": pa.array([1_500, None], pa.timestamp("ns"))})
    encoded = step(template="{{ at }}").encode(rows)
    assert encoded.rows["prompt"].to_pylist() == ["1970-01-01 00:00:00.000001", "None"]


def test_a_runaway_template_is_stopped() -> None:
    """A text that would not end is given up at max_chars."""
    loop = "{% for i in range(100000) %}{% for j in range(100000) %}xxxxxxxxxx{% endfor %}{% endfor %}{{ n }}"
    encoded = step(template=loop, max_chars=100).encode(ROWS)
    assert {failure.message for failure in encoded.failed.values()} == {
        "the text is longer than max_chars, which is 100"
    }


def test_an_attribute_that_is_not_there() -> None:
    """A misspelt field of a struct is an error of the row, not an empty text."""
    rows = pa.RecordBatch.from_pydict({"s": [{"name": "A"}]})
    assert step(template="{{ s.name }}").encode(rows).rows["prompt"].to_pylist() == ["A"]
    assert step(template="{{ s.nome }}").encode(rows).failed[0].message == (
        "the template failed: UndefinedError: 'dict object' has no attribute 'nome'"
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("ok\n{{ oops", "the template is wrong in line 2"),
        ("{{ title | nofilter }}", "the template is wrong in line 1: No filter named 'nofilter'"),
        ("{{ title | random }}", "No filter named 'random'"),
        ("{% include 'other' %}", "the template asks for another one, 'other'"),
        ("{% extends title %}", "the template asks for another one, 'None'"),
    ],
)
def test_a_template_that_is_none(template: str, message: str) -> None:
    """What cannot be rendered for any row is refused before the first one; chance is no filter here."""
    with pytest.raises(ContractError, match=message):
        step(template=template).input_columns()


def test_refusals(tmp_path: Path) -> None:
    """No template, two of them, a file that is not there, or bytes, which would be shown as Python does."""
    for options in ({}, {"template": "a", "template_file": "b"}):
        with pytest.raises(ValueError, match="needs either template or template_file"):
            step(**options)
    with pytest.raises(ContractError, match="the template cannot be read"):
        step(template_file=str(tmp_path / "no")).input_columns()
    with pytest.raises(ContractError, match="column 'b' has type binary, and a template takes no bytes"):
        step(template="{{ b }}").output_schema(pa.schema([("b", pa.binary())]))


def test_template_from_a_file(tmp_path: Path) -> None:
    """A file holds the template as well, in UTF-8."""
    (tmp_path / "t.txt").write_text("é {{ n }}\n", encoding="utf-8")
    encoded = step(template_file=str(tmp_path / "t.txt")).encode(ROWS)
    assert encoded.rows["prompt"].to_pylist() == ["é 1", "é 2"]
