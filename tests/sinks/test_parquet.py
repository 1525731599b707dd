"""Parquet parts: the same bytes wherever they are written, and what long values cost."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer.errors import ContractError
from batchinfer.sinks.parquet import ParquetOptions, ParquetSink

SINK = ParquetSink(ParquetOptions(path="out/"))


def test_parts_larger_than_their_rows() -> None:
    """A value that stands once in a dictionary is written for each of its rows, however many bytes that is."""
    value = "".join(chr(97 + at) for at in np.random.default_rng(0).integers(0, 26, 1 << 20))
    rows = pa.table({"text": pa.DictionaryArray.from_arrays(pa.array([0] * 16, pa.int32()), [value])})
    sink = ParquetSink(ParquetOptions(path="out/", compression="none"))
    data = sink.encode(rows, {"key": "value"})
    assert len(data) > 4 * rows.nbytes
    assert sink.count(data) == (16, 0)
    assert pq.read_table(pa.BufferReader(data))["text"].to_pylist() == [value] * 16


def test_the_same_bytes_without_the_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part has the same bytes in mapped memory and in a stream that grows."""
    rows = pa.table({"id": range(5000), "y": np.random.default_rng(0).random(5000)})
    mapped = SINK.encode(rows, {"a": "b"}).to_pybytes()
    real = mmap.mmap

    def small(fileno: int, _: int, **how: Any) -> mmap.mmap:
        return real(fileno, 1, **how)

    monkeypatch.setattr(mmap, "mmap", small)
    assert SINK.encode(rows, {"a": "b"}).to_pybytes() == mapped


def test_what_parquet_cannot_hold() -> None:
    """A type that Parquet does not have is refused as such."""
    with pytest.raises(ContractError, match="Parquet cannot hold"):
        SINK.encode(pa.table({"x": pa.array([pa.MonthDayNano([1, 2, 3])])}), {})


def test_long_values_have_no_statistics() -> None:
    """Of a column with a value above a megabyte no smallest and largest is noted; of the others it is."""
    for size, noted in ((10, True), (2 << 20, False)):
        rows = pa.table({"id": [1, 2], "text": ["a", "b" * size], "v": [[1.0], [2.0]]})
        footer = pq.read_metadata(pa.BufferReader(SINK.encode(rows, {})))
        columns = [footer.row_group(0).column(at) for at in range(2)]
        assert columns[0].statistics.has_min_max
        assert (columns[1].statistics is not None and columns[1].statistics.has_min_max) == noted
