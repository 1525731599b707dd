"""Whatever the file holds: a job, or a JobFileError whose every line has a place."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.config import Job, load_job
from batchinfer.config.load import SECTIONS, interpret
from batchinfer.config.problems import KeyPath, Place, Problems
from batchinfer.config.scalars import scalar
from batchinfer.config.substitution import substitute_params
from batchinfer.config.yaml_tree import parse_job
from batchinfer.errors import JobFileError

KEYS = ["path", "format", "backend", "size", "carry", "columns", "max", "devices", "url", "where"]
STEPS = ["tokenize", "softmax", "rename", "python", "image", "crops", "width", "storage_options", "entry"]
WORDS = [*KEYS, *STEPS, "inputs", "pushgateway"]
SNARES = ["${param:a}", "${env:HOME}", "${", "$${x", "auto", "os:system", "x.onnx", "s3://b/*", "1%", "\0"]
TEXTS = st.one_of(st.sampled_from(SNARES), st.text(max_size=8))
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(WORDS), TEXTS), inner, max_size=3),
    ),
    max_leaves=12,
)
JOBS = st.dictionaries(st.one_of(st.sampled_from(SECTIONS), TEXTS), VALUES, max_size=6)


def outcome(document: Any) -> Job | None:
    """Load a job, or check the report that refuses it."""
    try:
        return load_job(document)
    except JobFileError as error:
        check_report(str(error))
        return None


def check_report(report: str) -> None:
    """A report has a place in each line, no control characters, and no words of our libraries."""
    for line in report.split("\n"):
        assert re.match(r"job(\.yaml:\d+:\d+)?(: |  )", line), line
        assert line.isprintable()
    assert not re.search(r"pydantic|Input should|validation error|yaml\.org/|NoneType", report)


@settings(max_examples=150, deadline=None)
@given(JOBS)
def test_any_tree(document: dict[str, Any]) -> None:
    """Any tree under any keys is a job or a report."""
    outcome(document)


@settings(max_examples=100, deadline=None)
@given(JOBS, st.sampled_from(SECTIONS))
def test_any_section_in_a_good_job(document: dict[str, Any], section: str) -> None:
    """Any value in any section of a job that is otherwise right is a job or a report."""
    good = {"job": "a", "input": {"path": "d"}, "model": {"path": "m.onnx"}, "output": {"path": "o"}}
    job = outcome({**good, section: document.get(section, document)})
    if job is not None:
        assert Job.from_message(json.loads(json.dumps(job.to_message()))) == job


def load_bytes(data: bytes) -> Job | None:
    """Load a job file from its bytes."""
    problems = Problems("job.yaml")
    with contextlib.suppress(JobFileError):
        try:
            tree = parse_job(data, problems)
            document, _ = substitute_params(tree.value, {}, problems, written=tree.plain)
            return interpret(document, problems, root="/nowhere", params={}, written=tree.plain)
        except JobFileError as error:
            check_report(str(error))
    return None


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
def test_any_bytes(data: bytes) -> None:
    """Any bytes are a job or a report."""
    load_bytes(data)


SNIPPETS = st.text(alphabet="{}[]&*!|>%@`'\"#:,-? \n\ta1~<\\", max_size=6)
GOOD = """\
job: a
input:
  path: data
model: {path: m.onnx}
preprocess:
  - python: "text_length:f"
postprocess: [softmax, {rename: {a: b}}]
output:
  path: out
  carry: [id]
"""


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(GOOD)), st.integers(0, 12), SNIPPETS)
def test_any_slip_of_the_hand(at: int, removed: int, inserted: str) -> None:
    """A good job file with a piece cut out or put in is a job or a report."""
    load_bytes((GOOD[:at] + inserted + GOOD[at + removed :]).encode())


PRINTABLE = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), max_size=10)
NUMBERS = st.one_of(st.integers(-(2**63) + 1, 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, PRINTABLE),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(PRINTABLE, inner, max_size=4)),
    max_leaves=15,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(PRINTABLE, JSON, max_size=4), st.sampled_from([None, 1, 2]))
def test_json_means_what_it_says(value: dict[str, Any], indent: int | None) -> None:
    """JSON is YAML: every JSON text is read as the values that it was written from."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    assert parse_job(text.encode(), Problems("job.yaml")).value == value


NAMES = st.text(alphabet="abcdef", min_size=1, max_size=6)
BLOCKS = st.recursive(
    st.just("x"),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3), st.dictionaries(NAMES, inner, min_size=1, max_size=3)
    ),
    max_leaves=8,
)


def written(value: Any, indent: int) -> Iterator[str]:
    """Yield the lines of a value in YAML's block style."""
    items = value.items() if isinstance(value, dict) else ((None, item) for item in value)
    for key, item in items:
        head = " " * indent + ("-" if key is None else f"{key}:")
        if isinstance(item, str):
            yield f"{head} {item}"
        else:
            yield head
            yield from written(item, indent + 2)


def keys(value: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Yield the path of every key and list item of a value."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*path, key)
            yield from keys(item, (*path, key))


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(NAMES, BLOCKS, min_size=1, max_size=4))
def test_every_key_knows_its_place(value: dict[str, Any]) -> None:
    """The line and column of a key are where its text stands."""
    lines = list(written(value, 0))
    tree = parse_job("\n".join(lines).encode(), Problems("job.yaml"))
    assert tree.value == value
    assert set(tree.places) - {()} == set(keys(value))
    for path, place in tree.places.items():
        if path and isinstance(path[-1], str):
            assert lines[place.line - 1][place.column - 1 :].startswith(f"{path[-1]}:")
    assert tree.places[()] == Place(1, 1)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("NO", "NO"),
        ("yes", "yes"),
        ("on", "on"),
        ("12:30:00", "12:30:00"),
        ("2026-10-01", "2026-10-01"),
        ("0777", "0777"),
        ("0x1F", "0x1F"),
        ("1_000", "1_000"),
        (".inf", ".inf"),
        ("1.10", 1.1),
        ("1e-5", 1e-5),
        ("-3", -3),
        ("+.5", 0.5),
        ("~", None),
        ("", None),
        ("True", True),
        ("false", False),
    ],
)
def test_unquoted_words(text: str, value: object) -> None:
    """Words are text unless YAML 1.2 and JSON agree that they are not."""
    found = scalar(text)
    assert (type(found), found) == (type(value), value)
