"""The job file as JSON Schema 2020-12, put together from the classes that check it: for editors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from batchinfer import registry
from batchinfer.config.descriptions import describe_fields
from batchinfer.config.error_section import ErrorsOptions
from batchinfer.config.limits import LimitsOptions
from batchinfer.config.sections import (
    BatchingOptions,
    CheckpointOptions,
    ComputeOptions,
    InputOptions,
    JobHead,
    ModelOptions,
    ObserveOptions,
    OutputOptions,
)
from batchinfer.options import Options

Schema: TypeAlias = dict[str, Any]

_SECTIONS: Mapping[str, type[Options]] = {
    "batching": BatchingOptions,
    "checkpoint": CheckpointOptions,
    "errors": ErrorsOptions,
    "compute": ComputeOptions,
    "limits": LimitsOptions,
    "observe": ObserveOptions,
}
_CHOSEN: Mapping[str, type[Options]] = {"input": InputOptions, "model": ModelOptions, "output": OutputOptions}
_PARAM = {"$ref": "#/$defs/param"}
_NULL = {"type": "null"}
_RESTRICTING = {"enum", "const", "pattern", "minLength", "maxLength", "format"}
_SECTION_WORDS = {
    "input": "Which rows to read, and from where.",
    "model": "Which model runs, and how its inputs and outputs are named.",
    "output": "Where results go, and what they hold.",
    "preprocess": "Steps in order, from the columns that are read to the tensors that the model takes.",
    "postprocess": "Steps in order, from the model's outputs to the columns that are written.",
}


def json_schema() -> Schema:
    """Return the schema of a whole job file. Components that cannot be imported are left out."""
    defs: Schema = {
        "param": {
            "description": "A parameter of the job, from `params` or `--param NAME=VALUE`.",
            "type": "string",
            "pattern": r"^\$\{param:[A-Za-z_][A-Za-z0-9_]*\}$",
        }
    }
    head = _of_class(JobHead, "head", defs)
    properties: Schema = {
        **head["properties"],
        "params": _params(),
        "input": _chosen("input", "sources", "format", defs),
        "preprocess": _steps("preprocess", "preprocessors", defs),
        "model": _chosen("model", "backends", "backend", defs),
        "postprocess": _steps("postprocess", "postprocessors", defs),
        "output": _chosen("output", "sinks", "format", defs),
    }
    for name, cls in _SECTIONS.items():
        defs[name] = _of_class(cls, name, defs)
        properties[name] = {
            "description": defs[name]["description"],
            "anyOf": [{"$ref": f"#/$defs/{name}"}, _NULL],
        }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "batchinfer job file",
        "description": "One batch inference job: what is read, which model runs, what is written.",
        "type": "object",
        "required": ["job", "input", "model", "output"],
        "additionalProperties": False,
        "properties": properties,
        "$defs": dict(sorted(defs.items())),
    }


def _params() -> Schema:
    return {
        "description": "Parameters by name, with their defaults; null for one that `--param` must give.",
        "type": ["object", "null"],
        "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
        "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
    }


def _classes(kind: str) -> dict[str, Any]:
    """Return the components of a kind that can be imported, by name."""
    found = {}
    for name in registry.names(kind):
        try:
            found[name] = registry.load(kind, name)
        except ImportError:
            continue
    return found


def _of_class(cls: type[Options], name: str, defs: Schema) -> Schema:
    """Return the schema of a class; the classes inside it go to `defs` under names of their own."""
    describe_fields(cls)
    schema = cls.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
    for inner, definition in schema.pop("$defs", {}).items():
        defs[f"{name}.{inner}"] = _clean(definition)
    return _clean(schema)


def _clean(schema: Schema) -> Schema:
    """Return the schema of an object without pydantic's titles, with parameters allowed in its values."""
    result = {key: value for key, value in schema.items() if key != "title"}
    result["properties"] = {name: _value(inner) for name, inner in schema.get("properties", {}).items()}
    return result


def _value(schema: Schema) -> Schema:
    """Return the schema of a value that may also be `${param:NAME}`."""
    node = {key: value for key, value in schema.items() if key not in ("title", "affects_output")}
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            node[key] = _value(node[key])
    if "prefixItems" in node:
        node["prefixItems"] = [_value(item) for item in node["prefixItems"]]
    if "anyOf" in node:
        arms = [_value(arm) if _is_container(arm) else arm for arm in node["anyOf"]]
        wanted = any(_needs_param(arm) for arm in arms) and not any(_is_any_text(arm) for arm in arms)
        return {**node, "anyOf": [*arms, _PARAM] if wanted else arms}
    if not _needs_param(node):
        return node
    kept: Schema = {key: node.pop(key) for key in ("description", "default", "examples") if key in node}
    return {**kept, "anyOf": [node, _PARAM]}


def _is_container(schema: Schema) -> bool:
    return schema.get("type") in ("array", "object")


def _is_any_text(schema: Schema) -> bool:
    return schema.get("type") == "string" and not schema.keys() & _RESTRICTING


def _needs_param(schema: Schema) -> bool:
    """Say whether a value's schema refuses the text of a parameter."""
    restricted = schema.get("type") == "string" and bool(schema.keys() & _RESTRICTING)
    return schema.get("type") in ("integer", "number", "boolean") or restricted or "enum" in schema


def _chosen(section: str, kind: str, selector: str, defs: Schema) -> Schema:
    """Return a section whose keys depend on one of them: `format` or `backend`."""
    names = []
    describe_fields(_CHOSEN[section])
    description = _CHOSEN[section].model_fields[selector].description or ""
    for name, component in _classes(kind).items():
        schema = _of_class(component.Options, f"{section}.{name}", defs)
        # Absent or null, the selector is guessed; then any of the classes may be meant.
        schema["properties"][selector] = {"description": description, "enum": [name, None]}
        schema["required"] = [key for key in schema.get("required", []) if key != selector]
        defs[f"{section}.{name}"] = schema
        names.append(name)
    refs = [{"$ref": f"#/$defs/{section}.{name}"} for name in names]
    cases = [
        {"if": {"required": [selector], "properties": {selector: {"const": name}}}, "then": ref}
        for name, ref in zip(names, refs, strict=True)
    ]
    guessed = {"if": {"properties": {selector: {"const": None}}}, "then": {"anyOf": refs}}
    return {
        "description": _SECTION_WORDS[section],
        "type": "object",
        "properties": {selector: {"description": description, "anyOf": [{"enum": [*names, None]}, _PARAM]}},
        "allOf": [*cases, *([guessed] if refs else [])],
    }


def _steps(section: str, kind: str, defs: Schema) -> Schema:
    """Return a list of steps: `- name`, `- name: value` or `- name: {options}`."""
    bare, properties = [], {}
    for name, component in _classes(kind).items():
        cls = component.Options
        schema = _of_class(cls, f"{section}.{name}", defs)
        defs[f"{section}.{name}"] = schema
        arms = [{"$ref": f"#/$defs/{section}.{name}"}]
        shorthand = getattr(cls, "shorthand", None) or getattr(component, "shorthand", None)
        if shorthand is not None:
            arms.append(
                {key: value for key, value in schema["properties"][shorthand].items() if key != "default"}
            )
        if not schema.get("required"):
            bare.append(name)
            arms.append(_NULL)
        properties[name] = {"description": schema.get("description", ""), "anyOf": arms}
    one: Schema = {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": False,
        "properties": properties,
    }
    items = {"anyOf": [{"enum": bare}, one]} if bare else one
    return {"description": _SECTION_WORDS[section], "type": ["array", "null"], "items": items}
