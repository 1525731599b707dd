"""`where` and `sample`: the same rows however they are read."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.data import Unit
from batchinfer.errors import ContractError
from batchinfer.sources.sampling import parse_share, sampled
from tests.sources.reading import inspected, make_source, read_all, read_unit


def test_a_sample_is_stable(tmp_path: Path) -> None:
    """The same rows are sampled however they are read, about as many as asked for, others for another file."""
    for name in ("a", "b"):
        pq.write_table(pa.table({"n": range(20_000)}), tmp_path / f"{name}.parquet", row_group_size=3000)
    samples = []
    for name, rows in (("a", 64), ("a", 5000), ("b", 64)):
        source = make_source("parquet", tmp_path / f"{name}.parquet", sample="5%")
        samples.append([row["n"] for row in read_all(source, ["n"], rows=rows)])
    assert samples[0] == samples[1] != samples[2]
    assert 850 < len(samples[0]) < 1150
    source = make_source("parquet", tmp_path / "a.parquet", sample="5%")
    (shard,), schema = inspected(source)
    cuts = [0, 1, 777, 3000, 12_345, 20_000]
    units = [Unit(index=0, shard=shard, start=low, stop=high) for low, high in itertools.pairwise(cuts)]
    assert [number for unit in units for number in read_unit(source, unit, schema, [])[1]] == samples[0]


def test_a_sample_never_changes() -> None:
    """The choice is part of what a job means: these rows were chosen by the first release."""
    chosen = np.flatnonzero(sampled("dt=1/a.parquet", np.arange(200), 0.05)).tolist()
    assert chosen == [17, 29, 40, 61, 78, 87, 160, 175, 199]


def test_a_larger_sample_holds_the_smaller() -> None:
    """Rows of 1% are among those of 10%; 100% is every row."""
    numbers = np.arange(10_000)
    small, large = sampled("k", numbers, 0.01), sampled("k", numbers, 0.1)
    assert small.sum() < large.sum()
    assert not (small & ~large).any()
    assert sampled("k", numbers, 1.0).all()


@pytest.mark.parametrize("text", ["1", "0%", "101%", "-3%", "x%", "nan%"])
def test_bad_shares(text: str) -> None:
    """A share needs its percent sign and lies above 0 and up to 100."""
    with pytest.raises(ValueError, match="must be a share"):
        parse_share(text)


@settings(max_examples=60)
@given(
    values=st.lists(st.one_of(st.none(), st.integers(-5, 5)), min_size=1, max_size=40),
    group=st.integers(1, 10),
    condition=st.sampled_from(
        [
            "n > 0",
            "not n > 0",
            "n in (1, 2)",
            "n not in (1, 2)",
            "n is null",
            "not (n is null or n = 3)",
            "n between -1 and 1 or f > 3",
            "n = p and f < 2.5",
            "p = 1 and n != 0",
            "p = 2 or n < -3",
        ]
    ),
    drifted=st.booleans(),
)
def test_pruning_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    values: list[int | None],
    group: int,
    condition: str,
    drifted: bool,
) -> None:
    """Statistics and folders leave out only what `where` leaves out, also of a file with narrower types."""
    folder = tmp_path_factory.mktemp("w")
    (folder / "p=1").mkdir()
    floats = [None if value is None else value / 2 for value in values]
    narrow = {"n": pa.int32(), "f": pa.float32(), "row": pa.int64()}
    wide = {"n": pa.int64(), "f": pa.float64(), "row": pa.int64()}
    for name, types in (("1", narrow), ("2", wide)) if drifted else (("1", narrow),):
        table = pa.table({"n": values, "f": floats, "row": range(len(values))}, schema=pa.schema(types))
        pq.write_table(table, folder / "p=1" / f"{name}.parquet", row_group_size=group)
    source = make_source("parquet", folder, where=condition)
    shards, schema = inspected(source)
    whole = table.append_column("p", pa.array([1] * len(values), pa.int64())).cast(schema)
    kept = whole.filter(source.selection.where.bind(schema))["row"].to_pylist()  # type: ignore[attr-defined]
    for shard in shards:
        unit = Unit(index=0, shard=shard, start=0, stop=len(values))
        found, numbers = read_unit(source, unit, schema, ["row"])
        assert numbers == kept == [row["row"] for row in found]


def test_folders_that_are_ruled_out_are_not_opened(tmp_path: Path) -> None:
    """A file whose partition values leave no row is not even opened, whatever its format."""
    for kind, data in (("jsonl", b'{"n": 1}\n'), ("csv", b"n\n1\n")):
        for day in (1, 2):
            path = tmp_path / kind / f"day={day}" / f"a.{kind}"
            path.parent.mkdir(parents=True)
            path.write_bytes(data)
        source = make_source(kind, tmp_path / kind, where="day = 2 and n = 1")
        shards, schema = inspected(source)
        (tmp_path / kind / "day=1" / f"a.{kind}").unlink()
        rows = [
            read_unit(source, Unit(index=0, shard=shard, start=0, stop=1), schema, ["n"])[0]
            for shard in shards
        ]
        assert rows == [[], [{"n": 1}]]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("m > 1", "column 'm' is not in the input"),
        ('n = "x"', "texts stand in single quotes: 'x'"),
        ("n > 'a'", "column 'n' is int64, which does not compare with a text"),
        ("t = 1", "column 't' is string, which does not compare with a number"),
        ("n in (1, 'x')", "column 'n' is int64, which does not compare with a text"),
        ("n", "column 'n' is int64, which is no condition by itself"),
        ("n like 'x'", "column 'n' is int64; `like` is for texts"),
        ("n = t", "cannot be evaluated"),
        ("1 = 'x'", "cannot be evaluated"),
        ("d > '2026-13-01'", "column 'd' is date32.*'2026-13-01' is no such value"),
        ("t = true", "does not compare with true"),
    ],
)
def test_a_condition_that_does_not_fit(where: str, message: str) -> None:
    """`where` is held against the columns and their types before anything is read."""
    schema = pa.schema([("n", pa.int64()), ("t", pa.string()), ("d", pa.date32())])
    with pytest.raises(ContractError, match=message):
        make_source("parquet", "/nowhere", where=where).selection.check(schema)
