"""Parquet: what is decoded, what is refused, and how much memory it takes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer.data import Block, Shard, Unit
from batchinfer.errors import DataError
from batchinfer.sources import parquet_rows
from batchinfer.storage import open_store
from tests.sources.reading import inspected, make_source, read_all, read_unit

Decoded = list[tuple[int, list[str]]]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Decoded:
    """Record which row groups and columns are decoded."""
    found: Decoded = []
    real = pq.ParquetFile.iter_batches

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs["batch_size"] > 1:  # a look at the footer or at a dictionary asks for one row
            found.append((kwargs["row_groups"][0], list(kwargs["columns"])))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    return found


def test_only_what_is_needed(tmp_path: Path, decoded: Decoded) -> None:
    """Row groups outside the range, and columns that nobody asked for, are not decoded."""
    table = pa.table({"n": range(1000), "t": ["x"] * 1000, "u": [0] * 1000})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    source = make_source("parquet", tmp_path / "a.parquet", where="u = 0")
    assert len(read_all(source, ["n"], start=250, stop=420)) == 170
    assert decoded == [(2, ["n", "u"]), (3, ["n", "u"]), (4, ["n", "u"])]


@pytest.mark.parametrize(
    ("where", "groups"),
    [
        ("n between 250 and 260", {2}),
        ("n in (5, 999)", {0, 9}),
        ("n < 100 or n > 950", {0, 9}),
        ("not n >= 100", {0}),
        ("f > 90.5", {9}),
        ("f != 3", set(range(10))),
        ("d = '2026-01-03'", {2}),
        ("n < 100 and part = 2", set()),
        ("n < 100 and part = 1", {0}),
        ("t like '%'", set(range(10))),
    ],
)
def test_where_skips_row_groups_by_their_statistics(
    tmp_path: Path, decoded: Decoded, where: str, groups: set[int]
) -> None:
    """A row group that statistics or folders rule out is not decoded, and no row is lost by it."""
    days = np.datetime64("2026-01-01") + np.arange(1000) // 100
    table = pa.table({"n": range(1000), "f": [row / 10 for row in range(1000)], "d": days, "t": ["x"] * 1000})
    (tmp_path / "part=1").mkdir()
    pq.write_table(table, tmp_path / "part=1" / "a.parquet", row_group_size=100)
    source = make_source("parquet", tmp_path, where=where)
    found = [row["n"] for row in read_all(source, ["n"])]
    assert {group for group, _ in decoded} == groups
    expression = source.selection.where.bind(inspected(source)[1])  # type: ignore[attr-defined]
    whole = table.append_column("part", pa.array([1] * 1000, pa.int64()))
    assert found == whole.filter(expression)["n"].to_pylist()


def test_statistics_leave_out_nan(tmp_path: Path) -> None:
    """NaN is in no statistics; a row that `not` or `!=` selects by it is kept all the same."""
    pq.write_table(pa.table({"n": range(3), "f": [3.0, float("nan"), 3.0]}), tmp_path / "a.parquet")
    for where in ("f != 3", "not f <= 4", "f not between 0 and 9"):
        source = make_source("parquet", tmp_path, where=where)
        assert read_all(source, ["n"]) == [{"n": 1}], where


def test_units_of_one_row_group_share_the_work(tmp_path: Path, decoded: Decoded) -> None:
    """Units that follow each other in a row group decode it once, not each from its beginning."""
    pq.write_table(pa.table({"n": range(1000)}), tmp_path / "a.parquet", row_group_size=1000)
    source = make_source("parquet", tmp_path)
    (shard,), schema = inspected(source)
    for start in range(0, 1000, 200):
        read_unit(source, Unit(index=0, shard=shard, start=start, stop=start + 200), schema, ["n"])
    assert len(decoded) == 1
    # A unit that was left half way is read anew.
    first = Unit(index=0, shard=shard, start=0, stop=200)
    next(iter(source.read(first, schema=schema, columns=["n"], batch_rows=7)))
    assert read_unit(source, first, schema, ["n"])[1] == list(range(200))


def bomb(path: Path, *, longest: int, num_rows: int, before: int = 0) -> None:
    """Write a few hundred bytes of Parquet that hold many rows of one long text, behind some short ones."""
    at = np.r_[np.zeros(before, np.int32), np.ones(num_rows - before, np.int32)]
    texts = pa.DictionaryArray.from_arrays(pa.array(at), pa.array(["", "x" * longest]))
    pq.write_table(pa.table({"t": texts}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 5_000


@pytest.mark.parametrize("before", [0, 1000])
def test_a_bomb_is_read_in_small_pieces(tmp_path: Path, before: int) -> None:
    """A file of a few hundred bytes that decodes to gigabytes is read a few megabytes at a time, and
    refused before they pile up."""
    bomb(tmp_path / "bomb.parquet", longest=1_000_000, num_rows=20_000, before=before)
    source = make_source("parquet", tmp_path)
    (shard,), schema = inspected(source)
    unit = Unit(index=0, shard=shard, start=0, stop=shard.num_rows)
    before_bytes = pa.total_allocated_bytes()
    most = 0

    def count() -> int:
        nonlocal most
        num_rows = 0
        for chunk in source.read(unit, schema=schema, columns=["t"], batch_rows=8192):
            num_rows += chunk.rows.num_rows
            most = max(most, pa.total_allocated_bytes() - before_bytes)
        return num_rows

    with pytest.raises(DataError, match=r"rows decode to 5\d\d,\d+,\d+ bytes, above the limit") as caught:
        count()
    assert "bomb.parquet" in str(caught.value)
    assert most < 160 * 2**20


def test_long_values_are_no_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that the file really stores may be as large as they are."""
    monkeypatch.setattr(parquet_rows, "_MAX_BYTES", 10_000_000)
    random = np.random.default_rng(0)
    images = [random.bytes(3_000_000) for _ in range(12)]
    pq.write_table(pa.table({"image": pa.array(images, pa.binary())}), tmp_path / "a.parquet")
    source = make_source("parquet", tmp_path)
    (shard,), schema = inspected(source)
    unit = Unit(index=0, shard=shard, start=0, stop=12)
    chunks = list(source.read(unit, schema=schema, columns=["image"], batch_rows=4096))
    assert [value for chunk in chunks for value in chunk.rows["image"].to_pylist()] == images
    assert max(chunk.rows.nbytes for chunk in chunks) <= 33_600_000


