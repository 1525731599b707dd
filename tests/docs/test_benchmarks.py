"""The benchmarks run: a small round of each, which fails where rows are lost."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_results_are_those_of_the_files() -> None:
    """benchmarks/RESULTS.md is what the result files say: `python benchmarks/summary.py` writes it anew."""
    code = "import summary; print(summary.summary(), end='')"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT / "benchmarks")
    assert done.stdout == (ROOT / "benchmarks" / "RESULTS.md").read_text()


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


def test_the_memory_ladder() -> None:
    """Batches of 512 rows on a device that holds 100: every row comes out, what fits is learnt once, goes up
    while there is room, and is where a second run begins."""
    command = [sys.executable, str(ROOT / "benchmarks" / "memory_ladder.py"), "--tiny"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    expected = "512 100 20,000 20,000 1 1 80 80% 0, 80"
    assert " ".join(done.stdout.splitlines()[1].split()) == expected


def test_the_forecast() -> None:
    """A run takes what was foretold from a sample."""
    command = [sys.executable, str(ROOT / "benchmarks" / "forecast.py"), "--tiny", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "inside the range: 1 of 1 runs" in done.stdout


def test_telemetry() -> None:
    """The cost of being watched is printed, in time and in the parent's processor time."""
    command = [sys.executable, str(ROOT / "benchmarks" / "telemetry.py"), "--tiny", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^time +median [+-][\d.]+%", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^cpu +median [+-][\d.]+%", done.stdout, re.MULTILINE), done.stdout


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


@pytest.mark.slow
def test_the_gpu_checks(tmp_path: Path) -> None:
    """On a CPU every section comes to its end, no row is lost or wrong, and what needs a GPU is named."""
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--tiny"]
    done = subprocess.run(
        [*command, "--out", str(out), "--scratch", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    sections = found["sections"]
    assert {name: section["status"] for name, section in sections.items()} == dict.fromkeys(
        [
            "machine",
            "inputs",
            "same rows",
            "traps",
            "speed",
            "roofline",
            "memory",
            "kills",
            "small models",
            "cold start",
        ],
        "done",
    )
    assert found["wrong"] == []
    figures = {name: section["figures"] for name, section in sections.items()}
    for section, name, rows in (
        ("same rows", "resnet cpu, direct", 16),
        ("same rows", "minilm cpu, direct", 48),
        ("speed", "minilm fp32", 160),
        ("speed", "resnet-jpeg fp32", 24),
        ("memory", "scratch", 4096),
        ("kills", "undisturbed", 6144),
        ("kills", "worker", 6144),
        ("kills", "parent", 6144),
        ("small models", "two workers", 8000),
        ("cold start", "first", 80),
    ):
        assert figures[section][name]["rows"] == rows, (section, name)
    assert figures["traps"]["lazy device"]["false_alarms"] == 0
    assert figures["memory"]["scratch"]["said"]
    assert 0 < figures["kills"]["parent"]["rows_reused"] < 6144
    for section, name in (("machine", "transfers"), ("traps", "cuda"), ("speed", "bge-base fp16")):
        assert figures[section][name] == "needs a GPU"
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["section", "status", "seconds"]
    assert lines[-1].startswith("0 wrong, ")
    assert all(f"-- {name}" in lines for name in sections)
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"], "the scratch folder is left"
