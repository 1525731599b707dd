"""`where` means what SQL means by the same words."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinfer.sources.where import parse_where

DAYS = [None if n % 8 == 0 else dt.date(2026, 1, 1) + dt.timedelta(days=n) for n in range(40)]
TABLE = pa.table(
    {
        "a": pa.array([None if n % 7 == 0 else n - 10 for n in range(40)], pa.int64()),
        "b": pa.array([None if n % 5 == 0 else n / 4 for n in range(40)], pa.float64()),
        "t": pa.array([None if n % 6 == 0 else f"t{n % 9}'x" for n in range(40)]),
        "flag": pa.array([None if n % 11 == 0 else n % 3 == 0 for n in range(40)]),
        "date": pa.array(DAYS),
        "moment": pa.array(
            [day and dt.datetime.combine(day, dt.time(12)) for day in DAYS], pa.timestamp("us")
        ),
        "price": pa.array([None if n % 9 == 0 else Decimal(n) / 8 for n in range(40)], pa.decimal128(10, 3)),
        "small": pa.array([n - 20 for n in range(40)], pa.int8()),
        "row": pa.array(range(40), pa.int64()),
    }
)
DATABASE = duckdb.connect()
DATABASE.register("input", TABLE)
SIGNS = st.sampled_from(["=", "<>", "!=", "<", "<=", ">", ">="])
LEAF = st.one_of(
    st.builds("a {} {}".format, SIGNS, st.integers(-12, 30)),
    st.builds("{} {} a".format, st.integers(-12, 30), SIGNS),
    st.builds("b {} {}".format, SIGNS, st.sampled_from(["0.5", "3.25", "1e1", "2", ".75"])),
    st.builds("a {} {}".format, SIGNS, st.sampled_from(["0.5", "-3.25", "b", "small"])),
    st.builds("small {} {}".format, SIGNS, st.sampled_from(["3", "1000", "-1000", "2.5"])),
    st.builds("price {} {}".format, SIGNS, st.sampled_from(["2", "1.5", "0.125", "-1"])),
    st.builds("date {} {}".format, SIGNS, st.sampled_from(["'2026-01-20'", "date '2026-02-01'"])),
    st.builds(
        "moment {} {}".format, SIGNS, st.sampled_from(["'2026-01-20'", "timestamp '2026-02-01 12:00:00'"])
    ),
    st.builds("a in ({}, {})".format, st.integers(-12, 30), st.integers(-12, 30)),
    st.builds("a not in ({})".format, st.integers(-12, 30)),
    st.builds("a between {} and {}".format, st.integers(-12, 10), st.integers(0, 30)),
    st.builds("a not between {} and {}".format, st.integers(-12, 10), st.integers(0, 30)),
    st.sampled_from(
        [
            "t like 't1%'",
            "t not like '%3_x'",
            "t = 't2''x'",
            "t in ('t2''x', 't3''x')",
            "date in ('2026-01-20', '2026-01-21')",
            "price in (1.5, 2.125)",
            "a is null",
            "b is not null",
            "flag",
            "flag = true",
            "flag in (false)",
            "true",
            "1 = 2",
        ]
    ),
)
CONDITION = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        st.builds("({} and {})".format, inner, inner),
        st.builds("({} or {})".format, inner, inner),
        st.builds("not {}".format, inner),
        st.builds("{} or {} and not ({})".format, inner, inner, inner),
    ),
    max_leaves=6,
)


@given(CONDITION)
def test_agrees_with_a_database(condition: str) -> None:
    """Every condition keeps the rows that DuckDB keeps, nulls included."""
    rows = DATABASE.execute(f"select row from input where {condition} order by row").fetchall()
    kept = TABLE.filter(parse_where(condition).bind(TABLE.schema))["row"].to_pylist()
    assert kept == [row for (row,) in rows]


def kept(table: pa.Table, condition: str) -> int:
    return int(table.filter(parse_where(condition).bind(table.schema)).num_rows)


def test_names_its_columns() -> None:
    """The columns of a condition are known, quoted ones by their real name, whatever the alphabet."""
    text = 'a > 1 and "odd ""name" = `b` or not straße < 2 and a = 3'
    assert parse_where(text).columns == ("a", 'odd "name', "b", "straße")


def test_columns_called_like_words() -> None:
    """`date` and `timestamp` are words only before a text."""
    table = pa.table({"date": [dt.date(2026, 1, 1)], "timestamp": [dt.datetime(2026, 1, 1)]})  # noqa: DTZ001
    assert kept(table, "date = date '2026-01-01' and DATE'2026-01-01' = date") == 1
    assert kept(table, "timestamp > timestamp '2025-12-31 23:59:59' and timestamp is not null") == 1


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("at >= '2026-01-01'", 1),
        ("at > timestamp '2026-01-01T00:00:00Z'", 0),
        ("at > '2026-01-01T01:00:00+02:00'", 1),
        ("at in (timestamp '2026-01-01')", 1),
    ],
)
def test_time_zones(condition: str, rows: int) -> None:
    """A time without a zone is UTC, for columns with a zone and for those without."""
    midnight = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    for type_ in (pa.timestamp("ns", "Europe/Berlin"), pa.timestamp("ms", "UTC"), pa.timestamp("s")):
        assert kept(pa.table({"at": pa.array([midnight], type_)}), condition) == rows


def test_numbers_at_the_edges() -> None:
    """Numbers are compared as numbers, also where a column's type cannot hold them."""
    table = pa.table(
        {
            "i": pa.array([2**62 + 1]),
            "u": pa.array([2**64 - 1], pa.uint64()),
            "h": pa.array([1.5], pa.float16()),
            "f": pa.array([0.1], pa.float32()),
        }
    )
    for condition in (
        f"i = {2**62 + 1}",
        f"i < {2**70}",
        "i > 1.5",
        f"u = {2**64 - 1}",
        "u > -1",
        f"u not in (-1, {2**64})",
        "i < u",
        "h = 1.5 and h in (1.5)",
        "f = 0.1 and f in (0.1)",
    ):
        assert kept(table, condition) == 1, condition


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a >", "expected a column, a number or a 'text', at character 4"),
        ("a > 1 b", "expected `and`, `or` or the end, at character 7"),
        ("a = null", "write `is null`"),
        ("a in 1", "expected `\\(`"),
        ("a in (b)", "expected a column, a number or a 'text'"),
        ("a like 3", "expected a pattern"),
        ("a not 3", "expected `in`, `between` or `like`"),
        ("3 in (3)", "only a column can stand before"),
        ("a = 'open", "cannot read this"),
        ("(a = 1", "expected `\\)`"),
        ("d = date '2026-13-01'", "not a date"),
        ("a > - b", "expected a number after `-`"),
        ("a > 1e999", "at most 40 digits"),
        (f"a > {10**50}", "at most 40 digits"),
        ("a > 1; drop table x", "cannot read this"),
        ("", "expected a column"),
    ],
)
def test_points_at_the_place(text: str, message: str) -> None:
    """What cannot be read is shown with a mark below it."""
    with pytest.raises(ValueError, match=message) as caught:
        parse_where(text)
    lines = str(caught.value).splitlines()
    assert lines[1].strip()[:40] in text
    assert lines[2].strip() == "^"


