"""The steps of `preprocess` and `postprocess`: `- name`, `- name: value` or `- name: {options}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_origin

from batchinfer.config.fields import arms, fields_by_key, plain
from batchinfer.config.job import Step
from batchinfer.config.options_reader import OptionsReader
from batchinfer.config.problems import KeyPath, quoted
from batchinfer.config.wording import shown


def read_steps(reader: OptionsReader, kind: str, document: Mapping[str, Any], name: str) -> tuple[Step, ...]:
    """Read a list of steps; those with problems are left out."""
    value = document.get(name)
    if value is None:
        return ()
    if not isinstance(value, list):
        hint = "; begin each with `- `" if isinstance(value, Mapping) else ""
        reader.problems.add((name,), f"must be a list of steps, got {shown(value)}{hint}")
        return ()
    read = (_read_step(reader, kind, item, (name, index)) for index, item in enumerate(value))
    return tuple(step for step in read if step is not None)


def _read_step(reader: OptionsReader, kind: str, item: Any, path: KeyPath) -> Step | None:
    step = _name_and_value(reader, item, path)
    if step is None:
        return None
    name, value = step
    path = (*path, name) if isinstance(item, Mapping) else path
    component = reader.load(kind, name, path)
    if component is None:
        return None
    cls = component.Options
    shorthand = getattr(cls, "shorthand", None) or getattr(component, "shorthand", None)
    if shorthand is not None and value is not None and not _is_options(cls, shorthand, value):
        value = {shorthand: value}
    elif value is not None and not isinstance(value, Mapping):
        written = reader.written.get(path)
        reader.problems.add(path, f"must be a mapping of options, got {shown(value, written)}")
        return None
    options = reader.read(cls, value, path)
    return None if options is None else Step(name, options, path)


def _name_and_value(reader: OptionsReader, item: Any, path: KeyPath) -> tuple[str, Any] | None:
    """Return the name of a step and what stands behind it, or record why there is none."""
    if isinstance(item, str):
        return item, None
    if not isinstance(item, Mapping) or not item:
        reader.problems.add(path, f"must be a step such as `- name: {{...}}`, got {shown(item)}")
        return None
    name, *others = item
    if others:
        message = (
            f"a step has one name; indent {quoted(others[0])} below {quoted(name)}, or begin it with `- `"
        )
        reader.problems.add((*path, others[0]), message)
        return None
    return name, item[name]


def _is_options(cls: Any, shorthand: str, value: Any) -> bool:
    """Say whether a value is a mapping of options, and not itself the shorthand's value."""
    if not isinstance(value, Mapping):
        return False
    fields = fields_by_key(cls)
    takes_mapping = any(get_origin(plain(arm)) is dict for arm in arms(fields[shorthand].annotation))
    return not takes_mapping or not value or any(key in fields for key in value)
