"""How long until there is a first result; and do two workers on a device help a small model?"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

from gpu_checks import works
from gpu_checks.bench import Bench
from gpu_checks.inputs import ROWS
from gpu_checks.running import Ran, counted, run, shares


def share(bench: Bench) -> None:
    """Run a small model with one worker, with graphs, and with two workers."""
    rows = ROWS["table"][bench.tiny]
    ways: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "one worker": ({}, {"workers_per_device": 1}),
        "two workers": ({}, {"workers_per_device": 2}),
    }
    if bench.on_gpu:
        ways["one worker, graphs"] = ({"cuda_graphs": True}, {"workers_per_device": 1})
    else:
        bench.needs_gpu("one worker, graphs")
    options = [] if bench.tiny else ["--measure"]
    for way, (model, compute) in ways.items():
        with bench.attempt(f"small models: {way}"):
            job = {**_small(model), "compute": compute}
            ran = run(bench, f"small-{way.replace(', ', '-').replace(' ', '-')}", job, *options)
            counted(bench, ran, rows)
            bench.note(way, _figures(ran))


def _figures(ran: Ran) -> dict[str, Any]:
    """Return the figures of a run."""
    end = ran.end
    return {
        "rows": end["rows_ok"],
        "seconds": round(ran.seconds, 2),
        "workers": len(ran.events("worker_ready")),
        "rows_per_second": end["steady_rows_per_second"] or end["rows_per_second"],
        "model_rows_per_second": end["model_rows_per_second"],
        "stages": shares(end["stage_seconds"]),
    }


def _small(model: dict[str, Any]) -> dict[str, Any]:
    """Return the sections of a job with a model that takes less time than a launch."""
    return {
        "input": {"path": "table/"},
        "model": {
            "backend": "torch",
            "entry": "networks:layers",
            "args": {"width": 32, "repeats": 4},
            "signature": {"inputs": {"x": "float32[?, 32]"}, "outputs": {"y": "float32[?, 32]"}},
            **model,
        },
    }


def cold(bench: Bench) -> None:
    """Take the time from the start of the command to its first result; once more when files are in memory."""
    rows = ROWS["texts-few"][bench.tiny]
    for turn in ("first", "again"):
        name = f"cold-{turn}"
        if turn == "again" and bench.tiny:
            bench.note(turn, "left out of a tiny run")
            return
        ran = run(bench, name, works.text_work("minilm", bench.half, "texts-few"))
        counted(bench, ran, rows)
        bench.note(turn, {**moments(ran), "rows": rows})


def moments(ran: Ran) -> dict[str, float]:
    """Return when things happened, in seconds from the start of the command."""
    found = {}
    for name, event in (("plan", "run_started"), ("model", "worker_ready")):
        stamp = dt.datetime.fromisoformat(ran.events(event)[0]["timestamp"])
        found[f"{name}_s"] = round(stamp.timestamp() - ran.began, 2)
    first = min(path.stat().st_mtime for path in _parts(ran.output))
    return {**found, "first_result_s": round(first - ran.began, 2), "exit_s": round(ran.seconds, 2)}


def _parts(output: Path) -> list[Path]:
    return list(output.rglob("part-*"))
