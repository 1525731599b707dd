"""What SECURITY.md promises of temporary files, of the user's own code, and of the way to report a weakness."""

from __future__ import annotations

import ast
import json
import os
import re
import stat
import sys
from pathlib import Path

import pytest

import batchinfer
from batchinfer.backends.simulated import SimulatedBackend, SimulatedOptions
from tests.conftest import Run, doubling_job, write_shards

ROOT = Path(batchinfer.__file__).parents[1]
POLICY = (ROOT / "SECURITY.md").read_text()

STEP = """
import json, os, pathlib, sys, tempfile

def step(rows):
    if rows.num_rows:
        place = pathlib.Path(tempfile.gettempdir())
        seen = {path.name: oct(path.stat().st_mode & 0o777) for path in place.iterdir()}
        status = pathlib.Path(f"/proc/{os.getppid()}/status").read_text()
        above = [os.getppid(), int(status.partition("PPid:")[2].split()[0])]
        found = {"temporary": seen, "pid": os.getpid(), "above": above}
        pathlib.Path(__file__).with_name("seen.json").write_text(json.dumps(found))
    return {"x": rows["x"]}
"""


@pytest.mark.parametrize("verb", ["preview", "run"])
def test_temporary_files_are_private_and_go(
    tmp_path: Path, batchinfer: Run, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """What is put into the machine's folder for temporary files cannot be opened by others while it is
    there, and is gone afterwards; a run puts nothing there."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    write_shards(tmp_path / "in", [50])
    (tmp_path / "watching.py").write_text(STEP)
    job = doubling_job(tmp_path, preprocess=[{"python": "watching:step"}])
    done = batchinfer(verb, str(job))
    assert done.returncode == 0, done.stderr
    seen = json.loads((tmp_path / "seen.json").read_text())["temporary"]
    assert len(seen) == (verb == "preview")
    assert set(seen.values()) <= {"0o700"}
    assert list(place.iterdir()) == []


def test_an_output_holds_no_leftovers(tmp_path: Path) -> None:
    """After a run, no file that was being written is left, and nothing that is executable."""
    write_shards(tmp_path / "in", [50])
    batchinfer.run_job(str(doubling_job(tmp_path)))
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if path.name.startswith(".tmp")]
    assert not [path for path in files if path.stat().st_mode & (stat.S_IXUSR | stat.S_IWOTH)]


def test_the_lock_in_a_shared_folder_follows_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one file with a name that others can foresee is created for its owner only, and a link that
    waits under its name is not followed."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    backend = SimulatedBackend(SimulatedOptions(exclusive=True))
    backend.load("cpu", threads=1)
    (lock,) = tmp_path.iterdir()
    assert lock.stat().st_mode & 0o777 == 0o600
    backend.close()
    lock.unlink()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    lock.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        SimulatedBackend(SimulatedOptions(exclusive=True)).load("cpu", threads=1)
    assert victim.read_text() == "mine"


def test_no_name_of_a_temporary_file_can_be_foreseen() -> None:
    """Nothing uses a function that only makes up a name, and files that are being written must not be
    there yet."""
    for path in (ROOT / "batchinfer").rglob("*.py"):
        calls = [
            ast.unparse(node.func)
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call)
        ]
        assert not {"tempfile.mktemp", "os.tempnam", "os.tmpnam", "mktemp"} & set(calls), path
    assert '.open("xb")' in (ROOT / "batchinfer" / "storage" / "posix.py").read_text()


@pytest.mark.parametrize("loaders", ["threads", "processes"])
def test_the_users_code_runs_in_workers_and_loaders_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaders: str
) -> None:
    """The process that plans, commits the plan and reports never imports a module of the job's."""
    write_shards(tmp_path / "in", [50])
    (tmp_path / "watching.py").write_text(STEP)
    monkeypatch.delitem(sys.modules, "watching", raising=False)
    job = doubling_job(tmp_path, preprocess=[{"python": "watching:step"}])
    report = batchinfer.run_job(str(job), compute__loaders=loaders)
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert report.rows_ok == 50
    assert seen["pid"] != os.getpid() == seen["above"][loaders == "processes"]
    assert "watching" not in sys.modules


def test_the_documents_say_that_there_is_no_sandbox() -> None:
    """Who writes a job is told that its code runs with his rights, where he reads first and where he looks."""
    assert "**Your own Python is not sandboxed.**" in POLICY
    assert "treat a job file like a script" in POLICY
    assert re.search(r"a\s+sandbox for your own Python", (ROOT / "README.md").read_text())


def test_a_weakness_can_be_reported() -> None:
    """There is a private way, an answer in time, and a list of the versions that get fixes; the README
    leads there."""
    assert '"Report a vulnerability"' in POLICY
    assert "not in a public issue" in POLICY
    assert "answer within a week" in POLICY.replace("\n", " ")
    assert "## Supported versions" in POLICY
    assert "(SECURITY.md)" in (ROOT / "README.md").read_text()


def test_every_way_around_a_guard_is_named() -> None:
    """The one key that lets a model run code is in the policy, and no other key does."""
    from batchinfer.config import json_schema

    keys = {key for definition in json_schema()["$defs"].values() for key in definition.get("properties", {})}
    risky = {
        key for key in keys if re.search("unsafe|trust|insecure|allow|verify|pickle|shell|eval|exec", key)
    }
    assert risky == {"allow_unsafe_model"}
    assert all(f"`{key}" in POLICY for key in risky)