def test_points_into_long_and_folded_texts() -> None:
    """Of a text with several lines, or of a very long one, the part around the place is shown."""
    with pytest.raises(ValueError, match="at character 16") as caught:
        parse_where("a > 1\nand b > \nand c > 2")
    assert str(caught.value).splitlines()[1:] == ["    and c > 2", "    ^"]
    with pytest.raises(ValueError, match="expected") as caught:
        parse_where(" and ".join(["a > 1"] * 100) + " b " + "or a > 1" * 100)
    assert max(map(len, str(caught.value).splitlines())) < 140


@pytest.mark.parametrize(
    "text", [" or ".join(["a = 1"] * 20_000), "(" * 5000 + "a = 1" + ")" * 5000, "not " * 5000 + "a = 1 b"]
)
def test_endless_conditions_are_refused(text: str) -> None:
    """A condition that would exhaust the stack is refused like any other that cannot be read."""
    with pytest.raises(ValueError, match=r"more than \d+|expected `and`"):
        parse_where(text)


def test_many_alternatives() -> None:
    """Hundreds of comparisons, and lists of thousands, are fine."""
    table = pa.table({"a": range(1000)})
    assert kept(table, " or ".join(f"a = {n}" for n in range(400))) == 400
    assert kept(table, f"a in ({', '.join(map(str, range(900)))})") == 900
    assert kept(table, "not " * 1001 + "a < 10") == 990
