"""One process tree from start to exit: seconds, CPU seconds, and peak memory by its unique pages."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import struct
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STAMP = struct.Struct("ddq")
TICK_S = 0.1
COST_SHARE = 20  # sampling may take one twentieth of one core
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
MOVED = 1 << 20
_SUBREAPER = 36


@dataclass
class Peak:
    """The most memory that a tree held at one time, and the CPU time of all its processes."""

    uss: int = 0
    pss: int = 0
    cpu: dict[tuple[int, str], float] = field(default_factory=dict)
    _seen: dict[int, tuple[int, int, int]] = field(default_factory=dict)

    def sample(self, pids: list[int]) -> None:
        """Add up the tree as it is now."""
        uss = pss = 0
        for pid in pids:
            with contextlib.suppress(OSError, IndexError, ValueError):
                mine, share = self._memory(pid)
                uss, pss = uss + mine, pss + share
                after = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                self.cpu[pid, after[19]] = (int(after[11]) + int(after[12])) / TICKS
        self.uss, self.pss = max(self.uss, uss), max(self.pss, pss)

    def _memory(self, pid: int) -> tuple[int, int]:
        """Read a process's unique and proportional bytes; again only if its size has moved by a MiB."""
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
        known = self._seen.get(pid)
        if known is None or abs(known[0] - resident) > MOVED:
            sizes: dict[str, int] = {}
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
                name, size = line.split()[:2]
                sizes[name] = int(size) << 10
            known = resident, sizes["Private_Clean:"] + sizes["Private_Dirty:"], sizes["Pss:"]
            self._seen[pid] = known
        return known[1], known[2]


def descendants() -> list[int]:
    """Return every process below this one; orphans are handed to it, so none is missed."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int(Path(f"/proc/{entry.name}/stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [os.getpid()]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def adopt_orphans() -> None:
    """Become the parent of what a runner leaves behind, so that it is measured and ended."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1)


def measure(
    command: list[str], *, env: dict[str, str], folder: Path, log: Path, limit_s: float
) -> dict[str, Any]:
    """Run a command and return what it took. `folder` holds its stamps and its output `out`.

    Raises RuntimeError with the end of its log where it fails or takes too long.
    """
    peak, before = Peak(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with log.open("w") as said:
        began = time.time()
        process = subprocess.Popen(command, env=env, stdout=said, stderr=subprocess.STDOUT, cwd=folder)
        try:
            while process.poll() is None and time.time() - began < limit_s:
                at = time.perf_counter()
                peak.sample(descendants())
                cost = time.perf_counter() - at
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(TICK_S, COST_SHARE * cost))
            whole_s = time.time() - began
        finally:
            _end_all()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode != 0:
        raise RuntimeError(
            f"{' '.join(command)} exited with {process.returncode}:\n{log.read_text()[-3000:]}"
        )
    waited = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "whole_s": whole_s,
        # Daemons may be waited for by nobody that tells: what was seen of each process counts then.
        "cpu_s": max(waited, sum(peak.cpu.values())),
        "uss_mb": peak.uss / 1e6,
        "pss_mb": peak.pss / 1e6,
        **_steady(folder),
    }


def _steady(folder: Path) -> dict[str, float]:
    """Return the seconds from the first batch of the model to the last write."""
    stamps = [
        stamp for path in (folder / "stamps").iterdir() for stamp in STAMP.iter_unpack(path.read_bytes())
    ]
    written = [path.stat().st_mtime for path in (folder / "out").rglob("*.parquet")]
    if not stamps or not written:
        return {}
    return {"steady_s": max(written) - min(begin for begin, _, _ in stamps)}


def _end_all() -> None:
    """Kill what is left of the tree, and wait for it."""
    while left := descendants():
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)
