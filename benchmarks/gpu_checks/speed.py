"""How fast are whole runs, where does the device's time go, and how near is that to the model alone?"""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Mapping
from typing import Any

from gpu_checks import works
from gpu_checks.bench import NO_TIME, NOISE, Bench
from gpu_checks.inputs import ROWS, linked
from gpu_checks.running import Ran, counted, run, shares

_LINKS = {"pixels": (12, 1), "jpeg": (12, 1), "texts": (3, 1)}
"""Under how many names each file is read, so that a run lasts."""

_BASE_ROWS = 240_000
_RUN_S = 20.0


def measure(bench: Bench) -> None:
    """Run each work in each precision, the most telling first, as long as there is time."""
    for at, (name, precision, job, rows) in enumerate(plan(bench)):
        what = f"{name} {precision}"
        if at and not bench.tiny and bench.ends - time.monotonic() < _RUN_S:
            bench.note(what, NO_TIME)
            continue
        with bench.attempt(what):
            ran = run(bench, f"speed-{name}-{precision}", job, "--measure")
            counted(bench, ran, rows)
            figures = read(bench, ran, name, precision)
            bench.note(what, figures)
            require_no_more_than_the_model(bench, what, figures)
            # Gigabytes, all in all.
            shutil.rmtree(ran.output)
    if not bench.on_gpu:
        bench.needs_gpu(*(f"{name} {precision}" for name in _names() for precision in ("fp16", "bf16")))
        bench.needs_gpu("resnet-jpeg-gpu fp16")
    elif importlib.util.find_spec("torchvision") is None:
        bench.note("resnet-jpeg-gpu fp16", "needs torchvision")


def _names() -> list[str]:
    return ["resnet-pixels", "resnet-jpeg", *works.ENCODERS]


def plan(bench: Bench) -> list[tuple[str, str, dict[str, Any], int]]:
    """Return what is run: a name, the precision, the job, and its rows."""
    folders = {kind: linked(bench.folder, kind, times[bench.tiny]) for kind, times in _LINKS.items()}
    rows = {kind: ROWS[kind][bench.tiny] * times[bench.tiny] for kind, times in _LINKS.items()}
    found = []
    for precision in bench.precisions:
        pixels = works.pixels_work(bench, precision, folders["pixels"])
        jpeg = works.jpeg_work(bench, precision, folders["jpeg"])
        minilm, base = (works.text_work(name, precision, folders["texts"]) for name in works.ENCODERS)
        num_base = min(rows["texts"], _BASE_ROWS)
        base = {**base, "input": {**base["input"], "limit": num_base}}
        found += [
            ("bge-base", precision, base, num_base),
            ("resnet-pixels", precision, pixels, rows["pixels"]),
            ("minilm", precision, minilm, rows["texts"]),
            ("resnet-jpeg", precision, jpeg, rows["jpeg"]),
        ]
    if bench.on_gpu and importlib.util.find_spec("torchvision") is not None:
        jpeg = works.jpeg_work(bench, "fp16", folders["jpeg"], decode="gpu")
        # After the first four.
        found.insert(4, ("resnet-jpeg-gpu", "fp16", jpeg, rows["jpeg"]))
    return [work for work in found if not bench.tiny or work[0] in {"resnet-jpeg", "minilm"}]


def read(bench: Bench, ran: Ran, name: str, precision: str) -> dict[str, Any]:
    """Return the figures of a run from its last record."""
    end, ready = ran.end, ran.events("worker_ready")[0]
    flop = works.flop_of(bench)["resnet" if name.startswith("resnet") else name]
    most = works.ceiling(bench.of("machine"), precision)
    steady, alone = end["steady_rows_per_second"], end["model_rows_per_second"]
    figures = {
        "rows": end["rows_ok"],
        "seconds": round(ran.seconds, 2),
        "load_s": ready["load_s"],
        "rows_per_second": steady,
        "model_rows_per_second": alone,
        "efficiency": round(steady / alone, 4) if steady and alone else None,
        "stages": shares(end["stage_seconds"]),
        "padding_ratio": end["padding_ratio"],
        "peak_bytes": end["peak_bytes"],
        "flop_per_row": round(flop),
    }
    for which, rate in (("run", steady), ("alone", alone)):
        if rate:
            figures[f"{which}_flops"] = round(rate * flop)
            figures[f"{which}_of_ceiling"] = round(rate * flop / most, 4) if most else None
    return figures


def require_no_more_than_the_model(bench: Bench, what: str, figures: Mapping[str, Any]) -> None:
    """Check that no run was faster than its model; tiny runs are too short to tell."""
    efficiency = figures["efficiency"]
    if efficiency is None:
        bench.wrong(f"{what}: --measure gave no figures")
    elif efficiency > 1 + NOISE and not bench.tiny:
        bench.wrong(f"{what}: an efficiency of {efficiency} is a mistake of the measurement")
