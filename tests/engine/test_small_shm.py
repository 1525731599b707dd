"""Trap 14: a container's /dev/shm has 64 MB, and writing beyond it kills the process with SIGBUS."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import doubling_job, environment, parts_of, write_shards

CRAMPED = 'mount -t tmpfs -o size=8m tmpfs /dev/shm && exec "$@"'
"""Mounts a /dev/shm that is smaller still, so that the test need not fill 64 MB."""

SLABS = """
from batchinfer.engine import host_memory
slabs = [host_memory.map_memory(4 << 20) for _ in range(8)]
assert all(slab.nbytes == 4 << 20 and not slab.any() for slab in slabs)
for slab in slabs:
    slab.fill(7)
"""
IN_SHM = """
import mmap
with open("/dev/shm/slab", "w+b") as file:
    file.truncate(32 << 20)
    mapped = mmap.mmap(file.fileno(), 32 << 20)
    mapped.write(bytes(32 << 20))
"""


def cramped(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command where /dev/shm has 8 MB."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let us mount a /dev/shm of our own")
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", CRAMPED, "sh", *command],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        cwd=cwd,
        timeout=120,
    )


def test_slabs_need_no_shm(tmp_path: Path) -> None:
    """The memory of the rings is mapped and written beyond what /dev/shm holds; a slab in there is not."""
    right = cramped(sys.executable, "-c", SLABS, cwd=tmp_path)
    assert right.returncode == 0, right.stderr
    wrong = cramped(sys.executable, "-c", IN_SHM, cwd=tmp_path)
    assert wrong.returncode in {-signal.SIGBUS, 128 + signal.SIGBUS}, wrong.stderr


def test_a_run_needs_no_shm(tmp_path: Path) -> None:
    """A whole run, with all its processes, writes what it writes anywhere else."""
    write_shards(tmp_path / "in", [300, 200])
    job = str(doubling_job(tmp_path))
    done = cramped(sys.executable, "-m", "batchinfer", "run", job, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(parts_of(tmp_path / "out")) == 5
