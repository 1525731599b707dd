"""Models that insist on a number of rows: batches are cut to it, and one with fewer is filled up."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from batchinfer.data import Tensors


def in_batches_of(
    size: int, tensors: Tensors, run: Callable[[Tensors], dict[str, Any]], *, least: int | None = None
) -> dict[str, Any]:
    """Run exactly `size` rows at a time (or from `least` to `size`), and return the results of all rows
    and of no others.

    What fills a batch up is its last row, which cannot bring in a value that is not there.
    """
    num_rows = len(next(iter(tensors.values())))
    pieces = []
    for start in range(0, num_rows, size):
        rows = min(size, num_rows - start)
        wanted = size if least is None else max(rows, least)
        given = {name: _filled(value[start : start + rows], wanted) for name, value in tensors.items()}
        pieces.append({name: value[:rows] for name, value in run(given).items()})
    return {name: _joined([piece[name] for piece in pieces]) for name in pieces[0]}


def _filled(value: Any, size: int) -> Any:
    """Repeat the last row up to `size` rows."""
    num_missing = size - len(value)
    if not num_missing:
        return value
    if isinstance(value, np.ndarray):
        return np.concatenate([value, np.repeat(value[-1:], num_missing, axis=0)])
    if isinstance(value, pa.Array):
        return pa.concat_arrays([value, *[value[-1:]] * num_missing])
    import torch

    return torch.cat([value, value[-1:].expand(num_missing, *value.shape[1:])])


def _joined(pieces: list[Any]) -> Any:
    if len(pieces) == 1:
        return pieces[0]
    if isinstance(pieces[0], np.ndarray):
        return np.concatenate(pieces)
    if isinstance(pieces[0], pa.Array):
        return pa.concat_arrays(pieces)
    import torch

    return torch.cat(pieces)
