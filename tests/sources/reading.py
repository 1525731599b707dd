"""Sources as the job file would build them, read as the runner would read them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer import registry
from batchinfer.data import Shard, Unit
from batchinfer.protocols import Source
from batchinfer.sources.drift import unify


def make_source(kind: str, path: str | Path | list[str], **more: Any) -> Source:
    """Build a source from its section of a job file."""
    cls = registry.load("sources", kind)
    plain = path if isinstance(path, list) else str(path)
    source: Source = cls(cls.Options.model_validate_json(json.dumps({"path": plain, **more})))
    return source


def inspected(source: Source) -> tuple[list[Shard], pa.Schema]:
    """Return the shards of an input and the schema of all of them, as the plan has them."""
    found = [source.inspect(entry, index=at) for at, entry in enumerate(source.list_entries())]
    return [shard for shard, _ in found], unify(found)


def read_unit(
    source: Source, unit: Unit, schema: pa.Schema, columns: Sequence[str], *, rows: int = 7
) -> tuple[list[Any], list[int]]:
    """Read a unit as plain rows with their numbers, checking what every chunk promises."""
    found: list[Any] = []
    numbers: list[int] = []
    for chunk in source.read(unit, schema=schema, columns=columns, batch_rows=rows):
        assert chunk.rows.schema == pa.schema([(name, schema.field(name).type) for name in columns])
        assert chunk.numbers.shape == (chunk.rows.num_rows,)
        assert 0 < chunk.rows.num_rows <= rows
        found += chunk.rows.to_pylist() if columns else [{}] * chunk.rows.num_rows
        numbers += chunk.numbers.tolist()
    assert numbers == sorted(set(numbers))
    assert all(unit.start <= number < unit.stop for number in numbers)
    return found, numbers


def read_all(
    source: Source, columns: Sequence[str], *, start: int = 0, stop: int | None = None, rows: int = 7
) -> list[Any]:
    """Read rows [start, stop) of every shard as plain rows."""
    shards, schema = inspected(source)
    found = []
    for shard in shards:
        end = shard.num_rows if stop is None else min(stop, shard.num_rows)
        unit = Unit(index=0, shard=shard, start=min(start, end), stop=end)
        found += read_unit(source, unit, schema, columns, rows=rows)[0]
    return found


def table_of(count: int) -> pa.Table:
    """Return rows with a number, a text with awkward letters, and a float."""
    return pa.table(
        {
            "n": pa.array(range(count), pa.int64()),
            "t": pa.array([f'täxt, "{row}"\nline' if row % 3 else f"r{row}" for row in range(count)]),
            "f": pa.array([row / 4 for row in range(count)], pa.float64()),
        }
    )


def write(kind: str, path: Path, table: pa.Table, piece: int) -> None:
    """Write a table in one of the formats, in pieces of the given size where the format has some."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=piece)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    elif kind == "csv":
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(table.column_names)
            rows.writerows(row.values() for row in table.to_pylist())
    else:
        new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
        with new(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=piece)
