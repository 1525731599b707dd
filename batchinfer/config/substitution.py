"""The two substitutions of a job file: `${param:NAME}` and `${env:NAME}`; `$${` stands for `${`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from batchinfer.config.problems import KeyPath, Problems, guess, listed, printable, quoted
from batchinfer.config.scalars import scalar
from batchinfer.config.yaml_tree import JSON

_TOKEN = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")
_REFERENCE = re.compile(r"(param|env):([A-Za-z_][A-Za-z0-9_]*)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(slots=True)
class Params:
    """Parameters by name, with who used them. `given` come from `--param`, as text."""

    defaults: Mapping[str, JSON]
    given: Mapping[str, str]
    problems: Problems
    written: Mapping[KeyPath, str]
    used: set[str] = field(default_factory=set)

    def value(self, name: str, path: KeyPath) -> JSON:
        """Return the value of a parameter, typed like its default; report one without a value."""
        self.used.add(name)
        default = self.defaults.get(name)
        if name not in self.given:
            if default is None:
                near = "" if name in self.defaults else guess(name, self.defaults)
                way = f"give --param {name}=VALUE or a default under `params`"
                self.problems.add(path, f"parameter {quoted(name)} has no value; {way}{near}")
            return default
        text = self.given[name]
        if isinstance(default, bool | int | float):
            value = _as_scalar(text)
            if isinstance(value, bool | int | float):
                return value
        return text

    def text(self, name: str, path: KeyPath) -> str:
        """Return the value of a parameter as it was written: `1.10` stays `1.10` inside a text."""
        value = self.value(name, path)
        if isinstance(value, str):
            return value
        if name in self.given:
            return self.given[name]
        return self.written.get(("params", name), json.dumps(value))

    def values(self) -> dict[str, JSON]:
        """Return every parameter with the value that the job uses."""
        return {name: self.value(name, ("params", name)) for name in sorted(self.used)}


def _as_scalar(text: str) -> JSON:
    try:
        return scalar(text)
    except ValueError:
        return text


def substitute_params(
    document: Mapping[str, Any],
    given: Mapping[str, str],
    problems: Problems,
    *,
    written: Mapping[KeyPath, str],
) -> tuple[dict[str, Any], dict[str, JSON]]:
    """Return the document with its parameters put in and without its `params`, and their values.

    `written` has the text of unquoted scalars, so that numbers keep their form inside a text.
    Reports unknown and unused parameters, and every `${...}` that is no substitution.
    """
    params = Params(_defaults(document.get("params"), problems), given, problems, written)
    rest = {key: value for key, value in document.items() if key != "params"}
    result = {key: _walk(value, (key,), params) for key, value in rest.items()}
    for name in params.defaults:
        if name not in params.used and _NAME.fullmatch(name):
            problems.add(("params", name), f"is never used; write ${{param:{name}}} where it belongs")
    for name in given:
        if name not in params.used and name not in params.defaults:
            known = params.defaults.keys() | params.used
            near = guess(name, known) or f" (known: {listed(sorted(known), 'and')})"
            problems.add((), f"no such parameter{near}", label=f"--param {printable(name)}")
    return result, params.values() if not problems else {}


def _defaults(section: Any, problems: Problems) -> dict[str, JSON]:
    """Return the `params` section, as far as it can be used."""
    if section is None:
        return {}
    if not isinstance(section, Mapping):
        problems.add(("params",), "must be a mapping of names to values")
        return {}
    for name, value in section.items():
        if not _NAME.fullmatch(name):
            problems.add(("params", name), "a parameter's name has letters, digits and `_` only")
        elif isinstance(value, list | Mapping):
            problems.add(("params", name), "must be text, a number, true or false")
        elif isinstance(value, str) and _TOKEN.search(value):
            problems.add(("params", name), "a parameter cannot refer to `${...}` itself")
    return dict(section)


def _walk(value: Any, path: KeyPath, params: Params) -> Any:
    if isinstance(value, Mapping):
        return {key: _walk(item, (*path, key), params) for key, item in value.items()}
    if isinstance(value, list):
        return [_walk(item, (*path, index), params) for index, item in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value
    # A parameter that stands alone keeps its type: `limit: ${param:rows}` is a number.
    whole = _TOKEN.fullmatch(value)
    reference = _REFERENCE.fullmatch(whole.group(1) or "") if whole else None
    if reference and reference.group(1) == "param":
        found = params.value(reference.group(2), path)
        return escape(found) if isinstance(found, str) else found

    def put(match: re.Match[str]) -> str:
        if match.group() == "$${":
            return "$${"
        inner = _REFERENCE.fullmatch(match.group(1) or "")
        if inner is None:
            _refuse(match, path, params.problems)
            return match.group()
        if inner.group(1) == "env":
            # Left as it is: the document is stored, and workers read their own environment.
            return match.group()
        return escape(params.text(inner.group(2), path))

    return _TOKEN.sub(put, value)


def _refuse(match: re.Match[str], path: KeyPath, problems: Problems) -> None:
    name = match.group(1) or ""
    ways = (
        f"${{env:{name}}} or ${{param:{name}}}" if _NAME.fullmatch(name) else "${env:NAME} or ${param:NAME}"
    )
    problems.add(path, f"{quoted(match.group())} is no substitution; write {ways}, or $${{ for the text ${{")


def escape(text: str) -> str:
    """Return text that substitution gives back unchanged."""
    return text.replace("${", "$${")


def substitute_env(text: str, lookup: Callable[[str], str]) -> str:
    """Put environment variables into a text whose parameters are in, and take the escapes out."""

    def put(match: re.Match[str]) -> str:
        if match.group() == "$${":
            return "${"
        reference = _REFERENCE.fullmatch(match.group(1) or "")
        return lookup(reference.group(2)) if reference and reference.group(1) == "env" else match.group()

    return _TOKEN.sub(put, text)
