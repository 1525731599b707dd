"""Exams for components, ours and yours: call them from a test. What fails raises AssertionError."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchinfer import tensors

if TYPE_CHECKING:
    from batchinfer.data import Tensors, TensorSpec
    from batchinfer.protocols import Backend

_ROWS = 5
_RAGGED = 3


def check_backend(
    make: Callable[[], Backend], *, batch: Tensors | None = None, tolerance: float = 1e-5
) -> None:
    """Examine a backend on the CPU: what it declares, what it gives, and what it leaves alone.

    `make` returns a new backend each time. `batch` holds at least two rows for every input; by default
    random numbers and short texts. Results of the same rows may differ by `tolerance` when the batch is
    cut elsewhere.
    """
    make().close()
    backend = make()
    try:
        backend.load("cpu", threads=1)
        _check_specs(backend)
        given = _example(backend) if batch is None else dict(batch)
        for column in given.values():
            if isinstance(column, np.ndarray):
                column.setflags(write=False)
        results = backend.forward(given)
        _check_results(backend, results, num_rows=_num_rows(given))
        kept = {name: _copy(value) for name, value in results.items()}
        _check_cuts(backend, given, kept, tolerance=tolerance)
        # Now, while what a reused buffer holds is another batch's.
        for name, value in kept.items():
            assert _same(results[name], value, 0), f"{name!r} was overwritten by a later batch"
        again = backend.forward(given)
        for name, value in kept.items():
            assert _same(again[name], value, 0), f"{name!r} differs when the same batch is run again"
    finally:
        backend.close()


def _check_specs(backend: Backend) -> None:
    for specs, what in ((backend.inputs, "inputs"), (backend.outputs, "outputs")):
        assert specs, f"after load there are no {what}"
        names = [spec.name for spec in specs]
        assert len(set(names)) == len(names), f"{what} have a name twice: {names}"
        for spec in specs:
            assert spec.shape[:1] == (None,), f"{what}: `{spec}` must begin with the batch axis, None"
            assert spec.dtype == "any" or tensors.arrow_type(spec) is not None


def _check_results(backend: Backend, results: Mapping[str, Any], *, num_rows: int) -> None:
    """Check names, number of rows, dtypes and shapes against what was declared."""
    names = [spec.name for spec in backend.outputs]
    assert sorted(results) == sorted(names), f"results are {sorted(results)}, declared are {sorted(names)}"
    for spec in backend.outputs:
        value = results[spec.name]
        assert len(value) == num_rows, f"`{spec}` has {len(value)} rows for {num_rows}"
        array = tensors.to_arrow(value, tensors.arrow_type(spec)) if None not in spec.shape[1:] else None
        assert array is None or len(array) == num_rows
        if isinstance(value, np.ndarray) and spec.dtype in tensors.NUMERIC:
            assert value.dtype == spec.dtype, f"`{spec}` came as {value.dtype}"


def _check_cuts(backend: Backend, given: Tensors, whole: Mapping[str, Any], *, tolerance: float) -> None:
    """Check that each row's results do not depend on the rows beside it."""
    num_rows = _num_rows(given)
    assert num_rows > 1, "the exam needs at least two rows"
    for start, stop in ((0, 1), (1, num_rows)):
        part = backend.forward({name: column[start:stop] for name, column in given.items()})
        for name, value in whole.items():
            same = _same(part[name], value[start:stop], tolerance)
            assert same, f"rows {start}..{stop} of {name!r} differ when they are run by themselves"


def _example(backend: Backend) -> dict[str, Any]:
    """Return a batch of random numbers, 0 or 1 for whole ones, and texts."""
    return {spec.name: _example_column(spec, np.random.default_rng(0)) for spec in backend.inputs}


def _example_column(spec: TensorSpec, random: np.random.Generator) -> Any:
    if spec.dtype == "string":
        return pa.array([f"text number {at}" for at in range(_ROWS)], pa.string())
    assert spec.dtype in tensors.NUMERIC, f"`{spec}` needs an example: pass batch=..."
    shape = (_ROWS, *(_RAGGED if size is None else size for size in spec.shape[1:]))
    if spec.dtype.startswith("float"):
        return random.standard_normal(shape).astype(spec.dtype)
    return random.integers(0, 2, shape).astype(spec.dtype)


def _num_rows(batch: Tensors) -> int:
    return len(next(iter(batch.values())))


def _copy(value: Any) -> Any:
    return value.copy() if isinstance(value, np.ndarray) else value


def _same(left: Any, right: Any, tolerance: float) -> bool:
    """Compare two columns; numbers may differ by `tolerance`, relatively or absolutely."""
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        if left.shape != right.shape:
            return False
        exact = tolerance == 0 or not np.issubdtype(left.dtype, np.floating)
        if exact:
            return np.array_equal(left, right, equal_nan=np.issubdtype(left.dtype, np.floating))
        return np.allclose(left, right, rtol=tolerance, atol=tolerance, equal_nan=True)
    return bool(left.equals(right))
