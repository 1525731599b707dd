"""Arrow IPC: files and streams, what is read of them, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batchinfer.data import Unit
from batchinfer.errors import DataError
from batchinfer.sources import arrow_ipc
from batchinfer.storage.posix import PosixStore
from tests.sources.reading import inspected, make_source, read_all, read_unit, write


def encoded(table: pa.Table, *, stream: bool = False, **options: Any) -> bytes:
    out = io.BytesIO()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(out, table.schema, **options) as writer:
        writer.write_table(table)
    return out.getvalue()


class Counting(io.FileIO):
    """A file that counts the bytes that are read from it."""

    total = 0

    def read(self, size: int | None = -1) -> bytes:
        """Read, and count."""
        data = super().read(-1 if size is None else size) or b""
        Counting.total += len(data)
        return data


def test_only_the_columns_asked_for_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the plan nor a read of one column fetches the others' bytes."""
    table = pa.table({"text": ["x" * 1000] * 5000, "n": range(5000)})
    write("arrow", tmp_path / "a.arrow", table, 1000)

    def counting(_: PosixStore, uri: str, *, version: str) -> pa.NativeFile:
        assert version
        return pa.PythonFile(Counting(uri), mode="r")

    monkeypatch.setattr(PosixStore, "open", counting)
    monkeypatch.setattr(Counting, "total", 0)
    source = make_source("arrow", tmp_path)
    (shard,), _ = inspected(source)
    assert [block.num_rows for block in shard.blocks] == [1000] * 5
    assert abs(sum(block.num_bytes for block in shard.blocks) - shard.size_bytes) < 10
    assert len(read_all(source, ["n"])) == 5000
    assert Counting.total < 300_000


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_files_and_streams(tmp_path: Path, stream: bool, compression: str | None) -> None:
    """Files and streams, compressed or not, are told apart by their first bytes."""
    table = pa.table({"n": range(100), "t": pa.array(["a", "b"] * 50).dictionary_encode()})
    options = pa.ipc.IpcWriteOptions(compression=compression)
    (tmp_path / "a.arrow").write_bytes(encoded(table, stream=stream, options=options))
    found = read_all(make_source("arrow", tmp_path), ["t", "n"], start=30, stop=32)
    assert found == [{"t": "a", "n": 30}, {"t": "b", "n": 31}]


def broken() -> list[Any]:
    """Return kinds of files that are no Arrow IPC, with what is said of them."""
    data = encoded(pa.table({"t": ["hello", "you"] * 500}))
    stream = encoded(pa.table({"t": ["hello", "you"] * 500}), stream=True)
    # The last offset of the texts is moved behind their end.
    ends = np.array([3992, 3997, 4000], np.int32).tobytes()
    assert data.count(ends) == 1
    return [
        pytest.param(b"", id="empty"),
        pytest.param(b"ARROW1\0\0 and then nothing", id="only the magic"),
        pytest.param(b"hello, I am no Arrow file", id="text"),
        pytest.param(data[: len(data) // 2], id="cut file"),
        pytest.param(stream[: len(stream) // 2], id="cut stream"),
        pytest.param(b"FEA1" + bytes(100), id="Feather 1"),
        pytest.param(data.replace(ends, ends[:8] + b"\xff\xff\xff\x7f"), id="offsets"),
        pytest.param(data.replace(b"helloyou", b"hell\xffyou"), id="not UTF-8"),
    ]


@pytest.mark.parametrize("content", broken())
def test_broken_files_are_named(tmp_path: Path, content: bytes) -> None:
    """A file that cannot be read, or whose buffers make no sense, is named."""
    (tmp_path / "a.arrow").write_bytes(content)
    with pytest.raises(DataError, match="not a readable Arrow IPC file") as caught:
        read_all(make_source("arrow", tmp_path), ["t"])
    assert "a.arrow" in str(caught.value)


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that inflates to many times its file is refused; one that is as large as its file is not."""
    monkeypatch.setattr(arrow_ipc, "_MAX_BATCH_BYTES", 1_000_000)
    table = pa.table({"v": np.zeros(500_000)})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    (tmp_path / "a.arrow").write_bytes(encoded(table, options=options))
    with pytest.raises(DataError, match="record batch 0 decodes to 4,000,000 bytes"):
        read_all(make_source("arrow", tmp_path / "a.arrow"), ["v"])
    (tmp_path / "b.arrow").write_bytes(encoded(table))
    assert len(read_all(make_source("arrow", tmp_path / "b.arrow"), ["v"], stop=10)) == 10


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    """A column that a file lacks, or has twice, is named with the file."""
    write("arrow", tmp_path / "a.arrow", pa.table({"n": range(10)}), 10)
    source = make_source("arrow", tmp_path)
    (shard,), _ = inspected(source)
    with pytest.raises(DataError, match="column 'm' is missing"):
        read_unit(source, Unit(index=0, shard=shard, start=0, stop=1), pa.schema([("m", pa.int64())]), ["m"])
    (tmp_path / "b.arrow").write_bytes(encoded(pa.table([[1], [2]], names=["n", "n"])))
    with pytest.raises(DataError, match="'n' stands in the file more than once"):
        inspected(make_source("arrow", tmp_path / "b.arrow"))
