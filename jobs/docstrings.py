"""Real English text that every Python installation has: the docstrings of its packages."""

from __future__ import annotations

import ast
import os
import re
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

MIN_CHARS = 30
MAX_CHARS = 400
PACKAGES = ("numpy", "torch", "pyarrow", "pydantic", "fsspec", "rich", "jinja2", "prometheus_client")
"""Besides the standard library: packages that batchinfer needs, so that they are there."""
SKIPPED = frozenset({"site-packages", "dist-packages", "test", "tests", "testing", "idlelib", "lib2to3"})

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Docstring(NamedTuple):
    """The first paragraph of a docstring, and where it stands."""

    module: str
    qualname: str
    text: str


def collect() -> dict[str, list[Docstring]]:
    """Return package -> docstrings, each text once, in the order of the files."""
    site = Path(sysconfig.get_path("purelib"))
    folders = {"stdlib": Path(sysconfig.get_path("stdlib"))} | {name: site / name for name in PACKAGES}
    seen: set[str] = set()
    found: dict[str, list[Docstring]] = {}
    for package, folder in folders.items():
        prefix = () if package == "stdlib" else (package,)
        found[package] = []
        for path in _sources(folder):
            for docstring in _read(path, (*prefix, *path.relative_to(folder).with_suffix("").parts)):
                if docstring.text not in seen:
                    seen.add(docstring.text)
                    found[package].append(docstring)
    return found


def spread(docstrings: Sequence[Docstring], num: int) -> list[Docstring]:
    """Return at most `num` of them, from all over the package."""
    if len(docstrings) <= num:
        return list(docstrings)
    return [docstrings[at * len(docstrings) // num] for at in range(num)]


def _sources(folder: Path) -> Iterator[Path]:
    """Yield the source files below a folder, sorted, without tests and private parts."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in SKIPPED and not name.startswith("_"))
        yield from (Path(parent, name) for name in sorted(files) if name.endswith(".py"))


def _read(path: Path, parts: tuple[str, ...]) -> Iterator[Docstring]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    module = ".".join(parts).removesuffix(".__init__")
    for qualname, docstring in _docstrings(tree, ()):
        paragraph = re.sub(r"\s+", " ", docstring.strip().split("\n\n", 1)[0]).strip()
        if MIN_CHARS <= len(paragraph) <= MAX_CHARS:
            yield Docstring(module, qualname, paragraph)


def _docstrings(node: _Documented, names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield (qualified name, docstring) of a module, class or function and of what it holds."""
    yield ".".join(names), ast.get_docstring(node) or ""
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child, (*names, child.name))
