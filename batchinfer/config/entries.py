"""User code named in a job file: found without being imported, in the job's folder or installed."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path

from batchinfer.config.problems import guess, quoted

_SHAPE = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")


@dataclass(frozen=True, slots=True)
class CodePlace:
    """Where a module's code lies: its file, and every file whose change may change what it does."""

    file: Path | None
    files: tuple[Path, ...]
    package: str
    installed: bool


def find_module(module: str, root: str) -> CodePlace:
    """Find a module in the job's folder or among what is installed, importing nothing of it.

    Raises ValueError for Python's own library and for what is in neither place.
    """
    parts = module.split(".")
    top = parts[0]
    # A module of the job that is called like Python's own would be one or the other, by luck.
    if top in sys.stdlib_module_names or top == "__main__":
        raise ValueError(f"{quoted(top)} is Python's own; name a module of the job's folder or a package")
    base = Path(root).joinpath(*parts)
    for file in (base.with_name(f"{base.name}.py"), base / "__init__.py"):
        if file.is_file():
            folder = Path(root) / top
            own = sorted(folder.rglob("*.py")) if folder.is_dir() else [file]
            return CodePlace(file, tuple(own), top, installed=False)
    spec = _installed(top)
    if spec is None:
        near = guess(top, sorted(path.stem for path in Path(root).glob("*.py")))
        raise ValueError(f"there is no module {quoted(module)} in the job's folder or installed{near}")
    if len(parts) > 1 and not _has_submodule(spec, parts[1:]):
        raise ValueError(f"the installed package {quoted(top)} has no module {quoted(module)}")
    file = Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None  # type: ignore[assignment]
    return CodePlace(file, (file,) if file else (), top, installed=True)


def _installed(top: str) -> ModuleSpec | None:
    """Return where an installed package lies; a file of the working directory is not installed."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    is_package = spec.submodule_search_locations is not None
    places = list(spec.submodule_search_locations or ()) if is_package else [spec.origin or ""]
    # Python puts the working directory on its path for `-m` and `-c`: an accident, not an installation.
    asked = [os.path.realpath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    here = os.path.realpath("")
    loose = here not in asked and here in {os.path.realpath(Path(place).parent) for place in places}
    return None if loose and top != "batchinfer" else spec


def _has_submodule(spec: ModuleSpec, parts: list[str]) -> bool:
    for location in spec.submodule_search_locations or ():
        place = Path(location).joinpath(*parts)
        if place.is_dir() or any(place.parent.glob(f"{place.name}.*")):
            return True
    return False


def entry_problem(entry: str, root: str) -> str | None:
    """Say why `module:name` cannot be used, or None."""
    shape = _SHAPE.fullmatch(entry)
    if shape is None:
        return f"must look like `module:name`, got {quoted(entry)}"
    module, name = shape.groups()
    try:
        place = find_module(module, root)
        if place.file is None or place.installed:
            return None
        names = top_level_names(place.file)
    except ValueError as error:
        return str(error)
    if names is not None and name not in names:
        return f"{place.file.name} defines no {quoted(name)}{guess(name, names)}"
    return None


def top_level_names(file: Path) -> set[str] | None:
    """Return the names that a module defines, None where its syntax does not tell.

    Raises ValueError where the file is no Python.
    """
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError, OSError) as error:
        line = getattr(error, "lineno", None)
        raise ValueError(f"{file.name}{f':{line}' if line else ''} is not valid Python: {error}") from None
    names = set(_bound(tree.body))
    return None if names & {"*", "__getattr__"} else names


def _bound(body: list[ast.stmt]) -> Iterator[str]:
    """Yield the names that statements bind, those inside `if` and `try` too."""
    for node in body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                yield from ((alias.asname or alias.name).partition(".")[0] for alias in names)
            case ast.Assign() | ast.AnnAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    yield from (inner.id for inner in ast.walk(target) if isinstance(inner, ast.Name))
            case _:
                for field in ("body", "orelse", "finalbody", "handlers"):
                    inner_body = getattr(node, field, [])
                    yield from _bound([item for item in inner_body if isinstance(item, ast.stmt)])
                    for handler in inner_body:
                        if isinstance(handler, ast.ExceptHandler):
                            yield from _bound(handler.body)
