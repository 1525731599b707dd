"""What pydantic refuses, in the words of the job file: the key, the value and the way out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from batchinfer.config.fields import annotation_at, arms, describe, fields_by_key, literals, plain
from batchinfer.config.problems import KeyPath, guess, listed, printable, quoted
from batchinfer.options import Options

_RENAMED = {
    "batch_size": "batching.size",
    "max_batch_size": "batching.size",
    "device": "compute.devices",
    "gpus": "compute.devices",
    "num_gpus": "compute.devices",
    "num_workers": "compute.workers_per_device",
    "workers": "compute.workers_per_device",
    "num_threads": "compute.threads",
    "inputs": "input",
    "outputs": "output",
    "name": "job",
    "fp16": "model.precision",
    "dtype": "model.precision",
    "max_errors": "errors.max",
    "pushgateway": "observe.pushgateway",
    "passthrough": "output.carry",
}
"""Keys that people bring from elsewhere, and what they are called here."""


def unknown_key(key: str, known: Mapping[str, Any], homes: Mapping[str, list[str]]) -> str:
    """Say that a key is not known: the nearest sibling, or the section that it belongs to."""
    if key in _RENAMED and _RENAMED[key] not in known:
        return f"unknown key; `{key}` is called `{_RENAMED[key]}`"
    if key in homes:
        return f"unknown key; did you mean {listed(f'`{home}`' for home in homes[key])}?"
    return f"unknown key{guess(key, known) or ' (known: ' + ', '.join(sorted(known)) + ')'}"


def explain(
    error: ValidationError,
    cls: type[Options],
    value: Mapping[str, Any],
    *,
    written: Mapping[KeyPath, str],
    homes: Mapping[str, list[str]],
) -> list[tuple[KeyPath, str]]:
    """Return (path below the section, message) for every mistake, once each.

    `written` has the unquoted scalars of the section as they stand in the file.
    """
    groups: dict[KeyPath, list[tuple[KeyPath, ErrorDetails]]] = {}
    for detail in error.errors(include_url=False):
        path, union = _path(detail, value)
        groups.setdefault(union, []).append((path, detail))
    found: dict[KeyPath, str] = {}
    for union, details in groups.items():
        deeper = [(path, detail) for path, detail in details if len(path) > len(union)]
        for path, detail in deeper or details:
            text = _message(path, detail, cls, value, written=written, homes=homes)
            if path not in found or detail["type"] == "value_error":
                found[path] = text
    return list(found.items())


def _path(detail: ErrorDetails, value: Any) -> tuple[KeyPath, KeyPath]:
    """Return where an error stands in the file, and the value whose alternatives it is one of.

    Pydantic's own path also names the alternative that it tried (`str`, `constrained-int`).
    """
    path: KeyPath = ()
    union: KeyPath | None = None
    node = value
    for index, part in enumerate(detail["loc"]):
        last = index == len(detail["loc"]) - 1
        inside = (isinstance(node, Mapping) and part in node) or (
            isinstance(node, list) and isinstance(part, int) and part < len(node)
        )
        if inside:
            node = node[part]
            path = (*path, part)
        elif last and detail["type"] == "missing":
            path = (*path, part)
        elif union is None:
            union = path
    return path, path if union is None else union


def _message(
    path: KeyPath,
    detail: ErrorDetails,
    cls: type[Options],
    value: Mapping[str, Any],
    *,
    written: Mapping[KeyPath, str],
    homes: Mapping[str, list[str]],
) -> str:
    kind = detail["type"]
    if kind == "missing":
        return "is required"
    if kind == "extra_forbidden":
        siblings = _fields(annotation_at(cls, path[:-1]))
        return unknown_key(str(path[-1]), siblings, homes if len(path) == 1 else {})
    if kind in ("value_error", "assertion_error"):
        return str(detail.get("ctx", {}).get("error", "is not valid"))
    got = value_at(value, path)
    expected = annotation_at(cls, path)
    if expected is None:
        return f"is not valid here, got {shown(got, written.get(path))}"
    hint = _hint(expected, got, written.get(path))
    return f"must be {describe(expected)}, got {shown(got, written.get(path))}{hint}"


def _fields(annotation: Any) -> Mapping[str, Any]:
    """Return the keys known under a type."""
    for arm in arms(annotation):
        base = plain(arm)
        if isinstance(base, type) and issubclass(base, Options):
            return fields_by_key(base)
    return {}


def value_at(value: Any, path: KeyPath) -> Any:
    """Return what stands at a path, None where nothing does."""
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def shown(value: Any, written: str | None = None) -> str:
    """Return a short, safe description of a value: what it is, and its kind where that surprises."""
    match value:
        case None:
            return "nothing"
        case bool():
            return written or str(value).lower()
        case int() | float():
            return f"the number {printable(written or repr(value))}"
        case str():
            return f"{quoted(value)} (text)"
        case list():
            return f"a list of {len(value)}"
        case _:
            return "a mapping"


def _hint(expected: Any, got: Any, written: str | None) -> str:
    """Return the way out of the usual mistakes."""
    texts = any(plain(arm) is str for arm in arms(expected))
    if texts and isinstance(got, bool | int | float):
        return f'; quote it: "{printable(written or str(got).lower())}"'
    if not isinstance(got, str):
        return ""
    if any(plain(arm) in (int, float) for arm in arms(expected)):
        bare = got.replace("_", "").replace(",", "").lstrip("0")
        if bare.isdigit():
            return f"; write {bare}"
    return guess(got, [word for word in literals(expected) if isinstance(word, str)])
