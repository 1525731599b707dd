"""Everything that only a GPU can tell, in one run of nine minutes. `python benchmarks/gpu.py`

Sections run one after the other, each in a process of its own, with a share of the time; what one leaves, the
next ones have. A section that fails, or is out of time, is recorded, and the others go on. The result file is
written anew after each. On a CPU (`--device cpu`) what needs a GPU is named, and the rest is measured.

It ends with exit code 1 where a section did not come to its end, rows were not what they should be, or a run
was faster than its model alone.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

from gpu_checks.bench import Bench, OutOfTime, found_by
from gpu_checks.table import lines

HERE = Path(__file__).parent
BUDGET_S = 540.0
_OUT_OF_TIME = 3
_LAST_S = 5.0
"""Kept back for the table."""


class Section(NamedTuple):
    """A section: its function, and its share of the time."""

    entry: str
    share: float


SECTIONS = {
    "machine": Section("machine:measure", 30),
    "inputs": Section("inputs:prepare", 70),
    "same rows": Section("same_rows:compare", 75),
    "traps": Section("traps:try_all", 90),
    "speed": Section("speed:measure", 160),
    "roofline": Section("roofline:measure", 40),
    "memory": Section("memory:split", 30),
    "kills": Section("kills:kill", 35),
    "small models": Section("starting:share", 25),
    "cold start": Section("starting:cold", 12),
}

_NEEDED = {"machine", "inputs"}


def main() -> None:
    """Run the sections, write the result, print the table."""
    chosen = arguments()
    if chosen.section:
        sys.exit(run_section(chosen))
    began = time.monotonic()
    result: dict[str, Any] = {
        "command": "python " + " ".join(["benchmarks/gpu.py", *sys.argv[1:]]),
        "device": chosen.device,
        "tiny": chosen.tiny,
        "budget_s": chosen.budget,
        "seconds": 0.0,
        "wrong": [],
        "sections": {},
    }
    with tempfile.TemporaryDirectory(dir=chosen.scratch) as name:
        folder = Path(name)
        for at, section in enumerate(chosen.only):
            ends = end_of(chosen.only[: at + 1], chosen.only, began, chosen.budget)
            result["sections"][section] = in_a_process(chosen, section, folder, ends)
            result["seconds"] = round(time.monotonic() - began, 1)
            result["wrong"] = mistakes(result["sections"])
            write(chosen.out, result)
            print(f"{section}: {result['sections'][section]['status']}", file=sys.stderr, flush=True)
    for line in lines(result):
        print(line)
    sys.exit(1 if result["wrong"] else 0)


def arguments() -> argparse.Namespace:
    """Return what was asked for."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--device", default="cuda:0", help="cuda:0 or cpu")
    parser.add_argument("--tiny", action="store_true", help="small models and few rows: no figures to keep")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds that the whole may take")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu.json")
    parser.add_argument("--scratch", help="folder for models, data and outputs; emptied at the end")
    parser.add_argument("--only", help="sections, with commas between; what they need comes with them")
    for name in ("--section", "--folder", "--ends"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    asked = set(chosen.only.split(",")) | _NEEDED if chosen.only else set(SECTIONS)
    if unknown := asked - SECTIONS.keys():
        parser.error(f"there is no section {', '.join(sorted(unknown))}, but {', '.join(SECTIONS)}")
    chosen.only = [name for name in SECTIONS if name in asked]
    return chosen


def end_of(so_far: list[str], names: list[str], began: float, budget: float) -> float:
    """Return until when a section may run: its share and what is left of those before it, but not what
    those after it need."""
    share = sum(SECTIONS[name].share for name in so_far) / sum(SECTIONS[name].share for name in names)
    return began + (budget - _LAST_S) * share


def in_a_process(chosen: argparse.Namespace, section: str, folder: Path, ends: float) -> dict[str, Any]:
    """Run a section, and all that it starts, until its time is over; return what it found by then."""
    words = [sys.executable, __file__, "--device", chosen.device, *(["--tiny"] if chosen.tiny else [])]
    words += ["--section", section, "--folder", str(folder), "--ends", str(ends)]
    began = time.monotonic()
    threads = {"OMP_NUM_THREADS": "1"} if chosen.tiny and chosen.device == "cpu" else {}
    environment = {**os.environ, **threads}
    log = folder / "section.log"
    with log.open("wb") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file, env=environment, start_new_session=True)
        try:
            code = process.wait(max(ends - began, 0) + 2)
        except subprocess.TimeoutExpired:
            code = _OUT_OF_TIME
        finally:
            # Whatever it started and left behind goes as well.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    found = found_by(folder, section)
    status = {0: "wrong" if found["wrong"] else "done", _OUT_OF_TIME: "out of time"}.get(code, "failed")
    last = (log.read_text(errors="replace").strip().splitlines() or [f"exit code {code}"])[-1]
    error = (
        {} if status in {"done", "wrong"} else {"error": last, "log": log.read_text(errors="replace")[-4000:]}
    )
    return {"status": status, "seconds": round(time.monotonic() - began, 1), **error, **found}


def run_section(chosen: argparse.Namespace) -> int:
    """Run one section in this process; return its exit code."""
    bench = Bench(chosen.section, chosen.device, chosen.tiny, Path(chosen.folder), float(chosen.ends))
    module, _, function = SECTIONS[chosen.section].entry.partition(":")
    root = str(HERE.parent)
    sys.path.insert(0, root)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    try:
        getattr(importlib.import_module(f"gpu_checks.{module}"), function)(bench)
    except (OutOfTime, subprocess.TimeoutExpired) as error:
        print(f"{type(error).__name__}: {error}")
        return _OUT_OF_TIME
    except Exception as error:  # noqa: BLE001 - whatever it is, the other sections go on
        traceback.print_exc()
        print(f"{type(error).__name__}: {error}".splitlines()[0])
        return 1
    return 0


def mistakes(sections: dict[str, Any]) -> list[str]:
    """Return what must not be: wrong rows, and sections that did not come to their end."""
    found = []
    for name, section in sections.items():
        found += section["wrong"]
        if section["status"] in {"failed", "out of time"}:
            found.append(f"{name}: {section['status']}: {section['error']}")
    return found


def write(path: Path, result: dict[str, Any]) -> None:
    """Write the result whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(path)


if __name__ == "__main__":
    main()
