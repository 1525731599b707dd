"""Which works there are, how many rows they take, who runs them, and at which settings.

The settings are the best that a search found on two cores (`versus.py WORK --tune RUNNER`).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

CORES = len(os.sched_getaffinity(0))
SHAPES = [(1, CORES), (CORES, 1)]  # one model on all cores, or one for each
_OURS = "compute.concurrency compute.threads"
FILES = {
    "batchinfer": "ours.py",
    "plain": "plain.py",
    "dataloader": "loader.py",
    "ray": "ray_data.py",
    "daft": "daft_frame.py",
    "spark": "on_spark.py",
    "datasets": "hf_datasets.py",
    "sentence": "sentence.py",
}
Settings = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """A work: its rows, its limit, how far results may be off, and its runners' settings."""

    rows: int
    small_rows: int
    limit: str
    tolerance: float
    best: dict[str, Settings]
    tries: dict[str, dict[str, list[Any]]] = field(default_factory=dict)

    def grid(self, runner: str) -> Iterator[Settings]:
        """Yield the settings of a search: every combination. Keys may stand together, with a space."""
        tries = self.tries.get(runner) or {}
        for values in itertools.product(*tries.values()):
            chosen = dict(self.best[runner])
            for keys, value in zip(tries, values, strict=True):
                together = value if isinstance(value, tuple) else (value,)
                chosen.update(zip(keys.split(), together, strict=True))
            yield chosen


def _each(rows: int, batch: int) -> dict[str, Settings]:
    """Return one model with one thread per core, for the runners that share one shape of settings."""
    one = {"workers": CORES, "threads": 1, "batch": batch}
    return {
        "batchinfer": {},  # its defaults
        "plain": dict(one),
        "dataloader": {**one, "rows": rows, "threads": CORES},
        "ray": {**one, "rows": rows, "cpus": CORES + 2},
        "daft": {**one, "rows": rows, "process": False},
        "spark": {**one, "rows": rows},
        "datasets": {**one, "rows": rows},
    }


def _device(seconds: float) -> Plan:
    """Return the plan of an exclusive device that 1,024 rows keep busy for so long."""
    best = {
        "batchinfer": {"batching.size": 1_024},
        "plain": {"workers": 2, "batch": 1_024},
        "ray": {"workers": 1, "cpus": CORES + 2, "rows": 1_024},
        "daft": {"workers": 1, "rows": 1_024, "process": False},
    }
    return Plan(
        rows=524_288,
        small_rows=32_768,
        limit=f"device {1_024 / seconds}",
        tolerance=1e-3,
        best=best,
        tries={
            "batchinfer": {"compute.readers": [1, 2]},
            "plain": {"workers": [2, 3]},
            "ray": {"workers": [1, 2], "cpus": [CORES + 1, CORES + 2], "rows": [1_024, 4_096, 16_384]},
            "daft": {"workers": [1, 2], "rows": [1_024, 4_096], "process": [False, True]},
        },
    )


def _text() -> Plan:
    best = _each(rows=512, batch=512)
    best["sentence"] = {"workers": 1, "threads": CORES, "batch": 16, "backend": "onnx"}
    shape = {"workers threads": SHAPES, "batch": [512, 1_024], "rows": [256, 512]}
    return Plan(
        rows=1_536,
        small_rows=256,
        limit="compute",
        tolerance=1e-4,
        best=best,
        tries={
            "batchinfer": {_OURS: SHAPES, "batching.by": ["tokens"], "batching.size": [256, 512, 1_024]},
            "plain": {name: shape[name] for name in ("workers threads", "batch")},
            "dataloader": {"workers": [1, CORES], "threads": [1, CORES], "batch": [512, 1_024]},
            "ray": shape,
            "daft": {**shape, "process": [False, True]},
            "spark": {name: shape[name] for name in ("batch", "rows")},
            "datasets": {name: shape[name] for name in ("workers threads", "batch", "rows")},
            # Its ONNX sessions cannot be sent to a pool of processes; torch's can.
            "sentence": {
                "workers threads backend": [(1, CORES, "onnx"), (1, CORES, "torch"), (CORES, 1, "torch")],
                "batch": [4, 16, 64],
            },
        },
    )


def _rows(
    plan_rows: int, small: int, rows: list[int], batch: list[int], changed: dict[str, Settings]
) -> Plan:
    """Return the plan of images or the table, which are searched alike."""
    shared = {"workers threads": SHAPES, "rows": rows, "batch": batch}
    best = _each(rows=rows[0], batch=batch[0]) | changed
    return Plan(
        rows=plan_rows,
        small_rows=small,
        limit="sum",
        tolerance=1e-3,
        best=best,
        tries={
            "batchinfer": {
                _OURS: SHAPES,
                "compute.readers": [1, CORES],
                "batching.size": batch,
            },
            "plain": {"workers": [CORES, CORES + 1], "batch": batch},
            "dataloader": {"workers": [1, CORES], "threads": [1, CORES], "rows": rows, "batch": batch},
            "ray": {**shared, "cpus": [CORES + 1, CORES + 2]},
            "daft": {**shared, "process": [False, True]},
            "spark": {"rows": rows, "batch": batch},
            "datasets": shared,
        },
    )


_TABLE: dict[str, Settings] = {
    "daft": {"workers": 1, "threads": CORES, "batch": 8_192, "rows": 65_536, "process": False},
    "datasets": {"workers": 1, "threads": CORES, "batch": 8_192, "rows": 262_144},
    "dataloader": {"workers": 1, "threads": 1, "batch": 8_192, "rows": 262_144},
}
PLANS = {
    "text": _text(),
    "images": _rows(4_000, 200, rows=[64, 256], batch=[16, 64], changed={}),
    "table": _rows(4_000_000, 200_000, rows=[65_536, 262_144], batch=[8_192, 65_536], changed=_TABLE),
    "device25": _device(0.04),
    "device51": _device(0.02),
}