def test_a_row_above_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that alone decodes to more than the budget is refused before it is decoded."""
    monkeypatch.setattr(parquet_rows, "_MAX_BYTES", 4_000_000)
    zeros = pa.array(np.zeros(1_400_000, np.int32))
    lists = pa.ListArray.from_arrays(pa.array([0, len(zeros)], pa.int32()), zeros)
    pq.write_table(pa.table({"v": lists}), tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 1000
    with pytest.raises(DataError, match="1 rows decode to 5,600,000 bytes"):
        read_all(make_source("parquet", tmp_path), ["v"])


def damaged() -> list[Any]:
    """Return kinds of files that are no Parquet, with what is said of them."""
    whole = io.BytesIO()
    pq.write_table(pa.table({"n": np.arange(10_000)}), whole, write_page_checksum=True)
    data = whole.getvalue()
    flipped = bytearray(data)
    flipped[200] ^= 0xFF
    return [
        pytest.param(b"", "file size is 0 bytes", id="empty"),
        pytest.param(b"hello, I am no Parquet file", "magic bytes not found", id="text"),
        pytest.param(data[:-100], "not a readable Parquet file", id="cut at the end"),
        pytest.param(data[:4000], "not a readable Parquet file", id="cut in the middle"),
        pytest.param(bytes(flipped), "CRC", id="a bit flipped"),
        pytest.param(data[:4] + bytes(2000) + data[2004:], "not a readable Parquet file", id="zeros"),
    ]


@pytest.mark.parametrize(("content", "message"), damaged())
def test_broken_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    """A file that cannot be read is named, with what is wrong with it."""
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_all(make_source("parquet", tmp_path), ["n"])
    assert "a.parquet" in str(caught.value)


def test_a_footer_that_promises_too_much(tmp_path: Path) -> None:
    """Rows that are planned and do not come are an error, not a shorter output."""
    pq.write_table(pa.table({"n": range(10)}), tmp_path / "a.parquet")
    source = make_source("parquet", tmp_path)
    (shard,), schema = inspected(source)
    longer = Shard(
        index=0,
        uri=shard.uri,
        key=shard.key,
        size_bytes=shard.size_bytes,
        version=shard.version,
        blocks=(Block(num_rows=11, num_bytes=1),),
    )
    with pytest.raises(DataError, match="the rows end at row 10, before the footer says"):
        read_unit(source, Unit(index=0, shard=longer, start=0, stop=11), schema, ["n"])


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    """A column that a file lacks, or has twice, is named with the file."""
    pq.write_table(pa.table({"n": range(10)}), tmp_path / "a.parquet")
    source = make_source("parquet", tmp_path)
    (shard,), _ = inspected(source)
    schema = pa.schema([("n", pa.int64()), ("m", pa.int64())])
    with pytest.raises(DataError, match="column 'm' is missing") as caught:
        read_unit(source, Unit(index=0, shard=shard, start=0, stop=1), schema, ["m"])
    assert "a.parquet" in str(caught.value)
    pq.write_table(pa.table([[1], [2]], names=["n", "n"]), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="'n' stands in the file more than once"):
        inspected(make_source("parquet", tmp_path / "b.parquet"))


def test_a_file_that_changed_is_refused(tmp_path: Path) -> None:
    """A file written anew after the plan is not read as if it were the planned one."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": range(10)}), path)
    source = make_source("parquet", path)
    (shard,), schema = inspected(source)
    pq.write_table(pa.table({"n": range(11)}), path)
    with pytest.raises(DataError, match="changed after it was planned"):
        read_unit(source, Unit(index=0, shard=shard, start=0, stop=10), schema, ["n"])


def test_an_object_that_changes_while_it_is_read(tmp_path: Path) -> None:
    """An object replaced between two requests is never read as a mix of both."""
    uri = "memory://changing/a.parquet"
    whole = io.BytesIO()
    pq.write_table(pa.table({"n": range(1000)}), whole, row_group_size=100)
    store = open_store(uri, {})
    store.put(uri, whole.getvalue())
    source = make_source("parquet", uri)
    (shard,), schema = inspected(source)
    unit = Unit(index=0, shard=shard, start=0, stop=1000)
    chunks = source.read(unit, schema=schema, columns=["n"], batch_rows=50)
    next(chunks)
    store.put(uri, whole.getvalue()[:-1] + b"x")
    with pytest.raises(DataError, match="changed after it was planned"):
        list(chunks)
