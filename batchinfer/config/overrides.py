"""`--set key.path=value`: one value of the job file replaced from the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from batchinfer.config.problems import KeyPath, Problems, format_path, printable, quoted
from batchinfer.config.yaml_tree import parse_value

_INDEX = re.compile(r"\[(\d+)\]")


def apply_overrides(
    document: dict[str, Any], overrides: Sequence[str], problems: Problems
) -> dict[KeyPath, str]:
    """Put `key.path=value` items into the document; list positions are written `[0]` or `.0`.

    Returns a label for each path that was set, which stands for its place in messages.
    """
    labels: dict[KeyPath, str] = {}
    for override in overrides:
        key, sign, text = override.partition("=")
        label = f"--set {key}"
        if not sign or not key:
            problems.add((), "must look like `key.path=value`", label=f"--set {printable(override)}")
            continue
        path = parse_path(key)
        labels[path] = problems.labels[path] = label  # type: ignore[index]
        try:
            value = parse_value(text)
        except ValueError as error:
            problems.add(path, str(error))
            continue
        _put(document, path, value, problems)
    return labels


def parse_path(text: str) -> KeyPath:
    """Return `("preprocess", 0, "tokenize")` for `preprocess[0].tokenize` or `preprocess.0.tokenize`."""
    parts = _INDEX.sub(r".\1", text).split(".")
    return tuple(int(part) if part.isdecimal() else part for part in parts)


def _put(document: dict[str, Any], path: KeyPath, value: Any, problems: Problems) -> None:
    node: Any = document
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        here = format_path(path[:depth]) or "the job"
        if isinstance(node, list):
            if not isinstance(part, int) or part >= len(node):
                problems.add(path, f"`{here}` is a list of {len(node)}; there is no {quoted(str(part))}")
                return
        elif isinstance(node, dict):
            part = str(part)  # noqa: PLW2901 - a digit is a key where there is a mapping
            if not last and node.get(part) is None:
                node[part] = {}
        else:
            problems.add(path, f"`{here}` is neither a mapping nor a list; it has no keys")
            return
        if last:
            node[part] = value
        else:
            node = node[part]
