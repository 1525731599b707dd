"""The JSON Lines sink: every value that Arrow has becomes a value that JSON has."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from batchinfer.sinks.jsonl import JsonlOptions, JsonlSink
from tests.conftest import encoded


def written(column: pa.Array) -> list[Any]:
    """Encode a column, and return what a reader of JSON finds in it."""
    data = encoded(JsonlSink(JsonlOptions(path="unused")), pa.table({"v": column}), {})
    return [json.loads(line)["v"] for line in data.to_pybytes().splitlines()]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (pa.array([0, None], pa.timestamp("ns")), ["1970-01-01T00:00:00.000000000", None]),
        (pa.array([1], pa.timestamp("ns", tz="Europe/Berlin")), ["1970-01-01T00:00:00.000000001Z"]),
        (pa.array([253402300800], pa.timestamp("s")), ["10000-01-01T00:00:00"]),
        (pa.array([19_000], pa.date32()), ["2022-01-08"]),
        (pa.array([3_661_000_001], pa.time64("us")), ["01:01:01.000001"]),
        (pa.array([1_500, -1, None], pa.duration("ms")), ["PT1.500S", "PT-0.001S", None]),
        (pa.array([Decimal("1.10")]), ["1.10"]),
        (pa.array([b"\x00\xff"]), ["AP8="]),
        (pa.array([float("nan"), float("inf"), 0.5]), [None, None, 0.5]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_values(column: pa.Array, values: list[Any]) -> None:
    """Times, also those that Python has no class for, are texts as ISO 8601 has them."""
    assert written(column) == values
