"""The display of a real run in a window: at every width, through changes of it, and without colours."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import doubling_job, environment, parts_of, write_shards
from tests.window import Window

SLOW = {"backend": "simulated", "seconds_per_batch": 0.05}
LABELS = ("rows", "time", "units", "worker 0", "worker 1", "errors")


@contextmanager
def a_run(folder: Path, *, rows: int, columns: int, **variables: Any) -> Iterator[Window]:
    """Run a job of two workers in a window."""
    write_shards(folder / "in", [rows])
    sections: dict[str, Any] = {
        "model": SLOW,
        "compute": {"devices": "cpu", "workers_per_device": 2},
        "limits": {"price_per_device_hour": 3.0},
    }
    window = Window("run", str(doubling_job(folder, **sections)), columns=columns, **variables)
    try:
        yield window
    finally:
        window.close()


def is_whole(lines: list[str]) -> bool:
    """Tell whether both workers compute, and every line of the display is there exactly once."""
    found = [sum(line.startswith(label) for line in lines) for label in LABELS]
    return found == [1] * len(LABELS) and sum("busy" in line for line in lines) == 2


def drawn(lines: list[str]) -> list[str]:
    """Return the display, without what was said before it."""
    heads = [at for at, line in enumerate(lines) if line.startswith("doubling   run ")]
    return lines[heads[-1] :] if heads else []


def test_a_run_in_a_window_that_is_resized(tmp_path: Path) -> None:
    """At 80, 40 and 160 columns each line is there once, none is broken, and nothing is left of the drawing
    before; at the end there is the summary and no display."""
    with a_run(tmp_path, rows=3000, columns=80) as window:
        at_80 = drawn(window.wait_for(lambda lines: is_whole(drawn(lines))))
        assert at_80[-1] == "errors    none"
        assert any(re.search(r"^time +elapsed .*ETA .* cost 0\.0", line) for line in at_80)
        assert any(re.search(r"^worker 0 +cpu +busy +\d+ % .*/s   batch 32", line) for line in at_80)

        def same(lines: list[str]) -> bool:
            """Tell whether there are as many lines as at first."""
            return len(lines) == len(at_80)

        window.resize(40)
        at_40 = drawn(window.wait_for(lambda lines: is_whole(drawn(lines)) and same(drawn(lines))))
        assert "█" in at_40[1] + "█"
        window.resize(160)
        at_160 = drawn(
            window.wait_for(
                lambda lines: is_whole(drawn(lines)) and same(drawn(lines)) and "/ 3.00 k" in drawn(lines)[1]
            )
        )
        assert at_160[1].count("█") + at_160[1].count("░") == 50
        assert window.end() == 0
        end = window.lines()
    end = end[next(at for at, line in enumerate(end) if line.startswith("done")) :]
    assert end[0].startswith("done   doubling   run ")
    assert end[1] == "rows      3,000 in = 3,000 ok + 0 error + 0 filtered"
    assert not any(line.startswith(("worker", "time", "units")) for line in end)


def test_a_terminal_that_cannot_move_gets_lines(tmp_path: Path) -> None:
    """With TERM=dumb nothing is drawn over, and no escape code is written."""
    with a_run(tmp_path, rows=100, columns=80, TERM="dumb") as window:
        assert window.end() == 0
        assert "\x1b" not in window.raw
        assert "t=00:00:00 event=run_started" in window.raw


@pytest.mark.parametrize("output", [">/dev/full 2>/dev/full", ">&- 2>&-"])
def test_nobody_takes_what_a_run_says(tmp_path: Path, output: str) -> None:
    """With output that is full or closed, and a log file on a full disk, the run does what it is there for."""
    write_shards(tmp_path / "in", [200])
    job = doubling_job(tmp_path)
    command = f'exec "$0" -m batchinfer run "$1" --log-format json --log-file /dev/full {output}'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, str(job)], env=environment(), timeout=60, check=False
    )
    assert done.returncode == 0
    assert len(parts_of(tmp_path / "out")) == 2
    assert (tmp_path / "out" / "_SUCCESS").exists()
