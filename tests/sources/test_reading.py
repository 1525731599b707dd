"""Every format gives the same rows for the same ranges, whatever the file's own pieces are."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinfer import registry
from batchinfer.data import Unit
from batchinfer.errors import BatchinferError, ContractError, DataError, NoInputError
from batchinfer.runner.plan import schema_of


def make_source(kind: str, path: str | list[str], **more: Any) -> Any:
    """Build a source as the job file would."""
    cls = registry.load("sources", kind)
    return cls(cls.Options.model_validate_json(json.dumps({"path": path, **more})))


def read_all(
    source: Any, columns: list[str], *, start: int = 0, stop: int | None = None, rows: int = 7
) -> list[Any]:
    """Read a range of every shard as plain rows, checking the numbers and the chunk size."""
    entries = source.list_entries()
    schema = schema_of(source, entries)
    found = []
    for index, entry in enumerate(entries):
        shard, _ = source.inspect(entry, index=index)
        end = shard.num_rows if stop is None else min(stop, shard.num_rows)
        unit = Unit(index=0, shard=shard, start=min(start, end), stop=end)
        last = unit.start - 1
        for chunk in source.read(unit, schema=schema, columns=columns, batch_rows=rows):
            assert chunk.rows.schema.names == columns
            assert [chunk.rows.schema.field(name).type for name in columns] == [
                schema.field(name).type for name in columns
            ]
            assert len(chunk.numbers) == chunk.rows.num_rows <= rows
            assert chunk.numbers[0] > last
            last = int(chunk.numbers[-1])
            found += chunk.rows.to_pylist()
    return found


def table_of(count: int) -> pa.Table:
    """Return rows with a number, a text with awkward letters, and a float."""
    return pa.table(
        {
            "n": pa.array(range(count), pa.int64()),
            "t": pa.array([f'täxt, "{row}"\nline' if row % 3 else f"r{row}" for row in range(count)]),
            "f": pa.array([row / 4 for row in range(count)], pa.float64()),
        }
    )


def write(kind: str, path: Path, table: pa.Table, piece: int) -> None:
    """Write a table in one of the formats, in pieces of the given size."""
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=piece)
    elif kind == "arrow":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=piece)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        with path.open("w", newline="") as file:
            writer_ = csv.writer(file)
            writer_.writerow(table.column_names)
            writer_.writerows(row.values() for row in table.to_pylist())


@pytest.mark.parametrize("kind", ["parquet", "arrow", "jsonl", "csv"])
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
    path = tmp_path_factory.mktemp("r") / f"data.{kind}"
    table = table_of(count)
    write(kind, path, table, piece)
    source = make_source(kind, str(path))
    found = read_all(source, ["f", "n"], start=start, stop=start + length, rows=rows)
    assert found == table.select(["f", "n"]).slice(start, length).to_pylist()


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_long_text_files_are_cut_into_blocks(tmp_path: Path, kind: str) -> None:
    """Forty thousand records make several blocks; reading from the middle begins there."""
    table = table_of(40_000)
    path = tmp_path / f"data.{kind}"
    write(kind, path, table, 1)
    source = make_source(kind, str(path))
    shard, _ = source.inspect(source.list_entries()[0], index=0)
    assert len(shard.blocks) == 3
    assert shard.num_rows == 40_000
    found = read_all(source, ["n", "t"], start=16_000, stop=33_000, rows=4096)
    assert found == table.select(["n", "t"]).slice(16_000, 17_000).to_pylist()


def test_blank_lines_and_a_missing_last_newline(tmp_path: Path) -> None:
    """Blank lines are no rows, and the last line counts without its newline."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 1}\n\n\r\n{"n": 2}\r\n{"n": 3}')
    assert read_all(make_source("jsonl", str(path)), ["n"]) == [{"n": 1}, {"n": 2}, {"n": 3}]


def test_compressed_lines(tmp_path: Path) -> None:
    """A .jsonl.gz is read like the file in it."""
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(b'{"n": %d}\n' % row for row in range(20_000))))
    found = read_all(make_source("jsonl", str(path)), ["n"], start=17_000, stop=17_003)
    assert found == [{"n": 17_000}, {"n": 17_001}, {"n": 17_002}]


