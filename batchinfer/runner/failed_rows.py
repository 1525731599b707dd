"""The failed rows of an output, read from its files: also while a run is under way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchinfer.config.problems import guess
from batchinfer.data import ErrorCode
from batchinfer.engine.sidecar import sidecar_sink
from batchinfer.errors import DataError, UsageError
from batchinfer.runner.contents import files_there
from batchinfer.runner.inspection import latest_plan, sink_of
from batchinfer.storage import open_store

if TYPE_CHECKING:
    import pyarrow as pa

    from batchinfer.protocols import Sink
    from batchinfer.storage import Store

KEYS = ("code", "stage", "source", "message")
"""What failed rows can be chosen by."""

_CODES = [code.value for code in ErrorCode]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorGroup:
    """Failed rows with one code, from one stage; `source`, `row` and `message` are of the first of them."""

    code: str
    stage: str
    rows: int
    source: str
    row: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedRows:
    """What failed. `table` has a row for each failed one, with its part and the fields of `_error`."""

    output: str
    rows_total: int
    table: pa.Table

    def groups(self) -> list[ErrorGroup]:
        """Return the failed rows by code and stage, the most frequent first."""
        first: dict[tuple[str, str], dict[str, Any]] = {}
        count: dict[tuple[str, str], int] = {}
        for batch in self.table.to_batches(max_chunksize=65_536):
            for row in batch.to_pylist():
                key = (row["code"], row["stage"])
                first.setdefault(key, row)
                count[key] = count.get(key, 0) + 1
        groups = [
            ErrorGroup(
                code=code,
                stage=stage,
                rows=count[code, stage],
                source=row["source"],
                row=row["row"],
                message=row["message"],
            )
            for (code, stage), row in first.items()
        ]
        return sorted(groups, key=lambda group: (-group.rows, group.code, group.stage))


def read_failed_rows(
    root: str, options: Mapping[str, Any], *, where: Mapping[str, str] | None = None
) -> FailedRows:
    """Read the failed rows of an output; `where` chooses some of them, by values of KEYS.

    Raises NoInputError where there is no output, UsageError for a key or a code that there is not, DataError
    where a part is damaged.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    check_where(where or {})
    store = open_store(root, options)
    entries = store.entries(root)
    plan = latest_plan(store, root, entries)
    files = files_there(store, root, entries, plan)
    sink = sink_of(plan)
    with ThreadPoolExecutor(store.parallel) as pool:
        found = list(pool.map(lambda name: _of_part(store, root, name, sink), files.parts))
        found += pool.map(lambda name: _of_part(store, root, name, sidecar_sink()), files.sidecars)
    table = pa.concat_tables([rows for _, rows in found]) if found else _nothing()
    for key, value in (where or {}).items():
        table = table.filter(pc.equal(table[key], value))
    return FailedRows(output=root, rows_total=sum(rows for rows, _ in found), table=table)


def check_where(where: Mapping[str, str]) -> None:
    """Raise UsageError for a key by which failed rows cannot be chosen, or a code that there is not."""
    for key, value in where.items():
        if key not in KEYS:
            raise UsageError(f"--where {key}: failed rows have {', '.join(KEYS)}, but no {key!r}")
        if key == "code" and value not in _CODES:
            raise UsageError(
                f"--where code={value}: no row fails with that{guess(value, _CODES)}",
                hint=f"codes are {', '.join(_CODES)}",
            )


def _of_part(store: Store, root: str, name: str, sink: Sink) -> tuple[int, pa.Table]:
    """Return the number of rows of a part, and its failed ones."""
    import pyarrow as pa

    try:
        with store.open(f"{root.rstrip('/')}/{name}") as file:
            num_rows, failed = sink.failed_rows(file)
    except DataError as error:
        error.where = name
        raise
    part = pa.repeat(pa.scalar(name), len(failed))
    columns = pa.Table.from_batches([pa.RecordBatch.from_struct_array(failed)]) if len(failed) else _nothing()
    return num_rows, columns if not len(failed) else columns.add_column(0, "part", part)


def _nothing() -> pa.Table:
    import pyarrow as pa

    from batchinfer.row_errors import ERROR_TYPE

    return pa.schema([pa.field("part", pa.string()), *ERROR_TYPE]).empty_table()


def asked_for(texts: Sequence[str] | None) -> dict[str, str]:
    """Parse each `KEY=VALUE`, and check them. Raises UsageError."""
    where: dict[str, str] = {}
    for text in texts or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--where {text!r} has no value", hint="write --where code=timeout")
        if key in where:
            raise UsageError(
                f"--where {key} is given twice, and a row has one {key}",
                hint="name each key once, and repeat the command for another value",
            )
        where[key] = value
    check_where(where)
    return where
