"""The protocol on a real file system, under real SIGKILLs at its crash points.

    python -m tests.protocol.kills --schedules 20000 --seed 1

Every schedule forks one to three processes of a run without a model. Each may die at any passing of
any crash point; whoever dies is started again, until the output is complete. Then it must be, byte
for byte, that of an undisturbed run.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa

from batchinfer import crash
from batchinfer.storage.posix import PosixStore
from tests.protocol.actor import Process, RememberingSink

_SPEED = 200.0
_FAMILIES = ("plain", "records", "apart", "lease", "copies")


class Fast:
    """A clock on which waiting takes a two-hundredth of its time."""

    def now(self) -> float:
        """Return its time."""
        return time.monotonic() * _SPEED

    def sleep(self, seconds: float) -> None:
        """Wait a little."""
        time.sleep(seconds / _SPEED)


def tree(root: Path) -> dict[str, bytes]:
    """Return what readers see, the tables of failed rows, and the seal with its manifest."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.name.startswith("part-")
        or path.name in {"_SUCCESS", "manifest.json"}
        or (path.parent.name == "errors" and path.suffix == ".parquet")
    }


def live(root: Path, family: str, sink: RememberingSink, *, die_at: int | None) -> None:
    """Be one process; die at the n-th crash point that is passed."""
    left = die_at

    def passing(_: str) -> None:
        nonlocal left
        if left is not None:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    crash.watch(passing)
    store = PosixStore()
    store.clock = Fast()
    Process(
        store=store,
        root=str(root),
        owner=f"any-kills-{os.getpid()}-{secrets.token_hex(4)}",
        clock=store.clock,
        sink=sink,
        records=family == "records",
        apart=family == "apart",
        lease=family == "lease",
    ).run()


def fork(root: Path, family: str, sink: RememberingSink, *, die_at: int | None) -> int:
    """Start a process."""
    pid = os.fork()
    if pid:
        return pid
    try:
        live(root, family, sink, die_at=die_at)
    except BaseException as error:  # noqa: BLE001 - a child must not come back
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(9)
    os._exit(0)


def schedule(
    seed: int, base: Path, golden: dict[str, dict[str, bytes]], sinks: dict[str, RememberingSink]
) -> tuple[int, str]:
    """Run one schedule; return how many died, and what is wrong."""
    draw = random.Random(seed)
    family = draw.choice(_FAMILIES)
    root = base / "out"
    shutil.rmtree(root, ignore_errors=True)
    num_processes = (
        1 if family in {"plain", "records", "apart"} and draw.random() < 0.5 else draw.randint(2, 3)
    )
    kills = started = 0
    alive: set[int] = set()
    complete = False
    while not complete or alive:
        while not complete and len(alive) < num_processes:
            die_at = draw.randint(1, 90) if started < 3 * num_processes else None
            alive.add(fork(root, family, sinks[family], die_at=die_at))
            started += 1
        pid, status = os.wait()
        alive.discard(pid)
        if os.WIFSIGNALED(status):
            kills += 1
        elif os.WEXITSTATUS(status):
            return kills, f"a process ended with {os.WEXITSTATUS(status)}"
        else:
            complete = True
    return kills, "" if tree(root) == golden[family] else "the output differs"


def main(arguments: list[str] | None = None) -> int:
    """Run many schedules; print what they did, and the seed of any that went wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--schedules", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="the first of them")
    chosen = parser.parse_args(arguments)
    # Threads do not survive a fork: pyarrow must not begin any here.
    pa.set_cpu_count(1)
    base = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))  # noqa: S108 - memory
    try:
        sinks = {family: RememberingSink() for family in _FAMILIES}
        golden = {}
        for family in _FAMILIES:
            live(base / family, family, sinks[family], die_at=None)
            golden[family] = tree(base / family)
        crash.watch(None)
        began, kills, bad = time.perf_counter(), 0, 0
        for seed in range(chosen.seed, chosen.seed + chosen.schedules):
            died, wrong = schedule(seed, base, golden, sinks)
            kills += died
            if wrong:
                bad += 1
                print(f"seed {seed}: {wrong}")
        seconds = time.perf_counter() - began
    finally:
        shutil.rmtree(base, ignore_errors=True)
    print(
        f"{chosen.schedules:,} schedules, {kills:,} SIGKILLs, {bad} mismatches, "
        f"{seconds:.0f} s ({chosen.schedules / seconds * 60:,.0f} a minute)"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
