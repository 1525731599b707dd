"""The benchmarks run: a small round of each, which fails where rows are lost."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_simulated_device() -> None:
    """By the clock that jumps, a device is never idle but for the first rows and the last commit: 15 of
    128 batches' time, and 25 of 128 with the long units, and no more."""
    command = [sys.executable, str(ROOT / "benchmarks" / "simulated_device.py"), "--tiny", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = dict(
        re.findall(r"^(far.*, virtual) +efficiency +median ([\d.]+)%", done.stdout, flags=re.MULTILINE)
    )
    assert float(found["far, virtual"]) > 90, done.stdout
    assert float(found["far, short units, virtual"]) > 83, done.stdout


def test_bad_rows() -> None:
    """What bad rows cost their neighbours is printed, and exactly they are errors."""
    command = [sys.executable, str(ROOT / "benchmarks" / "bad_rows.py"), "--tiny", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "19,999 results and one error row after 3 restarts" in done.stdout, done.stdout


def test_padding() -> None:
    """Of what is computed, padding is little: 7 % with 32 shapes, 1 % where rows are packed."""
    command = [sys.executable, str(ROOT / "benchmarks" / "padding.py"), "--tiny"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    line = r"^texts of sentences +512 tokens +(.*?) +efficiency +([\d.]+)% +(\d+) shapes"
    found = {
        way: (float(share), int(shapes)) for way, share, shapes in re.findall(line, done.stdout, re.MULTILINE)
    }
    assert found["sorted windows, 32 buckets"][0] >= 93, done.stdout
    assert found["sorted windows, 32 buckets"][1] <= 32, done.stdout
    assert found["packed"][0] >= 99, done.stdout
