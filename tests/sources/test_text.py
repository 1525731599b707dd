"""JSON Lines and CSV: where records begin and end, their types, and the line that is wrong."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from batchinfer.data import Unit
from batchinfer.errors import ContractError, DataError
from batchinfer.sources import csv_text, jsonl, text_blocks, text_streams
from batchinfer.sources.text_blocks import Dialect, scan
from batchinfer.storage import Store, open_store
from tests.sources.reading import inspected, make_source, read_all, read_unit, table_of, write


def read_text(path: Path, content: bytes | str, columns: list[str] | None = None, **more: Any) -> list[Any]:
    """Write a file and read it whole, by the format of its suffix."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    source = make_source("csv" if ".csv" in path.name or ".tsv" in path.name else "jsonl", path, **more)
    return read_all(source, inspected(source)[1].names if columns is None else columns, rows=5000)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_long_files_are_cut_into_blocks(tmp_path: Path, kind: str) -> None:
    """Forty thousand records make several blocks; reading from the middle begins there."""
    table = table_of(40_000)
    path = tmp_path / f"data.{kind}"
    write(kind, path, table, 1)
    source = make_source(kind, path)
    (shard,), _ = inspected(source)
    assert [block.num_rows for block in shard.blocks] == [16_384, 16_384, 7_232]
    found = read_all(source, ["n", "t"], start=16_000, stop=33_000, rows=4096)
    assert found == table.select(["n", "t"]).slice(16_000, 17_000).to_pylist()


@given(
    lines=st.lists(st.sampled_from(["", " ", "\r", "ab", "c\r", "  d", '"x\ny"', '"a""\n\nb"', '"\n'])),
    end=st.sampled_from(["", "\n"]),
    piece=st.integers(1, 9),
    rows=st.integers(1, 4),
    size=st.integers(1, 12),
)
def test_scanning_in_any_pieces(lines: list[str], end: str, piece: int, rows: int, size: int) -> None:
    """Blocks hold whole records and every record once, wherever the pieces that are read end."""
    data = ("\n".join(lines) + end).encode()
    if data.count(b'"') % 2:
        data += b'"'
    expected = []
    for record in _records(data):
        if record.strip(b"\r\n"):
            expected.append(record)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_blocks, "READ_BYTES", piece)
        patch.setattr(text_blocks, "_BLOCK_ROWS", rows)
        patch.setattr(text_blocks, "_BLOCK_BYTES", size)
        uri = "memory://scan/a.csv"
        store = open_store(uri, {})
        store.put(uri, data)
        version = store.glob(uri)[0].version
        blocks = scan(store, uri, version=version, start=0, dialect=Dialect(blank=b"\r\n", quote='"'))
    found = []
    for block in blocks:
        inside = [
            record
            for record in _records(data[block.offset : block.offset + block.num_bytes])
            if record.strip(b"\r\n")
        ]
        assert len(inside) == block.num_rows
        assert block.num_rows <= rows
        found += inside
    assert found == expected


