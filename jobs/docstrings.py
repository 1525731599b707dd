"""Real English text that every Python installation has: the docstrings of its packages."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

MIN_CHARS = 30
MAX_CHARS = 400
PACKAGES = ("numpy", "torch", "pyarrow", "pydantic", "fsspec", "rich", "jinja2", "prometheus_client")
"""Besides the standard library: packages that batchinfer needs, so that they are there."""


def collect(per_package: int) -> dict[str, list[tuple[str, str]]]:
    """Return package -> [(qualified name, first paragraph)], each text once, in the order of the files."""
    library = Path(sysconfig.get_path("stdlib"))
    site = Path(sysconfig.get_path("purelib"))
    folders = {"stdlib": library} | {name: site / name for name in PACKAGES if (site / name).is_dir()}
    seen: set[str] = set()
    found = {}
    for package, folder in folders.items():
        texts = []
        for name, text in _texts(folder):
            if text not in seen:
                seen.add(text)
                texts.append((name, text))
            if len(texts) == per_package:
                break
        found[package] = texts
    return found


def version_of(package: str) -> str:
    """Return the version of a package, for the record."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return sysconfig.get_python_version()


def _texts(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).parts
        if any(part in {"site-packages", "dist-packages", "test", "tests", "idlelib"} for part in parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        module = ".".join((*parts[:-1], path.stem))
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = _first_paragraph(ast.get_docstring(node) or "")
                if MIN_CHARS <= len(text) <= MAX_CHARS:
                    yield f"{module}.{getattr(node, 'name', '')}".rstrip("."), text


def _first_paragraph(docstring: str) -> str:
    paragraph = docstring.strip().split("\n\n", 1)[0]
    return re.sub(r"\s+", " ", paragraph).strip()
