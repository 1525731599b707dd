"""A run followed from outside: on a terminal, in lines, in JSON, and what a look costs."""

from __future__ import annotations

import json
import shutil
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import batchinfer
from batchinfer.cli.pace import Pace, pace_of
from batchinfer.cli.watch import follow
from batchinfer.errors import BatchinferError, UnavailableError
from batchinfer.runner.inspection import OutputStatus, ProcessStatus
from batchinfer.runner.lookout import Look, Lookout
from batchinfer.runner.presence import Presence
from batchinfer.storage import Store, open_store
from tests.conftest import Run, doubling_job, write_shards
from tests.runner.commands import start
from tests.window import Window

KEYS = (
    "timestamp job plan generation output state units_total units_done rows_total rows_done num_bytes "
    "processes suspects rows_per_second eta_s eta_least_s eta_most_s last_commit_s"
)


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of which 200 of 900 rows are committed, and nobody is at work. Only to be looked at."""
    folder = tmp_path_factory.mktemp("unfinished")
    write_shards(folder / "in", [900])
    job = doubling_job(folder, limits={"max_rows": 200})
    with pytest.raises(BatchinferError, match="max_rows"):
        batchinfer.run_job(str(job))
    return folder / "out"


class Watched:
    """An output whose requests are counted, with clocks that stand still."""

    def __init__(self, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.out, self.now = out, 0.0
        self.requests: Counter[str] = Counter()
        watched = self

        class Counting:
            """Counts what is asked of a store."""

            def __init__(self, store: Store) -> None:
                self._store = store

            def __getattr__(self, name: str) -> Any:
                found = getattr(self._store, name)
                if name in {"entries", "glob", "read", "open"}:
                    watched.requests[name] += 1
                return found

        monkeypatch.setattr("batchinfer.runner.lookout.open_store", lambda *a: Counting(open_store(*a)))
        self.lookout = Lookout(str(out), {}, clock=lambda: self.now)
        (self.plan8,) = [path.parent.name for path in (out / "_batchinfer").glob("*/plan.json")]

    def process(self, owner: str, **more: Any) -> Presence:
        """Return the presence of somebody else."""
        return Presence(open_store(str(self.out), {}), str(self.out), self.plan8, owner, **more)

    def look(self) -> dict[str, tuple[float, bool]]:
        """Look, and tell who was seen, for how long silent."""
        self.requests.clear()
        found = self.lookout.look().status.processes
        return {one.owner: (round(one.silent_s), one.is_silent) for one in found}


def beat(process: Presence) -> None:
    """Give a sign of life."""
    process.beat(in_flight=[], blocks=[], done=0)


def test_who_is_heard_of(unfinished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that beats is at work; one that misses four of the beats that it promised is silent, by our
    clock; one that takes its leave is gone. A look is one listing, and each process is asked once."""
    watched = Watched(Path(shutil.copytree(unfinished, tmp_path / "out")), monkeypatch)
    quick, slow = watched.process("0-other-1-ab", every_s=1.0), watched.process("1-other-2-cd", every_s=60.0)
    beat(quick)
    beat(slow)
    assert watched.look() == {quick.owner: (0, False), slow.owner: (0, False)}
    watched.now = 5.0
    assert watched.look() == {quick.owner: (5, True), slow.owner: (5, False)}
    assert watched.requests == {"entries": 1}
    beat(quick)
    slow.leave(claimed=False)
    watched.now = 7.0
    assert watched.look() == {quick.owner: (0, False)}
    assert watched.requests == {"entries": 1}


def look_of(times: Sequence[float], *, silent: bool = False) -> Look:
    """Return a look at an output of 100 units, of which some were committed at these times."""
    status = OutputStatus(
        job="j",
        plan="p",
        generation=1,
        output="/out",
        state="unfinished",
        units_total=100,
        units_done=len(times),
        rows_total=1000,
        rows_done=10 * len(times),
        num_bytes=0,
        processes=(ProcessStatus(owner="0-a-1-b", silent_s=0.0, is_silent=silent),),
        suspects=(),
    )
    return Look(status, tuple((time, 10) for time in times))


def test_the_pace_of_commits() -> None:
    """Rows per second since the last pause, by when units were committed; none where nobody is at work."""
    steady = [float(second) for second in range(41)]
    pace = pace_of(look_of(steady), now=40.5)
    assert pace.rows_per_second == pytest.approx(10, rel=0.01)
    assert pace.eta_s == pytest.approx(59, rel=0.01)
    assert pace.eta_least_s is not None
    assert pace.eta_most_s is not None
    assert pace.eta_least_s < 59 < pace.eta_most_s
    assert pace.last_commit_s == 0.5
    paused = [*steady, *(5000.0 + 2 * second for second in range(21))]
    assert pace_of(look_of(paused), now=5040.0).rows_per_second == pytest.approx(5, rel=0.01)
    assert pace_of(look_of(steady, silent=True), now=40.0) == Pace(last_commit_s=0.0)
    assert pace_of(look_of([]), now=40.0) == Pace()


