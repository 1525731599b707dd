"""Whole runs of the command, parents and workers, under SIGKILL, SIGSTOP, SIGTERM and crash points.

    python -m tests.protocol.whole --schedules 200 --seed 1

Every schedule starts one to three runs of one job at once and disturbs them: a named crash point in
the parent or a worker, a signal at a random moment to the parent, a worker or the whole group. What
died is started again; a last calm run completes the output, which must then be, byte for byte, that
of an undisturbed run. Runs are forked from one process that has the package imported already.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from batchinfer import crash
from batchinfer.cli import main as batchinfer
from tests.conftest import doubling_job, write_shards
from tests.protocol.kills import tree

_POINTS = [name for name in crash.CRASH_POINTS if not name.startswith("gc.")]
_GRACE_S = 12.0
_TOO_LONG_S = 90.0
_ENDS = {0, 71, 75, 130, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT}
"""How a disturbed run may end: done, out of workers, stopped (130: before it had begun), or killed."""

FAMILIES: dict[str, dict[str, dict[str, object]]] = {
    "plain": {},
    "workers": {"compute": {"devices": "cpu", "workers_per_device": 2}},
    "apart": {
        "model": {"seconds_per_batch": 0.01, "faults": {str(row * 0.5): "error" for row in range(0, 290, 7)}},
        "errors": {"to": "separate", "max": "100%"},
    },
    "records": {"output": {"carry": ["id", "kind"], "partition_by": ["kind"]}},
    "lease": {"compute": {"claims": "lease", "heartbeat": 0.2}},
    "spill": {"checkpoint": {"unit_rows": 200, "every": 0.05}},
}


@dataclass(slots=True)
class Disturbance:
    """What happens to one run: a crash point, or a signal after some seconds."""

    point: str = ""
    number: int = 0
    target: str = "parent"
    delay_s: float = 0.0
    sleep_s: float = 0.0


@dataclass(slots=True)
class Tally:
    """What a series of schedules did."""

    kills: int = 0
    stops: int = 0
    terms: int = 0
    slowest_term_s: float = 0.0
    wrong: list[str] = field(default_factory=list)


def draw_disturbance(draw: random.Random, flag: Path) -> Disturbance:
    """Choose what happens to a run."""
    kind = draw.random()
    if kind < 0.5:
        point = draw.choice(_POINTS)
        return Disturbance(point=f"{point}:{draw.randint(1, 6)}:{flag}")
    delay_s = draw.uniform(0.0, 0.8)
    if kind < 0.8:
        return Disturbance(
            number=signal.SIGKILL, target=draw.choice(["parent", "worker", "group"]), delay_s=delay_s
        )
    if kind < 0.9:
        return Disturbance(
            number=signal.SIGSTOP,
            target=draw.choice(["parent", "worker", "group"]),
            delay_s=delay_s,
            sleep_s=draw.uniform(0.1, 1.0),
        )
    return Disturbance(number=draw.choice([signal.SIGTERM, signal.SIGINT]), delay_s=delay_s)


def start(arguments: list[str], log: Path, *, point: str = "") -> int:
    """Fork a run of the command, in a group of its own; return its pid."""
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        return pid
    try:
        # As in a process that has just begun, and not as in the tests'.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.setpgid(0, 0)
        handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.environ |= {"NO_COLOR": "1", crash.VARIABLE: point, crash.PERMISSION: "1"}
        sys.argv = ["batchinfer", *arguments]
        batchinfer()
    finally:
        os._exit(98)


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def send(pid: int, target: str, number: int) -> list[int]:
    """Send a signal to a run, a worker of it, or all of it; return who got it."""
    pids = {"parent": [pid], "worker": children(pid)[:1], "group": [pid, *children(pid)]}[target]
    for one in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, number)
    return pids


def wait(pid: int, deadline_s: float) -> int | None:
    """Return the exit code of a run (negative: the signal); None if it has not ended by then."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


