"""Batches that do not fit: does the run go on in pieces, and are the rows the same?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from gpu_checks import works
from gpu_checks.bench import Bench
from gpu_checks.inputs import ROWS
from gpu_checks.running import Ran, compared, counted, require_close, run, values
from gpu_checks.same_rows import BANDS

_GIB = 2**30
_LIMIT = 4 * _GIB
_BATCH = 2048
_RESNET_LIMIT = 5 * _GIB
_SOURCE = "pixels"


def split(bench: Bench) -> None:
    """Run a model that needs four times the memory that it may have, and on a GPU a real one."""
    with bench.attempt("memory: scratch"):
        scratch(bench)
    if bench.on_gpu:
        with bench.attempt("memory: resnet"):
            real(bench)
    else:
        bench.needs_gpu("resnet")


def scratch(bench: Bench) -> None:
    """Run a model whose memory grows with its batch; its results are known exactly."""
    rows = _BATCH * (2 if bench.tiny else 16)
    (bench.folder / "numbers").mkdir()
    x = np.arange(rows, dtype=np.float32)
    pq.write_table(pa.table({"x": x}), bench.folder / "numbers" / "a.parquet", row_group_size=_BATCH)
    ran = run(
        bench,
        "memory-scratch",
        {
            "input": {"path": "numbers/"},
            "model": {
                "backend": "torch",
                "entry": "networks:hungry",
                "args": {"row_bytes": 4 * _LIMIT // _BATCH, "limit_bytes": _LIMIT, "device": bench.device},
                "signature": {"inputs": {"x": "float32[?]"}, "outputs": {"y": "float32[?]"}},
            },
            "batching": {"size": _BATCH},
        },
    )
    counted(bench, ran, rows)
    said = noted(bench, "scratch", ran)
    wrong = int((values(ran.output, "y")[:, 0] != 2 * x).sum())
    bench.note("scratch", {"rows": rows, "seconds": round(ran.seconds, 2), "wrong": wrong, "said": said})
    if wrong:
        bench.wrong(f"memory: {wrong} of {rows} rows are wrong")


def real(bench: Bench) -> None:
    """Run the convolutional network on batches that need more than it may have, and without the limit."""
    model = works.resnet_model(bench, "fp16")
    less = {**model["args"], "limit_bytes": _RESNET_LIMIT, "device": bench.device}
    found, rows = {}, ROWS[_SOURCE][bench.tiny]
    for name, more, size in (
        ("free", {}, 256),
        ("limited", {"entry": "networks:hungry_resnet", "args": less}, 2048),
    ):
        document: dict[str, Any] = {
            "input": {"path": f"{_SOURCE}/"},
            "model": {**model, **more},
            "batching": {"size": size},
            # A file has as many rows, and batches stay within a unit.
            "checkpoint": {"unit_rows": size},
        }
        ran = run(bench, f"memory-resnet-{name}", document)
        counted(bench, ran, rows)
        found[name] = ran
    said = noted(bench, "resnet", found["limited"])
    figures = compared(*(values(found[name].output, "logits") for name in ("limited", "free")))
    bench.note("resnet", {**figures, "said": said})
    require_close(bench, "memory: resnet", figures, BANDS["resnet"]["fp16"])


def noted(bench: Bench, what: str, ran: Ran) -> list[str]:
    """Return what the worker said of its memory; nothing means that all fitted."""
    said = [str(record["line"]) for record in ran.events("worker_said")]
    said = [line for line in said if "do not fit" in line]
    if not said:
        bench.wrong(f"memory: {what}: no batch was split, so nothing was found out")
    return said
