"""What `input.path` stands for: files, folders, globs and lists of them, and hive partitions."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer.errors import DataError, NoInputError
from batchinfer.storage import open_store
from tests.sources.reading import inspected, make_source, read_all


def one_row(path: Path, value: int = 1, **more: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"n": [value], **{name: [number] for name, number in more.items()}}), path)


def test_several_paths_are_one_input(tmp_path: Path) -> None:
    """A list of paths is read in the order of the names, each file once; hidden names are left out."""
    for name in ("b.parquet", "a.parquet", "_tmp.parquet", ".x.parquet", "_d/c.parquet"):
        one_row(tmp_path / name, ord(name[0]))
    source = make_source("parquet", [f"{tmp_path}/b*", f"{tmp_path}/a.parquet", str(tmp_path)])
    assert read_all(source, ["n"]) == [{"n": ord("a")}, {"n": ord("b")}]


def test_a_folder_gives_its_format_only(tmp_path: Path) -> None:
    """Of a folder, files of the format's suffixes are taken; a file that is named is taken as it is."""
    one_row(tmp_path / "a.parquet", 1)
    one_row(tmp_path / "b.data", 2)
    (tmp_path / "notes.txt").write_text("no rows")
    assert read_all(make_source("parquet", tmp_path), ["n"]) == [{"n": 1}]
    assert read_all(make_source("parquet", tmp_path / "b.data"), ["n"]) == [{"n": 2}]
    assert read_all(make_source("parquet", tmp_path / "*.data"), ["n"]) == [{"n": 2}]


def test_hive_partitions_are_columns(tmp_path: Path) -> None:
    """Folder names become columns: whole numbers as int64, other values as text, null as Hive writes it."""
    one_row(tmp_path / "year=2024/lang=de/p.parquet", 1)
    one_row(tmp_path / "year=2025/lang=fr%2FCA/p.parquet", 2)
    one_row(tmp_path / "year=2025/lang=__HIVE_DEFAULT_PARTITION__/p.parquet", 3)
    expected = [
        {"n": 1, "year": 2024, "lang": "de"},
        {"n": 3, "year": 2025, "lang": None},
        {"n": 2, "year": 2025, "lang": "fr/CA"},
    ]
    paths = ("", "/", "/year=*/*/*.parquet", "/**/*.parquet", "/year=*", "/year=*/", "/year=*/lang=*/")
    for path in (f"{root}{below}" for below in paths for root in (tmp_path, f"file://{tmp_path}")):
        assert read_all(make_source("parquet", path), ["n", "year", "lang"]) == expected, path
    where = "lang = 'fr/CA' and year = 2025"
    only = make_source("parquet", f"{tmp_path}/year=2025/**/*.parquet", where=where)
    assert read_all(only, ["n", "year"]) == [{"n": 2, "year": 2025}]
    none = make_source("parquet", tmp_path, partitioning="none")
    assert inspected(none)[1].names == ["n"]


@pytest.mark.parametrize(
    ("values", "type_"),
    [
        (["1", "-20", "0"], pa.int64()),
        (["1", "__HIVE_DEFAULT_PARTITION__"], pa.int64()),
        (["01", "2"], pa.string()),
        (["1", "x"], pa.string()),
        (["1", "9999999999999999999"], pa.string()),
        (["__HIVE_DEFAULT_PARTITION__"], pa.string()),
    ],
)
def test_types_of_partitions(tmp_path: Path, values: list[str], type_: pa.DataType) -> None:
    """A partition column is int64 where every value is a whole number without leading zeros."""
    for value in values:
        one_row(tmp_path / f"p={value}" / "a.parquet")
    source = make_source("parquet", tmp_path)
    assert inspected(source)[1].field("p").type == type_
    texts = {None if row["p"] is None else str(row["p"]) for row in read_all(source, ["p"])}
    assert texts == {None if value.startswith("__") else value for value in values}


def test_a_partition_that_is_also_in_a_file(tmp_path: Path) -> None:
    """A column that is both in a file, be it one of many, and in the folders' names is refused."""
    one_row(tmp_path / "dt=1/a.parquet", 1)
    one_row(tmp_path / "dt=2/a.parquet", 2, dt=7)
    with pytest.raises(DataError, match="'dt' is both in the file and in its folders' names") as caught:
        inspected(make_source("parquet", tmp_path))
    assert "dt=2/a.parquet" in str(caught.value)
    assert "partitioning: none" in str(caught.value)


def test_mixed_layouts(tmp_path: Path) -> None:
    """Files with and without partition folders are no one input; the order of the folders is free."""
    one_row(tmp_path / "a=1/b=2/x.parquet", 1)
    one_row(tmp_path / "b=3/a=4/x.parquet", 2)
    assert read_all(make_source("parquet", tmp_path), ["a", "b"]) == [{"a": 1, "b": 2}, {"a": 4, "b": 3}]
    one_row(tmp_path / "x.parquet", 3)
    with pytest.raises(DataError, match=r"mix partition layouts: a=1/b=2/x\.parquet and x\.parquet"):
        inspected(make_source("parquet", tmp_path))


def test_no_file_says_what_is_there(tmp_path: Path) -> None:
    """Nothing matching is exit 66, with what was there instead."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("n\n1\n")
    for path, said in (
        ("in", "the folder holds 1 files, such as 'a.csv', none of them .parquet"),
        ("in/*.parquet", "there are 1 files: a.csv"),
        ("on/*.parquet", f"{tmp_path}/on does not exist; {tmp_path} holds in"),
        ("on/my/a.parquet", f"{tmp_path} holds in"),
        ("in/dt=*", "there are 1 files: a.csv"),
    ):
        with pytest.raises(NoInputError, match="matches no file") as caught:
            make_source("parquet", tmp_path / path).list_entries()
        assert said in str(caught.value)
        assert str(tmp_path / path) in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoInputError, match="nothing is below"):
        make_source("parquet", tmp_path / "empty").list_entries()


def test_an_object_store(tmp_path: Path) -> None:
    """An object store is listed and read like a folder."""
    one_row(tmp_path / "a.parquet", 5)
    store = open_store("memory://listing", {})
    store.put("memory://listing/in/dt=1/a.parquet", (tmp_path / "a.parquet").read_bytes())
    store.put("memory://listing/in/_log", b"")
    for path in ("in", "in/", "in/dt=*/", "in/**/*.parquet", "in/dt=1/a.parquet"):
        source = make_source("parquet", f"memory://listing/{path}")
        assert read_all(source, ["n", "dt"]) == [{"n": 5, "dt": 1}], path
    with pytest.raises(NoInputError, match="nothing is below memory://listing/on"):
        make_source("parquet", "memory://listing/on/*.parquet").list_entries()