def test_files_are_rows(tmp_path: Path) -> None:
    """A folder of files is one row per file, by path; bytes are read only where asked for."""
    for name in ("b.bin", "a/c.bin", "a/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode() * 3)
    source = make_source("files", str(tmp_path), suffixes=[".bin"])
    assert read_all(source, ["path", "bytes", "size"]) == [
        {"path": "a/c.bin", "bytes": b"a/c.bin" * 3, "size": 21},
        {"path": "b.bin", "bytes": b"b.bin" * 3, "size": 15},
    ]


def test_hive_partitions_are_columns(tmp_path: Path) -> None:
    """Folder names become columns: whole numbers as int64, other values as text, null as Hive writes it."""
    for folder, row in (
        ("year=2024/lang=de", 1),
        ("year=2025/lang=fr%2FCA", 2),
        ("year=2025/lang=__HIVE_DEFAULT_PARTITION__", 3),
    ):
        (tmp_path / folder).mkdir(parents=True)
        pq.write_table(pa.table({"n": [row]}), tmp_path / folder / "p.parquet")
    expected = [
        {"n": 1, "year": 2024, "lang": "de"},
        {"n": 3, "year": 2025, "lang": None},
        {"n": 2, "year": 2025, "lang": "fr/CA"},
    ]
    for path in (str(tmp_path), f"{tmp_path}/year=*/*/*.parquet", f"{tmp_path}/**/*.parquet"):
        assert read_all(make_source("parquet", path), ["n", "year", "lang"]) == expected
    only = make_source(
        "parquet", f"{tmp_path}/year=2025/**/*.parquet", where="lang = 'fr/CA' and year = 2025"
    )
    assert read_all(only, ["n", "year"]) == [{"n": 2, "year": 2025}]
    none = make_source("parquet", str(tmp_path), partitioning="none")
    assert schema_of(none, none.list_entries()).names == ["n"]


def test_several_paths_are_one_input(tmp_path: Path) -> None:
    """A list of paths is read in the order of the names, each file once; hidden names are left out."""
    for name in ("b.parquet", "a.parquet", "_tmp.parquet", ".x.parquet"):
        pq.write_table(pa.table({"n": [ord(name[0])]}), tmp_path / name)
    source = make_source("parquet", [f"{tmp_path}/b*", f"{tmp_path}/a.parquet", str(tmp_path)])
    assert read_all(source, ["n"]) == [{"n": ord("a")}, {"n": ord("b")}]


def test_where_skips_row_groups_by_their_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row group whose statistics rule the condition out is not decoded."""
    pq.write_table(pa.table({"n": range(1000)}), tmp_path / "a.parquet", row_group_size=100)
    decoded: list[int] = []
    real = pq.ParquetFile.iter_batches

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        decoded.extend(kwargs["row_groups"])
        return real(self, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    source = make_source("parquet", str(tmp_path / "a.parquet"), where="n between 250 and 260")
    assert [row["n"] for row in read_all(source, ["n"])] == list(range(250, 261))
    assert set(decoded) == {2}


def test_a_sample_is_stable(tmp_path: Path) -> None:
    """The same rows are sampled however they are read, about as many as asked for, others for another file."""
    for name in ("a", "b"):
        pq.write_table(pa.table({"n": range(20_000)}), tmp_path / f"{name}.parquet", row_group_size=3000)
    samples = []
    for name, rows in (("a", 64), ("a", 5000), ("b", 64)):
        source = make_source("parquet", str(tmp_path / f"{name}.parquet"), sample="5%")
        samples.append([row["n"] for row in read_all(source, ["n"], rows=rows)])
    assert samples[0] == samples[1] != samples[2]
    assert 850 < len(samples[0]) < 1150


def test_types_widen_without_loss(tmp_path: Path) -> None:
    """int32 in one file and int64 in another are read as int64; order and extra columns do not matter."""
    pq.write_table(pa.table({"n": pa.array([1], pa.int32()), "t": ["a"]}), tmp_path / "1.parquet")
    pq.write_table(
        pa.table({"t": pa.array(["b"], pa.large_string()), "n": [2], "new": [0]}), tmp_path / "2.parquet"
    )
    source = make_source("parquet", str(tmp_path))
    schema = schema_of(source, source.list_entries())
    assert schema == pa.schema([("n", pa.int64()), ("t", pa.large_string())])
    assert read_all(source, ["t", "n"]) == [{"t": "a", "n": 1}, {"t": "b", "n": 2}]


def bomb() -> bytes:
    """Return a few hundred bytes of Parquet that hold forty million rows of a long text."""
    out = io.BytesIO()
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(200_000, np.int32)), pa.array(["x" * 100_000]))
    pq.write_table(pa.table({"t": text}), out, compression="zstd", store_schema=False)
    return out.getvalue()


def test_a_bomb_is_read_in_small_pieces(tmp_path: Path) -> None:
    """A small file that decodes to twenty gigabytes is read a few megabytes at a time."""
    path = tmp_path / "bomb.parquet"
    path.write_bytes(bomb())
    assert path.stat().st_size < 20_000
    source = make_source("parquet", str(path))
    entries = source.list_entries()
    schema = schema_of(source, entries)
    shard, _ = source.inspect(entries[0], index=0)
    unit = Unit(index=0, shard=shard, start=0, stop=shard.num_rows)
    chunk = next(source.read(unit, schema=schema, columns=["t"], batch_rows=4096))
    assert chunk.rows.num_rows < 4096
    assert chunk.rows.nbytes < 64 * 2**20


BROKEN: list[tuple[str, str, bytes, type[BatchinferError], str]] = [
    ("parquet", "a.parquet", b"", DataError, "not a readable Parquet file"),
    ("parquet", "a.parquet", b"hello, I am no Parquet file", DataError, "not a readable Parquet file"),
    ("arrow", "a.arrow", b"ARROW1\0\0 and then nothing", DataError, "not a readable Arrow IPC file"),
    ("jsonl", "a.jsonl", b'{"n": 1}\n{"n": 2\n', DataError, "row 1: not JSON"),
    ("jsonl", "a.jsonl", b'{"n": 1}\n[2]\n', DataError, "row 1: must be a JSON object, is list"),
    ("jsonl", "a.jsonl", b'{"n": 1}\n{"n": "two"}\n', DataError, "types differ between lines"),
    ("csv", "a.csv", b"n,t\n1,a\n2,b,c\n", DataError, "3 fields where 2 are expected"),
    ("csv", "a.csv", b"", DataError, "the file is empty"),
]


@pytest.mark.parametrize(("kind", "name", "content", "error", "message"), BROKEN)
def test_broken_files_are_named(
    tmp_path: Path, kind: str, name: str, content: bytes, error: type[BatchinferError], message: str
) -> None:
    """A file that cannot be read is named, with what is wrong with it."""
    (tmp_path / name).write_bytes(content)
    source = make_source(kind, str(tmp_path / name))
    with pytest.raises(error, match=message) as caught:
        read_all(source, ["n"])
    assert name in str(caught.value)


def test_truncated_parquet_is_named(tmp_path: Path) -> None:
    """A Parquet file cut short has no footer: an error that names it."""
    whole = io.BytesIO()
    pq.write_table(pa.table({"n": range(1000)}), whole)
    (tmp_path / "cut.parquet").write_bytes(whole.getvalue()[:-100])
    with pytest.raises(DataError, match="not a readable Parquet file") as caught:
        read_all(make_source("parquet", str(tmp_path)), ["n"])
    assert "cut.parquet" in str(caught.value)


def test_a_file_that_changed_is_refused(tmp_path: Path) -> None:
    """A file written anew after the plan is not read as if it were the planned one."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": range(10)}), path)
    source = make_source("parquet", str(path))
    entries = source.list_entries()
    shard, schema = source.inspect(entries[0], index=0)
    pq.write_table(pa.table({"n": range(11)}), path)
    unit = Unit(index=0, shard=shard, start=0, stop=10)
    with pytest.raises(DataError, match="changed after it was planned"):
        list(source.read(unit, schema=schema, columns=["n"], batch_rows=10))


