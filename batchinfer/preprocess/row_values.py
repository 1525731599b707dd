"""Column values as Python objects, where one value that cannot be one costs its own row only."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from batchinfer.data import ErrorCode, Failure


def python_values(name: str, column: pa.Array) -> tuple[list[Any], dict[int, Failure]]:
    """Return the values of a column, None where one cannot be read, and why those rows fail.

    Files may hold texts that are no UTF-8 and dates beyond year 9999: Arrow hands both on unseen.
    """
    try:
        return column.to_pylist(), {}
    except (ValueError, OverflowError):
        pass
    values: list[Any] = []
    failed: dict[int, Failure] = {}
    for row, scalar in enumerate(column):
        try:
            values.append(scalar.as_py())
        except (ValueError, OverflowError) as error:
            text = isinstance(error, UnicodeDecodeError)
            why = "is not valid UTF-8" if text else f"cannot be read as a value: {error}"
            failed[row] = Failure(ErrorCode.DECODE, f"column {name!r} {why}")
            values.append(None)
    return values, failed
