"""For any input and any settings, every row comes out once, in order, with its own result."""

from __future__ import annotations

import itertools
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

import batchinfer
from batchinfer.storage import open_store
from tests.conftest import numbers

_spaces = itertools.count()


def put_shards(root: str, sizes: list[int], *, row_group: int) -> None:
    """Write numbered rows as shards into memory."""
    store, start = open_store(root, {}), 0
    for index, size in enumerate(sizes):
        out = pa.BufferOutputStream()
        pq.write_table(numbers(start, start + size), out, row_group_size=row_group)
        store.put(f"{root}/in/shard-{index:03d}.parquet", out.getvalue())
        start += size


def read_parts(root: str) -> pa.Table:
    """Read the output of a run in the order of its parts' units."""
    store = open_store(root, {})
    entries = store.glob(f"{root}/out/**/*.parquet")
    entries.sort(key=lambda entry: entry.uri.rpartition("/")[2])
    return pa.concat_tables([pq.read_table(pa.BufferReader(store.read(entry.uri))) for entry in entries])


def run(root: str, **sections: Any) -> batchinfer.RunReport:
    """Run a doubling job over what is in memory."""
    job: dict[str, Any] = {
        "job": "t",
        "input": {"path": f"{root}/in/"},
        "model": {"backend": "simulated", "seconds_per_batch": 0},
        "output": {"path": f"{root}/out/", "carry": ["id"]},
    }
    for name, section in sections.items():
        job[name] = {**job.get(name, {}), **section}
    return batchinfer.run_job(job)


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 120), min_size=1, max_size=4),
    row_group=st.integers(1, 50),
    unit_rows=st.integers(1, 90),
    batch=st.integers(1, 70),
    window=st.integers(1, 100),
    by=st.sampled_from(["rows", "bytes"]),
    buckets=st.sampled_from(["none", 1]),
)
def test_every_row_once_in_order(
    sizes: list[int], row_group: int, unit_rows: int, batch: int, window: int, by: str, buckets: Any
) -> None:
    """Shard sizes, row groups, units, windows and batches change nothing but the cut."""
    root = f"memory://p{next(_spaces)}"
    put_shards(root, sizes, row_group=row_group)
    report = run(
        root,
        checkpoint={"unit_rows": unit_rows},
        batching={"size": batch, "window_rows": window, "by": by, "buckets": buckets},
    )
    total = sum(sizes)
    table = read_parts(root)
    assert table["id"].to_pylist() == list(range(total))
    assert table["y"].to_pylist() == [float(row) for row in range(total)]
    assert (report.rows_in, report.rows_ok, report.rows_error) == (total, total, 0)


@settings(max_examples=40)
@given(
    size=st.integers(1, 150),
    unit_rows=st.integers(1, 60),
    limit=st.none() | st.integers(1, 160),
    modulo=st.none() | st.integers(2, 9),
    share=st.sampled_from([None, "10%", "50%"]),
)
def test_selection_is_exact(
    size: int, unit_rows: int, limit: int | None, modulo: int | None, share: str | None
) -> None:
    """`where`, `sample` and `limit` select the same rows however the input is cut into units."""
    root = f"memory://p{next(_spaces)}"
    put_shards(root, [size], row_group=40)
    where = None if modulo is None else f"id >= {modulo} and kind = 'even'"
    selection = {"where": where, "limit": limit, "sample": share}
    report = run(root, input=selection, checkpoint={"unit_rows": unit_rows}, errors={"max": 0})
    ids = read_parts(root)["id"].to_pylist()

    whole = f"memory://p{next(_spaces)}"
    put_shards(whole, [size], row_group=7)
    run(whole, input={"where": where, "sample": share}, checkpoint={"unit_rows": 1000})
    expected = read_parts(whole)["id"].to_pylist()
    if modulo is not None:
        assert all(row >= modulo and row % 2 == 0 for row in expected)
    assert ids == (expected if limit is None else expected[:limit])
    assert report.rows_in == report.rows_ok + report.rows_error + report.rows_filtered
    assert report.rows_ok == len(ids)


@settings(max_examples=30)
@given(
    bad=st.sets(st.integers(0, 99), max_size=30),
    unit_rows=st.integers(1, 60),
    batch=st.integers(1, 40),
)
def test_bad_rows_cost_themselves(bad: set[int], unit_rows: int, batch: int) -> None:
    """A row that cannot be encoded is recorded with its place and reason; its neighbours have results."""
    root = f"memory://p{next(_spaces)}"
    values = [None if row in bad else float(row) for row in range(100)]
    table = numbers(0, 100).set_column(1, "x", pa.array(values, pa.float32()))
    out = pa.BufferOutputStream()
    pq.write_table(table, out, row_group_size=33)
    open_store(root, {}).put(f"{root}/in/a.parquet", out.getvalue())
    report = _run_columns(root, unit_rows=unit_rows, batch=batch)
    rows = read_parts(root).to_pylist()
    assert [row["id"] for row in rows] == list(range(100))
    for row in rows:
        if row["id"] in bad:
            assert row["y"] is None
            assert row["_error"]["code"] == "schema"
            assert row["_error"]["row"] == row["id"]
            assert row["_error"]["source"] == "a.parquet"
            assert row["_error"]["message"] == "column 'x' is null"
        else:
            assert row["y"] == 2.0 * row["id"]
            assert row["_error"] is None
    assert (report.rows_ok, report.rows_error) == (100 - len(bad), len(bad))


def _run_columns(root: str, *, unit_rows: int, batch: int) -> batchinfer.RunReport:
    job: dict[str, Any] = {
        "job": "t",
        "input": {"path": f"{root}/in/"},
        "preprocess": [{"columns": ["x"]}],
        "model": {"backend": "simulated", "seconds_per_batch": 0},
        "output": {"path": f"{root}/out/", "carry": ["id"]},
        "checkpoint": {"unit_rows": unit_rows},
        "batching": {"size": batch},
        "errors": {"max": "100%"},
    }
    return batchinfer.run_job(job)


@settings(max_examples=30)
@given(
    rows=st.lists(st.lists(st.integers(0, 50), max_size=40), min_size=1, max_size=120),
    unit_rows=st.integers(1, 60),
    size=st.integers(1, 200),
    by=st.sampled_from(["rows", "tokens", "bytes"]),
    window=st.integers(1, 80),
    buckets=st.sampled_from(["auto", 5, [4, 40]]),
)
def test_ragged_rows_keep_their_results(
    rows: list[list[int]], unit_rows: int, size: int, by: str, window: int, buckets: Any
) -> None:
    """Rows of any lengths are sorted, padded and batched, and each finds its way back to its place."""
    root = f"memory://p{next(_spaces)}"
    table = pa.table({"id": range(len(rows)), "ids": pa.array(rows, pa.list_(pa.int64()))})
    out = pa.BufferOutputStream()
    pq.write_table(table, out, row_group_size=17)
    open_store(root, {}).put(f"{root}/in/a.parquet", out.getvalue())
    report = run(
        root,
        model={"signature": {"inputs": {"ids": "int64[?, ?]"}, "outputs": {"y": "float32[?]"}}},
        batching={"size": size, "by": by, "window_rows": window, "buckets": buckets},
        checkpoint={"unit_rows": unit_rows},
    )
    found = read_parts(root)
    assert found["id"].to_pylist() == list(range(len(rows)))
    assert found["y"].to_pylist() == [2.0 * sum(row) for row in rows]
    assert report.rows_ok == len(rows)
