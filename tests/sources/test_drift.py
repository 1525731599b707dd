"""One schema for all files: what may differ, and what is said of what may not."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer.errors import DataError
from batchinfer.sources.drift import why_absent
from tests.sources.reading import inspected, make_source, read_all, write

INT_LIST = pa.list_(pa.field("element", pa.int32(), nullable=False))


def write_all(folder: Path, *tables: pa.Table) -> None:
    for at, table in enumerate(tables):
        pq.write_table(table, folder / f"{at}.parquet")


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (pa.array([1], pa.int32()), pa.array([2], pa.int64()), pa.int64()),
        (pa.array([1], pa.uint8()), pa.array([2], pa.uint32()), pa.uint32()),
        (pa.array([1], pa.float32()), pa.array([2], pa.float64()), pa.float64()),
        (pa.array(["a"]), pa.array(["b"], pa.large_string()), pa.large_string()),
        (pa.array(["a"]).dictionary_encode(), pa.array(["b"]), pa.string()),
        (pa.array(["a"]).dictionary_encode(), pa.array(["b"]).dictionary_encode(), pa.string()),
        (pa.array(["a"], pa.string_view()), pa.array(["b"]), pa.string()),
        (pa.nulls(1), pa.array([2]), pa.int64()),
        (pa.array([1], pa.timestamp("ms")), pa.array([2], pa.timestamp("us")), pa.timestamp("us")),
        (pa.array([[1]], INT_LIST), pa.array([[2]], pa.list_(pa.int64())), pa.list_(pa.int64())),
        (
            pa.array([{"a": 1}], pa.struct([("a", pa.int32())])),
            pa.array([{"a": 2}], pa.struct([("a", pa.int64())])),
            pa.struct([("a", pa.int64())]),
        ),
    ],
)
def test_types_widen_without_loss(tmp_path: Path, one: pa.Array, other: pa.Array, both: pa.DataType) -> None:
    """Types of which one holds the other are read as the wider one, whichever file comes first."""
    for at, (first, second) in enumerate(((one, other), (other, one))):
        folder = tmp_path / str(at)
        folder.mkdir()
        write_all(folder, pa.table({"n": first}), pa.table({"n": second}))
        source = make_source("parquet", folder)
        assert inspected(source)[1].field("n").type == both
        assert [row["n"] for row in read_all(source, ["n"])] == [first[0].as_py(), second[0].as_py()]


def test_order_and_more_columns(tmp_path: Path) -> None:
    """Columns may stand in another order, and a file may have more of them."""
    write_all(tmp_path, pa.table({"n": [1], "t": ["a"]}), pa.table({"x": [0], "t": ["b"], "n": [2]}))
    source = make_source("parquet", tmp_path)
    _, schema = inspected(source)
    assert schema.names == ["n", "t"]
    assert read_all(source, ["t", "n"]) == [{"t": "a", "n": 1}, {"t": "b", "n": 2}]
    assert (
        why_absent(schema, "x")
        == f"column 'x' is in {tmp_path}/1.parquet, and missing in {tmp_path}/0.parquet"
    )


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (pa.table({"m": [1]}), "'n' is in {0}, and missing in {1}"),
        (pa.table({"m": [1], "n": ["one"]}), "'n' is int64 in {0} and string in {1}"),
        (pa.table({"m": [1], "n": [1.5]}), "'n' is int64 in {0} and double in {1}"),
        (pa.table({"m": [1], "n": pa.array([1], pa.uint64())}), "'n' is int64 in {0} and uint64 in {1}"),
        (pa.table({"m": [1], "n": pa.array([1], pa.timestamp("us"))}), "'n' is int64 in {0} and timestamp"),
    ],
)
def test_drift_names_both_files(tmp_path: Path, other: pa.Table, said: str) -> None:
    """A column that files disagree on stops only a job that uses it, with both files and both types."""
    write_all(tmp_path, pa.table({"m": [1], "n": [1]}), pa.table({"m": [1], "n": [1]}), other)
    source = make_source("parquet", tmp_path)
    _, schema = inspected(source)
    assert read_all(source, ["m"]) == [{"m": 1}] * 3
    reason = why_absent(schema, "n")
    assert reason is not None
    assert said.format(f"{tmp_path}/0.parquet", f"{tmp_path}/2.parquet") in reason
    assert why_absent(schema, "m") is None
    assert why_absent(schema, "z") is None
    with pytest.raises(DataError, match=r"input\.where: column 'n' is"):
        make_source("parquet", tmp_path, where="n > 0").selection.check(schema)


def test_a_value_that_does_not_widen(tmp_path: Path) -> None:
    """A value that the common type cannot hold is an error that names the file, not another value."""
    early = pa.array([-10_000_000_000_000], pa.timestamp("ms"))
    write_all(tmp_path, pa.table({"t": early}), pa.table({"t": pa.array([1], pa.timestamp("ns"))}))
    for more in ({}, {"where": "t > '1970-01-01'"}):
        with pytest.raises(DataError, match="not every value fits timestamp\\[ns\\]") as caught:
            read_all(make_source("parquet", tmp_path, **more), ["t"])
        assert "0.parquet" in str(caught.value)


def test_guesses_give_way(tmp_path: Path) -> None:
    """Types that were guessed from text take what all files hold; a declared one is no guess."""
    for kind, rows in (
        ("jsonl", [{"n": 1, "s": {"a": 1}}, {"n": 1.5, "s": {"b": "x"}}]),
        ("csv", [{"n": 1}, {"n": 1.5}]),
    ):
        for at, row in enumerate(rows):
            write(kind, tmp_path / kind / f"{at}.{kind}", pa.Table.from_pylist([row]), 1)
        source = make_source(kind, tmp_path / kind)
        assert inspected(source)[1].field("n").type == pa.float64()
        assert [row["n"] for row in read_all(source, ["n"])] == [1.0, 1.5]
    source = make_source("jsonl", tmp_path / "jsonl")
    assert read_all(source, ["s"]) == [{"s": {"a": 1, "b": None}}, {"s": {"a": None, "b": "x"}}]
    (tmp_path / "csv" / "2.csv").write_text("n\nseven\n")
    assert [row["n"] for row in read_all(make_source("csv", tmp_path / "csv"), ["n"])] == [
        "1",
        "1.5",
        "seven",
    ]
    (tmp_path / "jsonl" / "2.jsonl").write_text('{"n": "seven"}\n')
    reason = why_absent(inspected(make_source("jsonl", tmp_path / "jsonl"))[1], "n")
    assert reason is not None
    assert "'n' is double in" in reason


def test_a_file_without_a_line_says_nothing(tmp_path: Path) -> None:
    """An empty JSON Lines file among others takes no column away."""
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "b.jsonl").write_text('{"n": 1}\n')
    assert read_all(make_source("jsonl", tmp_path), ["n"]) == [{"n": 1}]
