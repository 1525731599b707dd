"""`where` means what SQL means by the same words."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinfer.sources.select import parse_share
from batchinfer.sources.where import parse_where

TABLE = pa.table(
    {
        "a": pa.array([None if n % 7 == 0 else n - 10 for n in range(40)], pa.int64()),
        "b": pa.array([None if n % 5 == 0 else n / 4 for n in range(40)], pa.float64()),
        "t": pa.array([None if n % 6 == 0 else f"t{n % 9}'x" for n in range(40)]),
        "flag": pa.array([n % 3 == 0 for n in range(40)]),
        "row": pa.array(range(40), pa.int64()),
    }
)

LEAF = st.one_of(
    st.builds(
        "a {} {}".format, st.sampled_from(["=", "<>", "!=", "<", "<=", ">", ">="]), st.integers(-12, 30)
    ),
    st.builds("b {} {}".format, st.sampled_from(["<", ">="]), st.sampled_from(["0.5", "3.25", "1e1"])),
    st.builds("a in ({}, {})".format, st.integers(-12, 30), st.integers(-12, 30)),
    st.builds("a not in ({})".format, st.integers(-12, 30)),
    st.builds("a between {} and {}".format, st.integers(-12, 10), st.integers(0, 30)),
    st.builds("a not between {} and {}".format, st.integers(-12, 10), st.integers(0, 30)),
    st.sampled_from(
        [
            "t like 't1%'",
            "t not like '%3_x'",
            "t = 't2''x'",
            "a is null",
            "b is not null",
            "flag",
            "flag = true",
        ]
    ),
)
CONDITION = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        st.builds("({} and {})".format, inner, inner),
        st.builds("({} or {})".format, inner, inner),
        st.builds("not {}".format, inner),
    ),
    max_leaves=6,
)


@given(CONDITION)
def test_agrees_with_a_database(condition: str) -> None:
    """Every condition keeps the rows that DuckDB keeps, nulls included."""
    connection = duckdb.connect()
    connection.register("input", TABLE)
    rows = connection.execute(f"select row from input where {condition} order by row").fetchall()
    connection.close()
    kept = TABLE.filter(parse_where(condition).bind(TABLE.schema))["row"].to_pylist()
    assert kept == [row for (row,) in rows]


def test_names_its_columns() -> None:
    """The columns of a condition are known, quoted ones by their real name."""
    assert parse_where('a > 1 and "odd name" = `b` or not a < 2').columns == ("a", "odd name", "b")


def test_dates() -> None:
    """Dates and timestamps compare as such."""
    import datetime as dt

    table = pa.table({"d": pa.array([dt.date(2026, 1, 30), dt.date(2026, 2, 1)])})
    assert len(table.filter(parse_where("d >= date '2026-02-01'").bind(table.schema))) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a >", "expected a column, a number or a 'text'"),
        ("a > 1 b", "expected `and`, `or` or the end"),
        ("a = null", "write `is null`"),
        ("a in 1", "expected `\\(`"),
        ("a like 3", "expected a pattern"),
        ("a not 3", "expected `in`, `between` or `like`"),
        ("a = 'open", "cannot read this"),
        ("(a = 1", "expected `\\)`"),
        ("d = date '2026-13-01'", "not a date"),
        ("a > 1; drop table x", "cannot read this"),
    ],
)
def test_points_at_the_place(text: str, message: str) -> None:
    """What cannot be read is shown with a mark below it."""
    with pytest.raises(ValueError, match=message) as caught:
        parse_where(text)
    lines = str(caught.value).splitlines()
    assert lines[1] == f"    {text}"
    assert lines[2].strip() == "^"


@pytest.mark.parametrize("text", ["1", "0%", "101%", "-3%", "x%", "nan%"])
def test_bad_shares(text: str) -> None:
    """A share needs its percent sign and lies above 0 and up to 100."""
    with pytest.raises(ValueError, match="must be a share"):
        parse_share(text)
