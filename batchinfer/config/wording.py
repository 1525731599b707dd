"""What pydantic refuses, in the words of the job file: the key, the value and the way out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A mapping that was checked, and what its messages need to know.

    `written` has its unquoted scalars as they stand in the file, `homes` the section of every key,
    `hidden` the paths whose values are never shown. All paths begin below the section.
    """

    cls: type[Options]
    value: Mapping[str, Any]
    written: Mapping[KeyPath, str]
    homes: Mapping[str, list[str]]
    hidden: frozenset[KeyPath]

    def hides(self, path: KeyPath) -> bool:
        """Say whether the value at a path is a secret, or lies inside one."""
        return any(path[:size] in self.hidden for size in range(1, len(path) + 1))


def explain(error: ValidationError, section: Section) -> list[tuple[KeyPath, str]]:
    """Return (path below the section, message) for every mistake, once each."""
    groups: dict[KeyPath, list[tuple[KeyPath, ErrorDetails]]] = {}
    for detail in error.errors(include_url=False):
        path, union = _path(detail, section.value)
        groups.setdefault(union, []).append((path, detail))
    found: dict[KeyPath, str] = {}
    for union, details in groups.items():
        # Of the alternatives of a union, the one that got furthest is the one that was meant.
        deeper = [(path, detail) for path, detail in details if len(path) > len(union)]
        for path, detail in deeper or details:
            if path not in found or detail["type"] == "value_error":
                found[path] = _message(path, detail, section)
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


def _message(path: KeyPath, detail: ErrorDetails, section: Section) -> str:
    kind = detail["type"]
    if kind == "missing":
        return "is required"
    if kind == "extra_forbidden":
        siblings = _fields(annotation_at(section.cls, path[:-1]))
        return unknown_key(str(path[-1]), siblings, section.homes if len(path) == 1 else {})
    got = value_at(section.value, path)
    if kind in ("value_error", "assertion_error"):
        text = str(detail.get("ctx", {}).get("error", "is not valid"))
        return text.replace(str(got), "***") if section.hides(path) and got != "" else text
    written = section.written.get(path)
    expected = annotation_at(section.cls, path)
    wanted = "is not valid here" if expected is None else f"must be {describe(expected)}"
    if section.hides(path):
        return f"{wanted}, got {kind_of(got)}"
    hint = "" if expected is None else _hint(expected, got, written)
    return f"{wanted}, got {shown(got, written)}{hint}"


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
        case bool():
            return written or str(value).lower()
        case int() | float():
            return f"the number {printable(written or repr(value))}"
        case str():
            return f"{quoted(value)} (text)"
        case _:
            return kind_of(value)


def kind_of(value: Any) -> str:
    """Return what a value is, without the value."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return f"a list of {len(value)}"
        case _:
            return "a mapping"


def _hint(expected: Any, got: Any, written: str | None) -> str:
    """Return the way out of the usual mistakes."""
    kinds = {plain(arm) for arm in arms(expected)}
    if str in kinds and int not in kinds and isinstance(got, bool | int | float):
        return f'; quote it: "{printable(written or str(got).lower())}"'
    if not isinstance(got, str):
        return ""
    if any(plain(arm) in (int, float) for arm in arms(expected)):
        bare = got.replace("_", "").replace(",", "").lstrip("0")
        if bare.isdigit():
            return f"; write {bare}"
    return guess(got, [word for word in literals(expected) if isinstance(word, str)])