def test_a_run_is_followed_to_its_end(tmp_path: Path, batchinfer: Run) -> None:
    """`--watch --json` gives an object for each look, from before the run begins until the output is complete;
    a look without `--watch` has the same keys."""
    write_shards(tmp_path / "in", [900])
    job = doubling_job(tmp_path, model={"seconds_per_batch": 0.05}, compute={"heartbeat": 0.3})
    with start("status", str(job), "--watch", "--every", "0.2", "--json") as watch:
        assert watch.stdout is not None
        looks = [json.loads(watch.stdout.readline())]
        with start("run", str(job)) as run:
            looks += [json.loads(line) for line in watch.stdout]
            run.communicate(timeout=60)
    assert (run.returncode, watch.returncode) == (0, 0)
    assert looks[0] == {
        "output": str(tmp_path / "out"),
        "state": "unknown",
        "trouble": "waiting: no run has begun here",
    }
    seen = [look for look in looks if look["state"] != "unknown"]
    assert {tuple(look) for look in seen} == {tuple(KEYS.split())}
    rows = [look["rows_done"] for look in seen]
    assert rows == sorted(rows)
    assert any(look["processes"] and not look["processes"][0]["is_silent"] for look in seen)
    assert any(look["rows_per_second"] for look in seen)
    assert (seen[-1]["state"], seen[-1]["rows_done"]) == ("complete", 900)
    once = json.loads(batchinfer("status", str(job), "--json").stdout)
    assert tuple(once) == tuple(KEYS.split())
    (line,) = batchinfer("status", str(job), "--watch").stdout.splitlines()
    assert line.startswith("rows=900/900 pct=100.0 units=9/9 at_work=0 last_commit=")


def test_following_on_a_terminal_until_somebody_has_seen_enough(unfinished: Path) -> None:
    """Looks are drawn over each other, also when the window is resized; Ctrl-C ends them with 130."""
    window = Window("status", str(unfinished), "--watch", "--every", "0.1", columns=80)
    try:
        lines = window.wait_for(lambda lines: any("nobody is at work" in line for line in lines))
        assert lines[0].startswith("doubling   plan ")
        assert "22.2 %   200 / 900" in lines[1]
        assert lines[3].startswith("units     2 / 9 committed")
        window.resize(40)
        window.wait_for(
            lambda lines: [line.split(" ")[0] for line in lines[1:4]] == ["rows", "time", "units"]
        )
        window.press("\x03")
        assert window.end() == 130
        assert window.lines()[-1] == "^C"
        assert sum(line.startswith("rows") for line in window.lines()) == 1
    finally:
        window.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_is_never_lost(unfinished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pressed while Python clears an object away, where what it raises is dropped, it ends the watch all the
    same; and afterwards it is what it was."""

    class Cleared:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    lookout = Lookout(str(unfinished), {})
    errors = iter([UnavailableError("it is away"), AssertionError("it went on")])

    def look() -> Look:
        Cleared()
        raise next(errors)

    monkeypatch.setattr(lookout, "look", look)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        follow(lookout, str(unfinished), every_s=0.01, as_json=False)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_store_that_is_away_is_asked_again(
    unfinished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Following a run survives an outage, and says so."""
    lookout = Lookout(str(unfinished), {})
    looks = iter([UnavailableError("it is away"), KeyboardInterrupt()])

    def look() -> Look:
        raise next(looks)

    monkeypatch.setattr(lookout, "look", look)
    with pytest.raises(KeyboardInterrupt):
        follow(lookout, str(unfinished), every_s=0.01, as_json=False)
    assert capsys.readouterr().out.endswith("the store cannot be asked: it is away\n")


def test_scripts_may_stop_it(unfinished: Path) -> None:
    """In a pipe too, SIGINT ends it with 130, and no traceback."""
    with start("status", str(unfinished), "--watch", "--every", "0.1") as watch:
        assert watch.stdout is not None
        assert "state=unfinished" in watch.stdout.readline()
        watch.send_signal(signal.SIGINT)
        _, stderr = watch.communicate(timeout=30)
    assert (watch.returncode, stderr) == (130, "")
