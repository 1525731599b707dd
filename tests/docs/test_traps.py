"""The table of traps names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_trap_has_its_tests() -> None:
    """All fourteen traps are in the table; every test that it names is a function of its file."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (\d+) \| [^|]*\|([^|]*)\|([^|]*)\|$", text, re.MULTILINE)
    traps = {int(number): host + gpu for number, host, gpu in rows if re.search(r"::|the same", host)}
    assert sorted(traps) == list(range(1, 15))
    for number, tests in traps.items():
        named = re.findall(r"`([\w/.]+\.py)::(\w+)`", tests)
        assert named or "the same" in tests, f"trap {number} has no test"
        for file, name in named:
            tree = ast.parse((ROOT / file).read_text())
            names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert name in names, f"trap {number}: {file} has no {name}"
