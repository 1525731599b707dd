"""A folder of files as rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchinfer.data import Unit
from batchinfer.errors import DataError, NoInputError
from batchinfer.sources import files
from batchinfer.storage.posix import PosixStore
from tests.sources.reading import inspected, make_source, read_all, read_unit


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() * 3)


def test_files_are_rows(tmp_path: Path) -> None:
    """A folder of files is one row per file, by path, those of the suffixes asked for."""
    fill(tmp_path, "b.bin", "a/c.bin", "a/d.txt", "_x.bin", "a/.y.bin")
    expected = [
        {"path": "a/c.bin", "bytes": b"a/c.bin" * 3, "size": 21},
        {"path": "b.bin", "bytes": b"b.bin" * 3, "size": 15},
    ]
    for path in (tmp_path, tmp_path / "**" / "*"):
        source = make_source("files", path, suffixes=[".bin"])
        assert read_all(source, ["path", "bytes", "size"]) == expected
    assert [row["path"] for row in read_all(make_source("files", tmp_path), ["path"])] == [
        "a/c.bin",
        "a/d.txt",
        "b.bin",
    ]
    for path in (tmp_path, tmp_path / "**" / "*"):
        with pytest.raises(NoInputError, match="matches no file"):
            make_source("files", path, suffixes=[".png"]).list_entries()


def test_folders_of_classes(tmp_path: Path) -> None:
    """Partition folders are columns here too, and one group of files never spans two of them."""
    fill(tmp_path, "label=cat/1.jpg", "label=cat/2.jpg", "label=dog/1.jpg")
    source = make_source("files", tmp_path)
    shards, _ = inspected(source)
    assert [shard.num_rows for shard in shards] == [2, 1]
    assert read_all(source, ["label", "size"]) == [
        {"label": name, "size": 45} for name in ("cat", "cat", "dog")
    ]
    assert read_all(make_source("files", tmp_path, where="label = 'dog'"), ["path"]) == [
        {"path": "label=dog/1.jpg"}
    ]


def test_neighbours_make_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of one folder are put together up to a number and a size; chunks are cut by size too."""
    monkeypatch.setattr(files, "_GROUP_FILES", 4)
    monkeypatch.setattr(files, "_GROUP_BYTES", 100)
    monkeypatch.setattr(files, "_CHUNK_BYTES", 40)
    fill(tmp_path, *(f"{at}.bin" for at in range(9)))  # 15 bytes each
    (tmp_path / "9.bin").write_bytes(b"x" * 90)
    source = make_source("files", tmp_path)
    shards, schema = inspected(source)
    assert [shard.num_rows for shard in shards] == [4, 4, 1, 1]
    unit = Unit(index=0, shard=shards[0], start=1, stop=4)
    for columns, sizes in ((["bytes"], [2, 1]), (["path"], [3]), (["size", "bytes"], [2, 1])):
        chunks = list(source.read(unit, schema=schema, columns=columns, batch_rows=10))
        assert [chunk.rows.num_rows for chunk in chunks] == sizes
        assert [number for chunk in chunks for number in chunk.numbers] == [1, 2, 3]


def test_only_selected_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes of a file that `where` or `sample` leaves out are never fetched."""
    fill(tmp_path, *(f"{at:03}.bin" for at in range(50)))
    (tmp_path / "big.bin").write_bytes(b"x" * 1000)
    opened: list[str] = []
    real = PosixStore.open

    def watched(self: PosixStore, uri: str, *, version: str | None = None) -> object:
        opened.append(Path(uri).name)
        return real(self, uri, version=version)

    monkeypatch.setattr(PosixStore, "open", watched)
    assert len(read_all(make_source("files", tmp_path), ["path", "size"])) == 51
    assert opened == []
    assert len(read_all(make_source("files", tmp_path, where="size > 500"), ["bytes"])) == 1
    assert set(opened) == {"big.bin"}
    opened.clear()
    sampled = read_all(make_source("files", tmp_path, sample="20%"), ["bytes", "path"])
    assert sorted(set(opened)) == [row["path"] for row in sampled]
    assert 0 < len(sampled) < 30
    opened.clear()
    assert (
        len(read_all(make_source("files", tmp_path, where="bytes is not null and size > 500"), ["path"])) == 1
    )
    assert len(set(opened)) == 51


def test_what_changed_is_refused(tmp_path: Path) -> None:
    """A file that is added, removed or written anew after the plan is not read as if it were planned."""
    fill(tmp_path, "a.bin", "b.bin", "c.bin")
    planned = make_source("files", tmp_path)
    (shard,), schema = inspected(planned)
    unit = Unit(index=0, shard=shard, start=0, stop=3)
    assert len(read_unit(make_source("files", tmp_path), unit, schema, ["bytes"])[0]) == 3
    (tmp_path / "b.bin").write_bytes(b"B.BIN" * 3)
    # The process that listed the files before sees it when it reads, another one when it lists them.
    for source in (planned, make_source("files", tmp_path)):
        with pytest.raises(DataError, match="changed after it was planned"):
            read_unit(source, unit, schema, ["bytes"])
    (tmp_path / "d.bin").write_bytes(b"new")
    with pytest.raises(DataError, match="changed after it was planned"):
        read_unit(make_source("files", tmp_path), unit, schema, ["path"])


def test_a_file_too_large_for_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is too large to be one value is named, with the way to leave it out."""
    monkeypatch.setattr(files, "_MAX_FILE_BYTES", 100)
    (tmp_path / "big.bin").write_bytes(b"x" * 101)
    with pytest.raises(DataError, match="has 101 bytes, above the limit of 100") as caught:
        read_all(make_source("files", tmp_path), ["bytes"])
    assert "big.bin" in str(caught.value)
    assert read_all(make_source("files", tmp_path), ["size"]) == [{"size": 101}]
