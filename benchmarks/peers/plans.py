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
        """Yield the settings of a search: every combination."""
        tries = self.tries.get(runner) or {}
        for values in itertools.product(*tries.values()):
            yield {**self.best[runner], **dict(zip(tries, values, strict=True))}


def _each(rows: int, batch: int) -> dict[str, Settings]:
    """Return one model with one thread per core, for the runners that share one shape of settings."""
    one = {"workers": CORES, "threads": 1, "batch": batch}
    return {
        "batchinfer": {"compute.workers_per_device": CORES, "compute.threads": 1, "batching.size": batch},
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
    best["batchinfer"]["batching.by"] = "tokens"
    best["sentence"] = {"workers": CORES, "threads": 1, "batch": 8, "backend": "torch"}
    shape = {"workers": [1, CORES], "threads": [1, CORES], "batch": [512, 1_024], "rows": [256, 512]}
    return Plan(
        rows=1_536,
        small_rows=256,
        limit="compute",
        tolerance=1e-4,
        best=best,
        tries={
            "batchinfer": {
                "compute.workers_per_device": [1, CORES],
                "compute.threads": [1, CORES],
                "batching.size": [512, 1_024],
            },
            "plain": {name: shape[name] for name in ("workers", "threads", "batch")},
            "dataloader": shape,
            "ray": shape,
            "daft": {**shape, "process": [False, True]},
            "spark": {name: shape[name] for name in ("batch", "rows")},
            "datasets": {name: shape[name] for name in ("workers", "batch", "rows")},
            "sentence": {"workers": [1, CORES], "threads": [1, CORES], "batch": [4, 8, 16, 32]},
        },
    )


def _rows(plan_rows: int, small: int, rows: list[int], batch: list[int]) -> Plan:
    """Return the plan of images or the table, which are searched alike."""
    workers, threads = [1, CORES], [1, CORES]
    shared = {"workers": workers, "threads": threads, "rows": rows, "batch": batch}
    return Plan(
        rows=plan_rows,
        small_rows=small,
        limit="sum",
        tolerance=1e-3,
        best=_each(rows=rows[-1], batch=batch[0]),
        tries={
            "batchinfer": {
                "compute.workers_per_device": workers,
                "compute.threads": threads,
                "compute.readers": [1, CORES],
                "batching.size": batch,
            },
            "plain": {"workers": [CORES, CORES + 1], "batch": batch},
            "dataloader": shared,
            "ray": {**shared, "cpus": [CORES + 1, CORES + 2]},
            "daft": {**shared, "process": [False, True]},
            "spark": {"rows": rows, "batch": batch},
            "datasets": {"workers": workers, "rows": rows, "batch": batch},
        },
    )


PLANS = {
    "text": _text(),
    "images": _rows(4_000, 200, rows=[64, 256], batch=[16, 64]),
    "table": _rows(4_000_000, 200_000, rows=[65_536, 262_144], batch=[8_192, 65_536]),
    "device25": _device(0.04),
    "device51": _device(0.02),
}
