"""The examples' real models and data, made once by the examples' own code."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batchinfer
from tests.conftest import environment

ROOT = Path(__file__).resolve().parents[2]
ABSENT = ("not installed", "could not be fetched", "No module named")

Prepare = Callable[[str], Path]
Run = Callable[..., pa.Table]


class Workshop:
    """A folder that all processes of this test run share, where each thing is made once."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder

    def once(self, name: str, make: Callable[[Path], None]) -> Path:
        """Return a file or folder by its name; the first who asks makes it, and the others wait."""
        path, ready = self._folder / name, self._folder / f".{name}-ready"
        with (self._folder / f".{name}-lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not ready.exists():
                make(path)
                ready.touch()
        return path


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Where models, data and expected results are made."""
    base = tmp_path_factory.getbasetemp()
    return Workshop((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "correctness")


@pytest.fixture(scope="session")
def prepare(workshop: Workshop) -> Prepare:
    """Return a function that gives an example's folder with model and data, made by its prepare.py.

    What is prepared in jobs/ already is taken from there, and nothing is written there.
    """

    def prepared(name: str) -> Path:
        return workshop.once(name, copy_and_make)

    return prepared


def copy_and_make(folder: Path) -> None:
    """Copy an example, and make what it lacks; skip where a package for that is not there, except in CI."""
    shutil.rmtree(folder, ignore_errors=True)
    for beside in ROOT.glob("jobs/*.py"):
        shutil.copy(beside, folder.parent)
    ignored = shutil.ignore_patterns("output", "*.partial", "__pycache__")
    shutil.copytree(ROOT / "jobs" / folder.name, folder, ignore=ignored)
    done = subprocess.run(
        [sys.executable, folder / "prepare.py"],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    if done.returncode and not os.environ.get("CI") and any(word in done.stderr for word in ABSENT):
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a function that runs a job in one thread of the CPU and reads what it wrote, in order."""

    def run(job: Path | dict[str, Any], **overrides: Any) -> pa.Table:
        output = tmp_path / "output"
        report = batchinfer.run_job(
            job,
            output__path=str(output),
            compute__devices="cpu",
            compute__workers_per_device=1,
            **overrides,
        )
        assert report.exit_code == 0
        table = pa.concat_tables(pq.read_table(part) for part in sorted(output.glob("part-*.parquet")))
        assert len(table) == report.rows_in == report.rows_ok + report.rows_error
        return table

    return run


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread: several wait for each other where other processes want the cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def matrix(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """Return a column of fixed-size lists without nulls as a matrix."""
    assert column.null_count == 0
    flat = column.combine_chunks().flatten().to_numpy()
    return np.asarray(flat.reshape(len(column), -1))


def apart(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> float:
    """Return the largest difference of two arrays of one shape; NaN where either holds one."""
    assert found.shape == wanted.shape
    return float(np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max())