class Series:
    """Schedules over one input and the outputs of undisturbed runs."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.tally = Tally()
        write_shards(base / "in", [170, 120], row_group=60)
        self.jobs: dict[str, str] = {}
        self.golden: dict[str, dict[str, bytes]] = {}
        for family, sections in FAMILIES.items():
            folder = base / family
            folder.mkdir()
            document = {
                "model": {"seconds_per_batch": 0.01},
                "batching": {"size": 16},
                "checkpoint": {"unit_rows": 40},
                "input": {"path": str(base / "in")},
                **sections,
            }
            self.jobs[family] = str(doubling_job(folder, **document))
            code = wait(start(["run", self.jobs[family]], base / "log"), _TOO_LONG_S)
            assert code == 0, (base / "log").read_text()
            self.golden[family] = tree(folder / "out")

    def run(self, seed: int) -> None:
        """Run one schedule."""
        draw = random.Random(seed)
        family = draw.choice(list(FAMILIES))
        out, log = self.base / family / "out", self.base / "log"
        shutil.rmtree(out)
        log.unlink(missing_ok=True)
        before = len(self.tally.wrong)
        for number in range(draw.randint(1, 2)):
            self._round(draw, family, number)
        code = wait(start(["run", self.jobs[family]], log), _TOO_LONG_S)
        if code != 0:
            self._wrong(seed, f"the last calm run ended with {code}")
        elif tree(out) != self.golden[family]:
            self._wrong(seed, f"the output of {family} differs")
        if len(self.tally.wrong) > before:
            print(log.read_text()[-4000:])

    def _round(self, draw: random.Random, family: str, number: int) -> None:
        """Start some runs at once, disturb them, and wait for their ends."""
        runs: dict[int, Disturbance] = {}
        for index in range(draw.choice([1, 1, 2, 3])):
            flag = self.base / family / f"died-{number}-{index}"
            flag.unlink(missing_ok=True)
            disturbance = draw_disturbance(draw, flag)
            pid = start(["run", self.jobs[family]], self.base / "log", point=disturbance.point)
            runs[pid] = disturbance
        began = time.monotonic()
        for pid, disturbance in sorted(runs.items(), key=lambda item: item[1].delay_s):
            if disturbance.number:
                time.sleep(max(began + disturbance.delay_s - time.monotonic(), 0.0))
                self._disturb(pid, disturbance)
        for pid, disturbance in runs.items():
            code = wait(pid, _TOO_LONG_S)
            if code is None:
                send(pid, "group", signal.SIGKILL)
                wait(pid, _TOO_LONG_S)
                self._wrong(-1, f"a run of {family} did not end after {disturbance}")
            elif code not in _ENDS:
                self._wrong(-1, f"a run of {family} ended with {code} after {disturbance}")
            self.tally.kills += code == -signal.SIGKILL or (self.base / family).joinpath("died").exists()

    def _disturb(self, pid: int, disturbance: Disturbance) -> None:
        """Send the signal; wake up who was put to sleep; time who was asked to stop."""
        sent = time.monotonic()
        pids = send(pid, disturbance.target, disturbance.number)
        if disturbance.number == signal.SIGSTOP:
            self.tally.stops += 1
            time.sleep(disturbance.sleep_s)
            for one in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, signal.SIGCONT)
        elif disturbance.number != signal.SIGKILL:
            self.tally.terms += 1
            while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}:
                if time.monotonic() - sent > _GRACE_S:
                    self._wrong(-1, f"a run still lived {_GRACE_S:.0f} s after signal {disturbance.number}")
                    return
                time.sleep(0.01)
            self.tally.slowest_term_s = max(self.tally.slowest_term_s, time.monotonic() - sent)
        elif disturbance.target == "worker":
            self.tally.kills += bool(pids)

    def _wrong(self, seed: int, what: str) -> None:
        place = f"seed {seed}: " if seed >= 0 else ""
        self.tally.wrong.append(f"{place}{what}")
        print(f"{place}{what}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run many schedules; print what they did, and the seed of any that went wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--schedules", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="the first of them")
    chosen = parser.parse_args(arguments)
    # What every run imports is imported here once, so that a fork has it.
    import batchinfer.cli.app
    import batchinfer.runner.job
    import batchinfer.sinks.parquet
    import batchinfer.sources.parquet
    import batchinfer.telemetry  # noqa: F401

    base = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))  # noqa: S108 - memory
    # Workers are started hundreds of times: let them compile once.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(base / "compiled")
    began = time.perf_counter()
    try:
        series = Series(base)
        for seed in range(chosen.seed, chosen.seed + chosen.schedules):
            before = len(series.tally.wrong)
            series.run(seed)
            if len(series.tally.wrong) > before:
                print(f"seed {seed} went wrong", flush=True)
        left = subprocess.run(["pgrep", "-f", str(base)], capture_output=True, text=True, check=False)
        if left.stdout:
            series.tally.wrong.append(f"processes are left: {left.stdout.split()}")
    finally:
        shutil.rmtree(base, ignore_errors=True)
    tally, seconds = series.tally, time.perf_counter() - began
    print(
        f"{chosen.schedules:,} schedules, {tally.kills:,} SIGKILLs, {tally.stops} stops, {tally.terms} terms "
        f"(slowest {tally.slowest_term_s:.1f} s), {len(tally.wrong)} mismatches, "
        f"{seconds:.0f} s ({chosen.schedules / seconds * 60:,.0f} a minute)"
    )
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
