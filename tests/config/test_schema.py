"""The schema is valid, describes every key, and accepts what the loader accepts."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from batchinfer.config import json_schema, load_job
from batchinfer.config.load import SECTIONS
from batchinfer.errors import JobFileError

ROOT = Path(__file__).resolve().parents[2]
LEAST: dict[str, Any] = {
    "job": "a",
    "input": {"path": "d"},
    "model": {"path": "m.onnx"},
    "output": {"path": "o"},
}


@pytest.fixture
def validator() -> Draft202012Validator:
    """Return a validator for the schema of the stand-ins."""
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def test_every_section_is_described() -> None:
    """Every top-level key has a description for the editor, in the words of its class."""
    properties = json_schema()["properties"]
    assert list(properties) == [*dict.fromkeys([*SECTIONS[:4], *properties])]
    assert set(properties) == set(SECTIONS)
    assert all(section["description"] for section in properties.values())
    limit = json_schema()["$defs"]["input.csv"]["properties"]["limit"]
    assert limit["description"].startswith("Read at most so many rows")


PARAMS = {"params": {"x": 3}}
GOOD: list[dict[str, Any]] = [
    {},
    {"batching": {"size": "${param:x}"}, **PARAMS},
    {"batching": None, "preprocess": None, "compute": {"devices": ["cuda:0"]}},
    {"compute": {"devices": 2, "threads": "auto"}},
    {"preprocess": ["image", {"image": None}, {"image": {"crops": [{"width": 3}]}}]},
    {
        "preprocess": [{"tokenize": {"column": "a", "tokenizer": "t", "max_length": "${param:x}"}}],
        "params": {"x": 3},
    },
    {"postprocess": ["softmax", {"softmax": "x"}, {"rename": {"a": "b"}}, {"rename": {"names": {"a": "b"}}}]},
    {"input": {"path": ["a", "b"], "format": "csv", "delimiter": ";"}},
    {"input": {"path": "a.csv", "format": None, "delimiter": ";"}},
    {"model": {"backend": "onnx", "path": "m", "providers": ["cpu"]}},
    {"output": {"path": "o", "format": "jsonl", "compression": "none", "columns": {"a": "int64"}}},
    {"observe": {"pushgateway": {"url": "http://h:1", "every": 3}}},
    {"errors": {"max": 3}, "labels": {"a": "b"}, "version": 1, "description": None},
]
BAD: list[dict[str, Any]] = [
    {"batch_size": 3},
    {"batching": {"size": "large"}},
    {"batching": {"sise": 3}},
    {"preprocess": [{"tokenise": {}}]},
    {"preprocess": ["tokenize"]},
    {"preprocess": [{"image": {}, "tokenize": {}}]},
    {"input": {"path": "d", "format": "parquet", "delimiter": ";"}},
    {"input": {"format": "csv"}},
    {"input": {"path": "d", "format": "excel"}},
    {"model": {"path": "m.onnx", "backend": "torch", "providers": ["cpu"]}},
    {"version": 2},
    {"params": {"a": [1]}},
    {"job": 3},
]


@pytest.mark.parametrize("change", GOOD)
def test_it_accepts_good_jobs(validator: Draft202012Validator, change: dict[str, Any]) -> None:
    """What the loader takes, an editor does not underline."""
    load_job({**LEAST, **change})
    assert list(validator.iter_errors({**LEAST, **change})) == []


@pytest.mark.parametrize("change", BAD)
def test_it_refuses_bad_jobs(validator: Draft202012Validator, change: dict[str, Any]) -> None:
    """Unknown keys, wrong types and options of another format are underlined while typing."""
    with pytest.raises(JobFileError):
        load_job({**LEAST, **change})
    assert list(validator.iter_errors({**LEAST, **change}))


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 300),
    st.floats(0, 2),
    st.sampled_from(["auto", "rows", "cpu", "csv", "jsonl", "onnx", "x", "1%", "hive", "${param:p}", "fp16"]),
    st.lists(st.sampled_from(["a", "b", "cuda:0"]), max_size=2),
    st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from(["x", "int64"]), max_size=2),
)
PROPERTIES = {
    name: sorted(definition.get("properties", {}))
    for name, definition in json_schema()["$defs"].items()
    if name in ("batching", "checkpoint", "errors", "compute", "observe")
}
SHARED = {
    "input": ["partitioning", "columns", "where", "limit", "sample", "format", "storage_options"],
    "model": ["version", "inputs", "precision", "forbid_nan", "backend", "allow_unsafe_model"],
    "output": ["carry", "columns", "partition_by", "meta", "commit", "format"],
}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_it_accepts_what_the_loader_accepts(data: st.DataObject) -> None:
    """Whatever values stand under known keys: if the loader takes the job, so does the schema."""
    section = data.draw(st.sampled_from(sorted({**PROPERTIES, **SHARED})))
    names = st.sampled_from({**PROPERTIES, **SHARED}[section])
    values = data.draw(st.dictionaries(names, VALUES, max_size=3))
    document = {**LEAST, section: {**LEAST.get(section, {}), **values}}
    if "${param:p}" in json.dumps(values):
        document["params"] = {"p": data.draw(st.sampled_from([3, "x", True]))}
    try:
        load_job(document)
    except JobFileError:
        return
    assert list(stand_in_validator().iter_errors(document)) == []


@functools.cache
def stand_in_validator() -> Draft202012Validator:
    """Return a validator that is made once."""
    return Draft202012Validator(json_schema())


def printed_by(code: str) -> str:
    """Return what a fresh interpreter prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def test_the_committed_schema_is_the_generated_one() -> None:
    """`schemas/job.schema.json` is what `batchinfer schema` prints with the components of this package."""
    code = "import json; from batchinfer.config import json_schema; print(json.dumps(json_schema()))"
    assert json.loads(printed_by(code)) == json.loads((ROOT / "schemas/job.schema.json").read_text())


def test_loading_imports_nothing_heavy() -> None:
    """Importing and loading needs no torch, onnxruntime, transformers, tokenizers or store client."""
    code = """
import sys
from batchinfer.config import json_schema, load_job
json_schema()
heavy = {"torch", "onnxruntime", "transformers", "tokenizers", "PIL", "jinja2", "obstore", "fsspec", "rich"}
print(sorted(heavy & sys.modules.keys()))
"""
    assert printed_by(code).strip() == "[]"
