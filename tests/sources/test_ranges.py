"""Every format gives the same rows for the same ranges, whatever the file's own pieces are."""

from __future__ import annotations

import gzip
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.data import Unit
from batchinfer.sources import text_blocks
from batchinfer.sources.select import count_selected
from tests.sources.reading import inspected, make_source, read_all, read_unit, table_of, write

KINDS = ["parquet", "arrow", "stream", "jsonl", "csv"]
SUFFIXES = {"stream": "arrow"}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(
    count=st.integers(1, 90),
    piece=st.integers(1, 40),
    start=st.integers(0, 80),
    length=st.integers(1, 90),
    rows=st.integers(1, 50),
)
def test_any_range_of_any_format(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    count: int,
    piece: int,
    start: int,
    length: int,
    rows: int,
) -> None:
    """Rows [start, stop) come out in order, with only the columns asked for, in the order asked for."""
    suffix = SUFFIXES.get(kind, kind)
    path = tmp_path_factory.mktemp("r") / f"data.{suffix}"
    table = table_of(count)
    write(kind, path, table, piece)
    source = make_source(suffix, path)
    found = read_all(source, ["f", "n"], start=start, stop=start + length, rows=rows)
    assert found == table.select(["f", "n"]).slice(start, length).to_pylist()


@pytest.mark.parametrize("kind", ["parquet", "arrow", "jsonl.gz", "csv"])
@settings(max_examples=20)
@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=3), cut=st.integers(1, 40), data=st.data())
def test_units_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, kind: str, sizes: list[int], cut: int, data: st.DataObject
) -> None:
    """One source that reads the units of several files in any order gives every row once, with its number,
    and the pieces do not depend on what was read before."""
    folder = tmp_path_factory.mktemp("u")
    text = kind.removesuffix(".gz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_blocks, "_BLOCK_ROWS", 8)
        for at, size in enumerate(sizes):
            path = folder / f"{at}.{text}"
            write(text, path, table_of(size), 16)
            if kind != text:
                path.with_name(f"{at}.{kind}").write_bytes(gzip.compress(path.read_bytes()))
                path.unlink()
        source = make_source(text, folder)
        shards, schema = inspected(source)
    units = [
        Unit(index=0, shard=shard, start=start, stop=min(start + cut, shard.num_rows))
        for shard in shards
        for start in range(0, shard.num_rows, cut)
    ]
    for unit in data.draw(st.permutations(units)):
        found, numbers = read_unit(source, unit, schema, ["n"], rows=5)
        assert numbers == list(range(unit.start, unit.stop))
        assert [row["n"] for row in found] == numbers
        again = make_source(text, folder).read(unit, schema=schema, columns=["n"], batch_rows=5)
        kept = source.read(unit, schema=schema, columns=["n"], batch_rows=5)
        assert [len(chunk.numbers) for chunk in kept] == [len(chunk.numbers) for chunk in again]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "jsonl.gz", "files"])
def test_several_threads(tmp_path: Path, kind: str) -> None:
    """Units of one source that are read in several threads at once do not disturb each other."""
    text = kind.removesuffix(".gz")
    if kind == "files":
        for at in range(200):
            (tmp_path / f"{at:03}.bin").write_bytes(b"x" * at)
    else:
        write(text, tmp_path / f"a.{text}", table_of(200), 200)
    if kind != text:
        (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
        (tmp_path / "a.jsonl").unlink()
    source = make_source(text, tmp_path)
    (shard,), schema = inspected(source)
    columns = ["path", "bytes", "size"] if kind == "files" else ["n", "t"]
    barrier = threading.Barrier(4)

    def read(at: int) -> list[int]:
        barrier.wait()
        unit = Unit(index=at, shard=shard, start=at * 50, stop=at * 50 + 50)
        return [number for _ in range(5) for number in read_unit(source, unit, schema, columns)[1]]

    with ThreadPoolExecutor(4) as pool:
        for at, numbers in enumerate(pool.map(read, range(4))):
            assert numbers == list(range(at * 50, at * 50 + 50)) * 5


@pytest.mark.parametrize("kind", KINDS)
def test_no_column_at_all(tmp_path: Path, kind: str) -> None:
    """Rows are counted without a column, also where some are left out; partition columns need no other."""
    suffix = SUFFIXES.get(kind, kind)
    write(kind, tmp_path / "dt=5" / f"a.{suffix}", table_of(50), 20)
    assert len(read_all(make_source(suffix, tmp_path), [])) == 50
    assert read_all(make_source(suffix, tmp_path), ["dt"]) == [{"dt": 5}] * 50
    assert len(read_all(make_source(suffix, tmp_path, where="n >= 45"), [])) == 5
    assert 0 < len(read_all(make_source(suffix, tmp_path, sample="50%"), [])) < 50
    assert read_all(make_source(suffix, tmp_path, where="dt = 6"), ["n"]) == []


@settings(max_examples=40)
@given(limit=st.integers(1, 60), start=st.integers(0, 40), length=st.integers(1, 60))
def test_rows_up_to_a_limit(
    tmp_path_factory: pytest.TempPathFactory, limit: int, start: int, length: int
) -> None:
    """A limit is reached behind the row that is the last of so many selected ones."""
    path = tmp_path_factory.mktemp("l") / "a.parquet"
    write("parquet", path, table_of(100), 30)
    for where, wanted in ((None, range(100)), ("n >= 20 and f < 15", range(20, 60))):
        source = make_source("parquet", path, **({"where": where} if where else {}))
        (shard,), schema = inspected(source)
        unit = Unit(index=0, shard=shard, start=start, stop=start + length)
        count, stop = count_selected(source, unit, schema=schema, limit=limit)
        selected = [row for row in wanted if start <= row < start + length]
        assert count == min(limit, len(selected))
        assert stop == (selected[limit - 1] + 1 if len(selected) >= limit else unit.stop)


def test_a_file_without_rows(tmp_path: Path) -> None:
    """A file may have columns and no row."""
    for kind in ("parquet", "arrow", "csv"):
        path = tmp_path / f"a.{kind}"
        write(kind, path, table_of(1).slice(0, 0), 10)
        source = make_source(kind, path)
        (shard,), schema = inspected(source)
        assert shard.num_rows == 0
        assert schema.names == ["n", "t", "f"]
        assert read_unit(source, Unit(index=0, shard=shard, start=0, stop=0), schema, ["n"]) == ([], [])


def test_nested_columns(tmp_path: Path) -> None:
    """Lists and structs come through as they are, with a dot in a name or without."""
    rows: list[dict[str, Any]] = [
        {"s": {"a": 1, "b": ["x"]}, "v": [1.0, 2.0], "s.a": 5},
        {"s": None, "v": None, "s.a": None},
        {"s": {"a": None, "b": []}, "v": [], "s.a": 6},
    ]
    for kind in ("parquet", "arrow", "jsonl"):
        path = tmp_path / f"a.{kind}"
        write(kind, path, pa.Table.from_pylist(rows), 2)
        assert read_all(make_source(kind, path), ["v", "s", "s.a"]) == [
            {"v": row["v"], "s": row["s"], "s.a": row["s.a"]} for row in rows
        ]
