"""A mapping from Python as the tree that a job file would have given."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from batchinfer.config.problems import KeyPath, Problems
from batchinfer.config.scalars import checked, scalar
from batchinfer.config.yaml_tree import JSON, MAX_DEPTH, Tree


def tree_of_mapping(source: Mapping[Any, Any], problems: Problems) -> Tree:
    """Return a mapping from Python as a tree: copied, paths as text, tuples as lists."""
    value = _plain(source, (), problems)
    problems.raise_if_any()
    assert isinstance(value, dict)
    return Tree(value)


def _plain(value: Any, path: KeyPath, problems: Problems) -> JSON:
    if len(path) > MAX_DEPTH:
        problems.add(path[:2], f"is nested deeper than {MAX_DEPTH} levels")
        problems.raise_if_any()
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                problems.add(path, f"has the key {key!r}, which is not text")
        return {str(key): _plain(item, (*path, str(key)), problems) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, (*path, index), problems) for index, item in enumerate(value)]
    try:
        return _plain_scalar(value)
    except ValueError as error:
        problems.add(path, str(error))
        return None


def _plain_scalar(value: Any) -> JSON:
    """Return a single value from Python. Raises ValueError for what YAML could not have said."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("must be a finite number")
        # Through its text, so that numbers beyond 64 bits meet the same refusal.
        return scalar(json.dumps(value))
    if isinstance(value, str | PurePath):
        return checked(str(value))
    raise ValueError(f"is a Python {type(value).__name__}; a job has texts, numbers, lists and mappings")