def test_no_file_says_what_is_there(tmp_path: Path) -> None:
    """Nothing matching is exit 66, with what was there instead."""
    (tmp_path / "a.csv").write_text("n\n1\n")
    with pytest.raises(NoInputError, match="matches no file") as caught:
        make_source("parquet", str(tmp_path)).list_entries()
    assert "'a.csv', none of them .parquet" in str(caught.value)
    with pytest.raises(NoInputError, match="nothing is below"):
        make_source("parquet", str(tmp_path / "nope" / "*.parquet")).list_entries()


def test_drift_names_both_files(tmp_path: Path) -> None:
    """A column that is a number here and a text there is an error that names both files."""
    pq.write_table(pa.table({"n": [1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"n": ["one"]}), tmp_path / "2.parquet")
    source = make_source("parquet", str(tmp_path))
    with pytest.raises(DataError, match="do not have one schema") as caught:
        schema_of(source, source.list_entries())
    assert f"'n' is int64 in {tmp_path}/1.parquet and string in {tmp_path}/2.parquet" in str(caught.value)


def test_a_condition_on_an_unknown_column(tmp_path: Path) -> None:
    """`where` is held against the columns before anything is read."""
    pq.write_table(pa.table({"n": [1]}), tmp_path / "1.parquet")
    for where, message in (("m > 1", "column 'm' is not in the input"), ("n > 'a'", "cannot be evaluated")):
        source = make_source("parquet", str(tmp_path), where=where)
        with pytest.raises(ContractError, match=message):
            source.selection.check(schema_of(source, source.list_entries()))
