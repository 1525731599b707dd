"""What the output of a job of the matrix must be: beside the rows that failed, that of a run without any."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.runner.matrix_jobs import SHARD, Plan


def rows_of(folder: Path) -> pa.Table:
    """Return the visible rows of an output, in the order of its parts."""
    parts = sorted(path for path in (folder / "out").glob("*.parquet"))
    return pa.concat_tables([pq.read_table(path) for path in parts])


def failed_of(folder: Path) -> pa.Table | None:
    """Return the failed rows that stand in a table of their own."""
    tables = [pq.read_table(path) for path in (folder / "out").glob("_batchinfer/*/errors/*.parquet")]
    return pa.concat_tables(tables).sort_by("id") if tables else None


def bits(rows: pa.Table) -> dict[str, bytes]:
    """Return each column's type and buffers, by its name."""
    return {name: _column_bits(rows.select([name])) for name in rows.column_names}


def _column_bits(column: pa.Table) -> bytes:
    # Taking the rows makes new buffers: no offset, nothing left of rows beside them.
    taken = (
        column.take(pa.array(range(column.num_rows), pa.int64())).combine_chunks().replace_schema_metadata()
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, taken.schema) as stream:
        stream.write_table(taken)
    written: bytes = sink.getvalue().to_pybytes()
    return written


def check(folder: Path, clean: pa.Table, plan: Plan, kinds: dict[str, tuple[str, str]]) -> None:
    """Compare an output with that of a clean run, bit for bit, and the failed rows with what was planned."""
    rows = rows_of(folder)
    bad = sorted(plan)
    good = [row for row in range(clean.num_rows) if row not in plan]
    apart = failed_of(folder)
    if apart is None:
        assert rows["id"].to_pylist() == list(range(clean.num_rows))
        good_rows, failed = rows.take(good), rows.take(bad)
        results = [name for name in clean.column_names if name not in {"id", "text", "_error"}]
        assert all(failed[name].null_count == len(bad) for name in results)
    else:
        assert "_error" not in rows.column_names
        good_rows, failed = rows, apart
    wanted = bits(clean.drop_columns("_error").take(good))
    found = bits(good_rows.drop_columns("_error") if apart is None else good_rows)
    assert found.keys() == wanted.keys()
    assert [name for name, column in found.items() if column != wanted[name]] == []
    carried = ["id", "text"]
    assert bits(failed.select(carried)) == bits(clean.select(carried).take(bad))
    told = [
        (error["source"], error["row"], error["stage"], error["code"]) if error else None
        for error in failed["_error"].to_pylist()
    ]
    planned = [(f"shard-{row // SHARD:04}.parquet", row % SHARD, *kinds[plan[row]]) for row in bad]
    assert [pair for pair in zip(bad, told, planned, strict=True) if pair[1] != pair[2]] == []
    assert good_rows.num_rows + failed.num_rows == clean.num_rows
    if apart is None:
        assert good_rows["_error"].null_count == len(good)
