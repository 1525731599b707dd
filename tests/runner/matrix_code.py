"""The user's code of the matrix's jobs: a step, a model and a step after it, in which rows go wrong by a plan.

`plan.json` beside this file says how, by the value of `x`: `{"22.5": "model raises"}`.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

HERE = Path(__file__).parent
PLAN: dict[float, str] = (
    {float(x): kind for x, kind in json.loads((HERE / "plan.json").read_text()).items()}
    if (HERE / "plan.json").exists()
    else {}
)


class AcceleratorError(RuntimeError):
    """The namesake of torch's."""

    error_code = 700


class TooManyRequests(Exception):
    """What a client raises for HTTP 429."""

    status_code = 429


def _illegal_address() -> NoReturn:
    raise AcceleratorError("CUDA error: an illegal memory access was encountered")


def _hang() -> NoReturn:
    while True:
        time.sleep(1)


RAISED: dict[str, type[BaseException]] = {
    "raises": ValueError,
    "exits in Python": SystemExit,
    "has no memory": MemoryError,
    "is cut off": ConnectionResetError,
    "is throttled": TooManyRequests,
    "times out": TimeoutError,
}

DEATHS: dict[str, Callable[[], object]] = {
    "segfault": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "exit": lambda: os._exit(3),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "device": _illegal_address,
    "hang": _hang,
}


def go_wrong(where: str, values: Collection[float | None]) -> set[str]:
    """Do what the plan has for these rows at this place: raise, end, hang, or return what is left to do."""
    kinds = [PLAN[value] for value in values if value in PLAN]
    whats = [kind.partition(" ")[2] for kind in kinds if kind.partition(" ")[0] == where]
    for what in whats:
        if what in RAISED:
            raise RAISED[what]("a row that is not liked")
        if what in DEATHS:
            DEATHS[what]()
    return set(whats)


def before(rows: pa.RecordBatch) -> dict[str, Any]:
    """Return the rows' `x`."""
    left = go_wrong("before", rows["x"].to_pylist())
    if "leaves out a row" in left:
        return {"x": rows["x"][1:]}
    return {"x": pa.array(["no number"] * len(rows)) if "gives text" in left else rows["x"]}


def after(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results."""
    left = go_wrong("after", (results["y"] / 2).tolist())
    if "leaves out a row" in left:
        return {name: column[1:] for name, column in results.items()}
    if "gives text" in left:
        return {**results, "y": pa.array(["no number"] * len(results["y"]))}
    return dict(results)


class Model:
    """Twice `x`, and more that shows which row a result belongs to."""

    def __init__(self, *, sized: bool) -> None:
        self._sized = sized
        self.inputs = {"x": "float32[?]", "n": "int64[?]", "pixels": "float32[?, 3, 2, 2]"}
        self.outputs = {"y": "float32[?]", "v": "float32[?, 3]", "told": "string[?]"}
        if sized:
            self.outputs["together"] = "int64[?]"

    def __call__(self, tensors: Mapping[str, Any]) -> Any:
        """Compute a batch."""
        x = tensors["x"]
        left = go_wrong("model", x.tolist())
        results: dict[str, Any] = {
            "y": x * 2,
            "v": tensors["pixels"].mean(axis=(2, 3)) / 3 + np.sin(x)[:, None],
            "told": pa.array([f"{value} of {number}" for value, number in zip(x, tensors["n"], strict=True)]),
        }
        if self._sized:
            results["together"] = np.full(len(x), len(x))
        return _spoiled(results, x, left)


def _is(what: str, x: Any) -> Any:
    """Return which rows are to go wrong in this way."""
    return np.array([PLAN.get(value) == f"model {what}" for value in x.tolist()])


def _without(results: dict[str, Any], x: Any) -> dict[str, Any]:
    kept = ~_is("leaves out a row", x)
    return {
        name: column.filter(pa.array(kept)) if isinstance(column, pa.Array) else column[kept]
        for name, column in results.items()
    }


SPOILED: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    "is NaN": lambda results, x: results | {"y": np.where(_is("is NaN", x), np.nan, x * 2)},
    "is NaN for all": lambda results, x: results | {"y": np.full(len(x), np.nan, np.float32)},
    "is infinite for all": lambda results, _: results | {"v": results["v"] + np.float32("inf")},
    "leaves out a row": _without,
    "gives text": lambda results, x: results | {"y": np.array(["no number"] * len(x))},
    "gives another shape": lambda results, x: results | {"v": np.zeros((len(x), 2), np.float32)},
    "gives lists of several lengths": lambda results, _: results | {"v": [[1.0, 2.0, 3.0], [1.0]]},
    "gives one value": lambda results, _: results | {"v": 3.0},
    "forgets a result": lambda results, _: {name: results[name] for name in results if name != "v"},
    "gives nothing": lambda *_: None,
}
"""What a model returns in whose batch are such rows."""


def _spoiled(results: dict[str, Any], x: Any, left: set[str]) -> Any:
    """Return what is left of results after all that is to go wrong with them."""
    spoiled: Any = results
    for what, spoil in SPOILED.items():
        if what in left:
            spoiled = spoil(spoiled, x)
    return spoiled
