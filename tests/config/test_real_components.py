"""The options of every registered component: documented, without leaks, and safe against any value."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from batchinfer import registry
from batchinfer.config import Job, fingerprint, json_schema, load_job
from batchinfer.config.fields import fields_by_key, is_marked, literals
from batchinfer.errors import JobFileError
from batchinfer.options import Options, Secret

REAL_COMPONENTS = True

LEAST: dict[str, Any] = {
    "job": "a",
    "input": {"path": "d"},
    "model": {"path": "m.onnx", "backend": "onnx"},
    "output": {"path": "o"},
}
SECTIONS = {"sources": "input", "backends": "model", "sinks": "output"}
SELECTORS = {"sources": "format", "backends": "backend", "sinks": "format"}
LISTS = {"preprocessors": "preprocess", "postprocessors": "postprocess"}


def components() -> Iterator[tuple[str, str, Any]]:
    """Yield every built-in component as (kind, name, class)."""
    for kind, classes in registry.BUILT_IN.items():
        for name in classes:
            yield kind, name, registry.load(kind, name)


def test_every_key_is_documented() -> None:
    """Each property of the schema has a description: the docstring below the field."""
    for name, definition in json_schema()["$defs"].items():
        for key, schema in definition.get("properties", {}).items():
            assert schema.get("description"), f"{name}: {key}"


def test_no_secret_is_printed() -> None:
    """A field that holds a secret stays out of the text of its options."""
    for kind, name, component in components():
        for key, field in fields_by_key(component.Options).items():
            assert not is_marked(field, Secret) or not field.repr, f"{kind} {name}: {key}"


def test_providers_are_as_neutral_as_devices(tmp_path: Path) -> None:
    """Where an ONNX model is computed stays out of the fingerprint, by whichever key it is chosen."""
    (tmp_path / "m.onnx").write_bytes(b"")
    model = {"path": str(tmp_path / "m.onnx"), "backend": "onnx"}
    plain = fingerprint(load_job({**LEAST, "model": model}))
    assert fingerprint(load_job({**LEAST, "model": {**model, "providers": ["cpu"]}})) == plain
    assert fingerprint(load_job({**LEAST, "model": {**model, "tf32": True}})) != plain


def test_a_shorthand_is_a_key() -> None:
    """What `- step: value` sets is a key of the step."""
    for kind, name, component in components():
        shorthand = getattr(component.Options, "shorthand", None)
        assert shorthand is None or shorthand in fields_by_key(component.Options), f"{kind} {name}"


def values(cls: type[Options]) -> st.SearchStrategy[dict[str, Any]]:
    """Return mappings of a class's keys to values that may or may not fit."""
    words = [word for field in fields_by_key(cls).values() for word in literals(field.annotation) if word]
    some = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-1, 3),
        st.floats(-1, 2),
        st.sampled_from([*words, "a", "b:c", "{{ x }", "{{ x }}", "[", "float32[3]", "1%", "", "x > 3"]),
        st.text(max_size=5),
    )
    nested = st.one_of(
        some,
        st.lists(some, max_size=3),
        st.dictionaries(st.sampled_from(["a", "b"]), st.one_of(some, st.lists(some, max_size=2)), max_size=2),
    )
    return st.dictionaries(st.sampled_from(sorted(fields_by_key(cls))), nested, max_size=5)


def job_of(kind: str, name: str, options: Any) -> dict[str, Any]:
    """Return a job in which one component has some options."""
    if kind in LISTS:
        return {**LEAST, LISTS[kind]: [{name: options}]}
    section = SECTIONS[kind]
    return {**LEAST, section: {**LEAST[section], **options, SELECTORS[kind]: name}}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in registry.BUILT_IN for name in registry.BUILT_IN[kind]]
)
def test_any_options(kind: str, name: str) -> None:
    """Whatever stands under a component's keys is a job or a report; the schema takes what the loader takes."""
    cls = registry.load(kind, name).Options
    validator = Draft202012Validator(json_schema())

    @settings(max_examples=25, deadline=None)
    @given(values(cls))
    def check(options: dict[str, Any]) -> None:
        document = job_of(kind, name, options)
        try:
            job = load_job(document)
        except JobFileError as error:
            report = str(error)
        else:
            report = ""
        assert "pydantic" not in report
        assert "Input should" not in report
        if report:
            return
        assert Job.from_message(job.to_message()) == job
        assert list(validator.iter_errors(document)) == []

    check()
