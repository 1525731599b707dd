"""The input of failed rows as JSON text, where the job asks for it (`errors.keep_input`)."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import pyarrow as pa

from batchinfer.sinks.jsonl import json_rows

INPUT = "#input."
"""What the names of input columns begin with while they travel along with a row."""

_MAX_BYTES = 64 * 1024


def kept_inputs(carried: pa.Table, failed: Collection[int]) -> pa.Array:
    """Return the column `_input` of a window: the row's input columns where it failed, else null."""
    texts: list[str | None] = [None] * carried.num_rows
    positions = sorted(failed)
    if positions:
        names = [name for name in carried.column_names if name.startswith(INPUT)]
        rows = (
            carried.select(names).take(positions).rename_columns([name.removeprefix(INPUT) for name in names])
        )
        for position, row in zip(positions, json_rows(rows), strict=True):
            texts[position] = _bounded(row)
    return pa.array(texts, pa.string())


def _bounded(row: dict[str, Any]) -> str:
    """Return a row as JSON; of one that is too long, the longest values are left out, and said to be."""
    text = _json(row)
    if len(text.encode()) <= _MAX_BYTES:
        return text
    sizes = {name: len(_json(value).encode()) for name, value in row.items()}
    left = sum(sizes.values()) + sum(len(_json(name).encode()) + len(", : ") for name in row)
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        if left <= _MAX_BYTES:
            break
        row[name] = {"left_out": f"{sizes[name]} bytes"}
        left += len(_json(row[name])) - sizes[name]
    return _json(row)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
