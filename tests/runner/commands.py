"""What tests of whole runs do with processes and outputs."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.conftest import environment, parts_of


def read(folder: Path) -> pa.Table:
    """Read an output in the order of its parts."""
    files = sorted(path for path in folder.rglob("part-*.parquet"))
    return pa.concat_tables([pq.read_table(path) for path in files])


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start the command and come back."""
    return subprocess.Popen(
        [sys.executable, "-m", "batchinfer", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def wait_for_parts(folder: Path, count: int) -> None:
    """Wait until so many parts are there."""
    deadline = time.monotonic() + 60
    while len(parts_of(folder)) < count:
        assert time.monotonic() < deadline, "no part appeared"
        time.sleep(0.02)


def alive(pid: str) -> bool:
    """Tell whether a process runs (a zombie does not)."""
    try:
        stat: Any = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return bool(stat[0] != "Z")
