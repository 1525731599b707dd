"""Code that a job names: found without being run, or refused with the reason."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from batchinfer.config.entries import entry_problem, find_module


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a job's folder with modules that would fail if they were run."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (elsewhere / "loose.py").write_text("def f(): ...\n")
    folder = tmp_path / "job"
    (folder / "package/sub").mkdir(parents=True)
    (folder / "steps.py").write_text(
        "raise SystemExit\nimport numpy as np\nfrom math import sqrt\nencode = 1\nA, (B, C) = 1, (2, 3)\n"
        "try:\n    def tried(): ...\nexcept ImportError:\n    def caught(): ...\n"
        "if True:\n    class Chosen: ...\nelse:\n    other: int = 3\nasync def later(): ...\n"
    )
    (folder / "broken.py").write_text("x = 1\ndef f(:\n")
    (folder / "open.py").write_text("from steps import *\n")
    (folder / "package/__init__.py").write_text("")
    (folder / "package/sub/mod.py").write_text("f = 1\n")
    return str(folder)


@pytest.mark.parametrize(
    "entry",
    [
        *("steps:encode", "steps:np", "steps:sqrt", "steps:A", "steps:C", "steps:tried", "steps:caught"),
        *("steps:Chosen", "steps:other", "steps:later", "package.sub.mod:f", "open:anything"),
        *("yaml:safe_load", "yaml.loader:SafeLoader"),
    ],
)
def test_what_is_found(root: str, entry: str) -> None:
    """Modules of the job's folder and of installed packages are found, and what they define."""
    assert entry_problem(entry, root) is None
    assert not sys.modules.keys() & {"steps", "package", "broken", "open"}


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("not an entry", "must look like `module:name`, got 'not an entry'"),
        ("steps..x:f", "must look like `module:name`, got 'steps..x:f'"),
        ("steps:encode\n", "must look like `module:name`, got 'steps:encode\\n'"),
        ("steps:encod", "steps.py defines no 'encod'; did you mean 'encode'?"),
        ("step:encode", "there is no module 'step' in the job's folder or installed; did you mean 'steps'?"),
        ("package.sub.none:f", "there is no module 'package.sub.none' in the job's folder or installed"),
        ("broken:f", "broken.py:2 is not valid Python: invalid syntax (<unknown>, line 2)"),
        ("loose:f", "there is no module 'loose' in the job's folder or installed"),
        ("yaml.nothing:f", "the installed package 'yaml' has no module 'yaml.nothing'"),
        ("os:system", "'os' is Python's own; name a module of the job's folder or a package"),
        ("os.path:join", "'os' is Python's own; name a module of the job's folder or a package"),
        ("__main__:f", "'__main__' is Python's own; name a module of the job's folder or a package"),
        ("subprocess:run", "'subprocess' is Python's own; name a module of the job's folder or a package"),
    ],
)
def test_what_is_refused(root: str, entry: str, problem: str) -> None:
    """Python's own modules, those of the working directory and names that do not exist are refused."""
    assert entry_problem(entry, root) == problem


def test_where_code_lies(root: str) -> None:
    """A module counts by its own file, a package by all of its files."""
    assert find_module("steps", root).files == (Path(root, "steps.py"),)
    names = [file.relative_to(root).as_posix() for file in find_module("package.sub.mod", root).files]
    assert names == ["package/__init__.py", "package/sub/mod.py"]
    assert find_module("yaml", root).installed