def _records(data: bytes) -> list[bytes]:
    """Cut a text at newlines outside quotes, one character at a time."""
    records, record, inside = [], b"", False
    for at in range(len(data)):
        char = data[at : at + 1]
        record += char
        inside ^= char == b'"'
        if char == b"\n" and not inside:
            records.append(record)
            record = b""
    return [*records, record] if record else records


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.jsonl", b'{"n": 1}\n\n\r\n  \t\n{"n": 2}\r\n{"n": 3}', [1, 2, 3]),
        ("a.jsonl", b'\xef\xbb\xbf{"n": 1}\n{"n": 2}\n', [1, 2]),
        ("a.jsonl", b'{"n": 1}\n{}\n{"n": null}\n', [1, None, None]),
        ("a.csv", b"n,t\n1,a\n\n\r\n2,b\r\n3,c", [1, 2, 3]),
        ("a.csv", b"\n\r\nn,t\n1,a\n", [1]),
        ("a.csv", b"\xef\xbb\xbfn,t\n1,a\n", [1]),
        ("a.csv", b"n\n1\n\n2\n", [1, 2]),
        ("a.tsv", b"n\tt\n1\ta,b\n", [1]),
    ],
)
def test_blanks_marks_and_line_ends(tmp_path: Path, name: str, content: bytes, rows: list[Any]) -> None:
    """Blank lines are no rows, a byte order mark is no text, and the last line needs no newline."""
    assert [row["n"] for row in read_text(tmp_path / name, content)] == rows


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".csv.gz", ".csv.zst"])
def test_compressed_files(tmp_path: Path, suffix: str) -> None:
    """A compressed file is read like the file in it, also where it is several that follow each other."""
    kind = suffix.split(".")[1]
    plain = tmp_path / f"plain.{kind}"
    write(kind, plain, table_of(20_000), 1)
    data = plain.read_bytes()
    plain.unlink()
    halves = (data[: len(data) // 3], data[len(data) // 3 :])
    pack = gzip.compress if suffix.endswith("gz") else lambda part: pa.compress(part, "zstd", asbytes=True)
    (tmp_path / f"a{suffix}").write_bytes(b"".join(pack(half) for half in halves))
    found = read_all(make_source(kind, tmp_path), ["n"], start=17_000, stop=17_003)
    assert found == [{"n": 17_000}, {"n": 17_001}, {"n": 17_002}]


def test_units_of_a_compressed_file_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units that follow each other go on where the one before ended, also in the middle of a block."""
    opened: list[str] = []
    real = text_streams.open_text

    def watched(store: Store, uri: str, *, version: str | None) -> Any:
        opened.append(uri)
        return real(store, uri, version=version)

    monkeypatch.setattr(text_blocks, "_BLOCK_ROWS", 100)
    for at in range(4):
        content = "".join(f'{{"n": {row}}}\n' for row in range(1000))
        (tmp_path / f"{at}.jsonl.gz").write_bytes(gzip.compress(content.encode(), mtime=0))
    source = make_source("jsonl", tmp_path)
    shards, schema = inspected(source)
    monkeypatch.setattr(text_streams, "open_text", watched)
    for start in range(0, 1000, 250):
        unit = Unit(index=0, shard=shards[0], start=start, stop=start + 250)
        assert read_unit(source, unit, schema, ["n"])[1] == list(range(start, start + 250))
    assert len(opened) == 1
    # Few stay open: of many files that are read by turns, the last ones.
    for start in range(0, 1000, 500):
        for shard in shards:
            unit = Unit(index=0, shard=shard, start=start, stop=start + 500)
            assert len(read_unit(source, unit, schema, ["n"])[1]) == 500
    assert len(opened) == 1 + 4 + 2


def test_json_types(tmp_path: Path) -> None:
    """Types come from the first lines; declared ones hold instead, and fill what the lines lack."""
    lines = '{"a": 1, "b": "2026-01-01", "c": [1, 2], "z": "007"}\n{"a": 2, "c": null}\n'
    assert read_text(
        tmp_path / "a.jsonl",
        lines,
        ["a", "b", "c", "z", "new", "h"],
        types={
            "b": "date32",
            "c": "float32[2]",
            "z": "string",
            "new": "int64",
            "h": "float16",
            "a": "float64",
        },
    ) == [
        {
            "a": 1.0,
            "b": pa.scalar("2026-01-01").cast(pa.date32()).as_py(),
            "c": [1.0, 2.0],
            "z": "007",
            "new": None,
            "h": None,
        },
        {"a": 2.0, "b": None, "c": None, "z": None, "new": None, "h": None},
    ]


def test_csv_types(tmp_path: Path) -> None:
    """Only an empty field that is not quoted is null; what else is null, and every type, can be declared."""
    content = 'zip,country,x\n007,NA,nan\n,"",1.5\n'
    first, second = read_text(tmp_path / "a.csv", content)
    assert (first["zip"], first["country"], str(first["x"])) == (7, "NA", "nan")
    assert second == {"zip": None, "country": "", "x": 1.5}
    declared = read_text(
        tmp_path / "a.csv", content, types={"zip": "string", "x": "float32"}, null_values=["", "NA", "nan"]
    )
    assert declared == [
        {"zip": "007", "country": None, "x": None},
        {"zip": None, "country": "", "x": 1.5},
    ]


def test_csv_dialects(tmp_path: Path) -> None:
    """The delimiter, the quote and the header can be others."""
    rows = [{"a": 1, "b": "x;y"}]
    assert read_text(tmp_path / "a.csv", "a;b\n1;'x;y'\n", delimiter=";", quote="'") == rows
    assert read_text(tmp_path / "a.csv", "1,x\n2,y\n", header=False) == [
        {"f0": 1, "f1": "x"},
        {"f0": 2, "f1": "y"},
    ]
    assert read_text(tmp_path / "a.csv", 'a,b\n1,5" pipe\n2,"\n', quote=None) == [
        {"a": 1, "b": '5" pipe'},
        {"a": 2, "b": '"'},
    ]


def test_a_header_alone(tmp_path: Path) -> None:
    """A CSV file with nothing but a header has columns and no rows, and fits any other file."""
    (tmp_path / "1.csv").write_text("n,t\n")
    (tmp_path / "2.csv").write_text("n,t\n1,\n")
    source = make_source("csv", tmp_path)
    assert inspected(source)[1] == pa.schema([("n", pa.int64()), ("t", pa.string())])
    assert read_all(source, ["n", "t"]) == [{"n": 1, "t": None}]


def _many(line: str) -> str:
    return (line + "\n") * 20_000


@pytest.mark.parametrize(
    ("name", "content", "line", "message"),
    [
        ("a.jsonl", '{"n": 1}\n\n{"n": 2\n{"n": 3}\n', 3, "not a JSON object: Expecting ',' delimiter"),
        ("a.jsonl", '{"n": 1}\n[2]\n', 2, "must be a JSON object, is a list"),
        ("a.jsonl", '{"n": 1}\n{"n": "two"}\n', 2, "changed from number to string"),
        ("a.jsonl", '{"n": 1}\n{"n": 1, "n": 2}\n', 2, "specified twice"),
        ("a.jsonl", '{"n":\n1}\n', 1, "2 records were counted in a block, and 1 parsed"),
        ("a.jsonl", b'{"n": 1}\n{"n": "\xe9"}\n', 2, "the line is not UTF-8"),
        ("a.jsonl", '{"n": 1}\n{"n": ' + "[" * 5000 + "]" * 5000 + "}\n", 2, "nested too deeply"),
        ("a.jsonl", _many('{"n": 1}') + '{"n": 1}}\n', 20_001, "not a JSON object: Extra data"),
        ("a.jsonl", _many('{"n": 1}') + '{"n": 1.5}\n' + _many('{"n": 1}'), 20_001, "to int64"),
        ("a.csv", "n,t\n1,a\n2,b,c\n", 3, "3 fields where 2 are expected"),
        ("a.csv", 'n,t\n1,"a\nb"\n\n2\n', 5, "1 fields where 2 are expected"),
        ("a.csv", 'n,t\n1,a\n2,"b\n3,c\n', 3, "a quote is never closed"),
        (
            "a.csv",
            "n,t\n" + _many("1,a") + "x,b\n2,c\n",
            20_002,
            "column 'n': CSV conversion error to int64",
        ),
        ("a.csv", b"n,t\n" + b"1,a\n" * 20_000 + b"1,\xe9\n", 20_002, "column 't'.* invalid UTF8 data"),
        ("a.csv", "n,n\n1,2\n", 1, "the header names column 'n' more than once"),
    ],
)
def test_the_line_that_is_wrong(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: bytes | str,
    line: int,
    message: str,
) -> None:
    """What does not parse is an error with file, line and reason, and without what the line says."""
    monkeypatch.setattr(jsonl, "_SAMPLE_BYTES", 10_000)
    monkeypatch.setattr(csv_text, "_SAMPLE_BYTES", 10_000)
    with pytest.raises(DataError, match=message) as caught:
        read_text(tmp_path / name, content)
    assert f"{name}:{line}" in str(caught.value)
    assert "two" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "the file is empty"),
        ("a.csv", b"\n\n", "the file is empty"),
        ("a.csv", b"n,t\r1,a\r2,b\r", "lines end with a carriage return alone"),
        ("a.csv", b"n,t\n1,a\r2,b\n3,c\n", "2 records were counted in a block, and 3 parsed"),
        ("a.csv", b"n,t\n1,\xe9\n", "column 't' is not UTF-8"),
        ("a.csv", "n,t\n".encode("utf-16"), "the file is UTF-16"),
        ("a.jsonl", '{"n": 1}\n'.encode("utf-16"), "the file is UTF-16"),
        ("a.jsonl", b'{"n": 1} {"n": 2}\n', "1 records were counted in a block, and 2 parsed"),
        ("a.jsonl.gz", b'{"n": 1}\n', "not a readable JSON Lines file"),
        ("a.jsonl.gz", gzip.compress(b'{"n": 1}\n' * 99, mtime=0)[:-9], "not a readable JSON Lines file"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """What is wrong with a whole file is said with its name."""
    with pytest.raises(DataError, match=message) as caught:
        read_text(tmp_path / name, content)
    assert name in str(caught.value)


def test_a_line_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that never ends is refused before it fills the memory, also out of a small file."""
    monkeypatch.setattr(text_blocks, "_MAX_RECORD_BYTES", 1_000_000)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"n": 1}\n' + b"x" * 30_000_000, mtime=0))
    with pytest.raises(DataError, match="a line is longer than 1,000,000 bytes") as caught:
        inspected(make_source("jsonl", tmp_path))
    assert "a.jsonl.gz:2" in str(caught.value)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_first_records_longer_than_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Types are guessed from whole records, however long the first of them are."""
    monkeypatch.setattr(jsonl, "_SAMPLE_BYTES", 100)
    monkeypatch.setattr(csv_text, "_SAMPLE_BYTES", 100)
    long = "x, " * 200
    text = (
        f'n,t\n1,"{long}"\n2,b\n' if ".csv" in name else f'{{"n": 1, "t": "{long}"}}\n{{"n": 2, "t": "b"}}\n'
    )
    assert read_text(tmp_path / name, text) == [{"n": 1, "t": long}, {"n": 2, "t": "b"}]


def test_keys_that_are_data(tmp_path: Path) -> None:
    """Lines that each bring new keys are refused with the line, before they take the memory."""
    with pytest.raises(DataError, match="more than 10,000 different keys") as caught:
        read_text(tmp_path / "a.jsonl", "".join(f'{{"k{at}": 1}}\n' for at in range(12_000)))
    assert "a.jsonl:" in str(caught.value)


def test_keys_are_found_wherever_they_begin(tmp_path: Path) -> None:
    """A key that only later lines of the sample have is a column, and numbers widen on the way."""
    early, late = '{"n": 1}\n' * 10_000, '{"n": 1.5, "t": "a"}\n' * 10_000
    rows = read_text(tmp_path / "a.jsonl", early + late)
    assert rows[0] == {"n": 1.0, "t": None}
    assert rows[-1] == {"n": 1.5, "t": "a"}


def test_declared_types_are_checked(tmp_path: Path) -> None:
    """A type or a delimiter that is none is found with the job file; a column that is none, with the file."""
    with pytest.raises(ValidationError, match="no such type: 'intt'"):
        make_source("csv", tmp_path, types={"n": "intt"})
    for key, value in (("delimiter", ";;"), ("quote", ""), ("delimiter", "\n")):
        with pytest.raises(ValidationError, match="must be one ASCII character"):
            make_source("csv", tmp_path, **{key: value})
    with pytest.raises(ContractError, match="names column 'zip', which is not in the file"):
        read_text(tmp_path / "a.csv", "n,t\n1,a\n", types={"zip": "string"})


@given(
    rows=st.lists(
        st.dictionaries(st.sampled_from("abc"), st.one_of(st.none(), st.text(max_size=8)), min_size=1),
        min_size=1,
        max_size=20,
    )
)
def test_any_text_in_json(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str | None]]
) -> None:
    """Every text that JSON can hold comes back as it was."""
    rows = [
        {key: value and value.encode(errors="replace").decode() for key, value in row.items()} for row in rows
    ]
    path = tmp_path_factory.mktemp("j") / "a.jsonl"
    content = "".join(json.dumps(row, ensure_ascii=len(rows) % 2 == 0) + "\n" for row in rows)
    found = read_text(path, content, ["a", "b", "c"], types=dict.fromkeys("abc", "string"))
    assert found == [{name: row.get(name) for name in "abc"} for row in rows]


@given(rows=st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), min_size=1, max_size=20))
def test_any_text_in_csv(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    """Every text that CSV can hold comes back as it was: quotes, delimiters and line ends in it."""
    rows = [
        (one.encode(errors="replace").decode(), two.encode(errors="replace").decode()) for one, two in rows
    ]
    path = tmp_path_factory.mktemp("c") / "a.csv"
    out = io.StringIO()
    for row in [("a", "b"), *rows]:
        out.write(",".join('"' + field.replace('"', '""') + '"' for field in row) + "\r\n")
    found = read_text(path, out.getvalue(), types={"a": "string", "b": "string"})
    assert [(row["a"], row["b"]) for row in found] == rows
