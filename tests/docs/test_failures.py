"""The table of faults names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
LATER: set[int] = set()
"""Faults that are not treated yet."""


def table() -> dict[int, list[tuple[str, str]]]:
    """Return the tests of every row, as (file, name)."""
    rows = re.findall(
        r"^\| (\d+) \|.*\| ([^|]*) \|$", (ROOT / "docs" / "failures.md").read_text(), re.MULTILINE
    )
    return {int(number): re.findall(r"`([\w/.]+\.py)::(\w+)`", tests) for number, tests in rows}


def test_every_fault_has_its_row() -> None:
    """All 72 faults are in the table, and all have a test but those that are named here as later."""
    found = table()
    assert sorted(found) == list(range(1, 73))
    assert {number for number, tests in found.items() if not tests} == LATER


def test_every_named_test_exists() -> None:
    """Each test of the table is a function of the file that it names."""
    for number, tests in table().items():
        for file, name in tests:
            tree = ast.parse((ROOT / file).read_text())
            names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert name in names, f"row {number}: {file} has no {name}"
