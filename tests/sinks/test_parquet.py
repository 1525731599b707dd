"""Parquet parts: the same bytes wherever they are written, and what long values cost."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer.errors import ContractError
from batchinfer.sinks.parquet import ParquetOptions, ParquetSink
from tests.conftest import encoded

SINK = ParquetSink(ParquetOptions(path="out/"))


def test_parts_larger_than_their_rows() -> None:
    """A value that stands once in a dictionary is written for each of its rows, however many bytes that is."""
    value = "".join(chr(97 + at) for at in np.random.default_rng(0).integers(0, 26, 1 << 20))
    rows = pa.table({"text": pa.DictionaryArray.from_arrays(pa.array([0] * 16, pa.int32()), [value])})
    sink = ParquetSink(ParquetOptions(path="out/", compression="none"))
    data = encoded(sink, rows, {"key": "value"})
    assert len(data) > 4 * rows.nbytes
    assert sink.count(data) == (16, 0)
    assert pq.read_table(pa.BufferReader(data))["text"].to_pylist() == [value] * 16


def test_row_groups_are_cut_by_rows_alone() -> None:
    """Wide rows are cut into row groups of at most 16 MiB, narrow ones at the option's number; in whatever
    pieces rows come, the bytes are the same."""
    wide = pa.list_(pa.float32(), 16_384)
    values = np.random.default_rng(0).random(600 * 16_384, np.float32)
    rows = pa.table({"id": range(600), "v": pa.FixedSizeListArray.from_arrays(pa.array(values), type=wide)})
    sink = ParquetSink(ParquetOptions(path="out/", compression="none"))
    whole = encoded(sink, rows, {"a": "b"})
    footer = pq.read_metadata(pa.BufferReader(whole))
    sizes = [footer.row_group(at).num_rows for at in range(footer.num_row_groups)]
    assert sizes == [255, 255, 90]
    assert bytes(encoded(sink, rows, {"a": "b"}, cuts=(1, 300, 301, 580))) == bytes(whole)
    narrow = ParquetSink(ParquetOptions(path="out/", row_group_rows=250))
    footer = pq.read_metadata(pa.BufferReader(encoded(narrow, rows.select(["id"]), {}, cuts=(7, 260))))
    assert [footer.row_group(at).num_rows for at in range(footer.num_row_groups)] == [250, 250, 100]


def test_what_parquet_cannot_hold() -> None:
    """A type that Parquet does not have is refused as such."""
    with pytest.raises(ContractError, match="Parquet cannot hold"):
        encoded(SINK, pa.table({"x": pa.array([pa.MonthDayNano([1, 2, 3])])}), {})


def test_long_values_have_no_statistics() -> None:
    """Of a column with a value above a megabyte no smallest and largest is noted; of the others it is."""
    for size, noted in ((10, True), (2 << 20, False)):
        rows = pa.table({"id": [1, 2], "text": ["a", "b" * size], "v": [[1.0], [2.0]]})
        footer = pq.read_metadata(pa.BufferReader(encoded(SINK, rows, {})))
        columns = [footer.row_group(0).column(at) for at in range(2)]
        assert columns[0].statistics.has_min_max
        assert (columns[1].statistics is not None and columns[1].statistics.has_min_max) == noted
