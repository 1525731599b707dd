"""Failed rows done again: of a unit that was committed, only they are read and computed; all other rows of
the new part are those of the old one, value for value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchinfer.data import Again, Chunk, ErrorCode, RowError, Unit
from batchinfer.engine.commit import Part, UnitWriter
from batchinfer.engine.sidecar import POSITION
from batchinfer.errors import ContractError, DataError
from batchinfer.tensors import num_bytes

if TYPE_CHECKING:
    from batchinfer.data import Entry, Shard
    from batchinfer.protocols import Selects, Sink, Source
    from batchinfer.storage import Store


def chosen(errors: pa.Array, where: Mapping[str, str]) -> np.ndarray[Any, Any]:
    """Return which of some rows failed and are asked for, by their `_error`: bool of shape (rows,)."""
    import pyarrow.compute as pc  # late: it takes a while

    mask = errors.is_valid()
    for key, value in where.items():
        mask = pc.and_(mask, pc.fill_null(pc.equal(pc.struct_field(errors, key), value), False))
    return np.asarray(mask.to_numpy(zero_copy_only=False), dtype=bool)


def numbers_again(store: Store, root: str, again: Again, sink: Sink) -> np.ndarray[Any, Any]:
    """Return the numbers in their file of the rows to do again, int64, in order. Raises DataError."""
    found = [np.empty(0, np.int64)]
    for name in (*again.parts, *filter(None, [again.sidecar])):
        with store.open(f"{root.rstrip('/')}/{name}") as file:
            _, errors = sink.failed_rows(file)
        rows = np.asarray(errors.field("row"), dtype=np.int64)
        found.append(rows[chosen(errors, again.where)])
    return np.sort(np.concatenate(found))


class AgainSource:
    """A source of which units that are done again give their failed rows alone."""

    def __init__(self, source: Source, store: Store, root: str, sink: Sink) -> None:
        self.selection: Selects = source.selection
        self._source = source
        self._store = store
        self._root = root
        self._sink = sink

    def list_entries(self) -> Sequence[Entry]:
        """List the input."""
        return self._source.list_entries()

    def inspect(self, entry: Entry, *, index: int) -> tuple[Shard, pa.Schema]:
        """Read a footer."""
        return self._source.inspect(entry, index=index)

    def __getattr__(self, name: str) -> Any:
        """Return what a source may have besides."""
        return getattr(self._source, name)

    def read(
        self, unit: Unit, *, schema: pa.Schema, columns: Sequence[str], batch_rows: int
    ) -> Iterator[Chunk]:
        """Read the rows of a unit; of one that is done again, those that failed."""
        chunks = self._source.read(unit, schema=schema, columns=columns, batch_rows=batch_rows)
        if unit.again is None:
            yield from chunks
            return
        wanted = numbers_again(self._store, self._root, unit.again, self._sink)
        for chunk in chunks:
            positions = np.flatnonzero(np.isin(chunk.numbers, wanted))
            if len(positions):
                yield Chunk(chunk.unit, chunk.rows.take(pa.array(positions)), chunk.numbers[positions])


@dataclass(slots=True)
class _Old:
    """What a folder has of an earlier unit: the rows of its part, and the failed ones that are elsewhere."""

    rows: pa.Table
    apart: pa.Table | None = None


class AgainWriter(UnitWriter):
    """Puts rows that were done again into the place of those that failed."""

    def write(self, rows: pa.Table, failed: Sequence[RowError] = (), pool: Executor | None = None) -> None:
        """Take rows that were done again, in source order."""
        del failed, pool  # told by `_error`; and nothing can be encoded before all of them are there
        self._tables.append(rows)
        self._num_queued += num_bytes(rows)

    def _parts(self) -> list[Part]:
        """Put old and new rows together."""
        assert self._unit.again is not None
        new = pa.concat_tables(self._tables)
        old = self._old(self._unit.again)
        places = sorted(
            (number, folder, position, attempts)
            for folder, one in old.items()
            for number, position, attempts in _failed_in(one, self._unit.again.where)
        )
        if len(places) != new.num_rows:
            raise DataError(
                f"{len(places)} rows of the unit failed, and the input has {new.num_rows} of them now",
                where=self._unit.shard.uri,
                hint="the input must be as it was; compute all anew with `run --force`",
            )
        new = _with_attempts(new, [attempts for *_, attempts in places])
        parts = []
        for folder, one in sorted(old.items()):
            mine = [at for at, place in enumerate(places) if place[1] == folder]
            positions = np.array([places[at][2] for at in mine], np.int64)
            parts.append(self._mended(folder, one, new.take(pa.array(mine, pa.int64())), positions))
        self._num_rows = sum(part.num_rows + part.num_apart for part in parts)
        return parts

    def _mended(self, folder: str, old: _Old, new: pa.Table, positions: np.ndarray[Any, Any]) -> Part:
        """Make one file. `positions` say which rows of it the new ones are."""
        if self._apart is None:
            fresh = self._as_old(new, old.rows)
            index = np.arange(old.rows.num_rows)
            index[positions] = old.rows.num_rows + np.arange(len(positions))
            rows = pa.concat_tables([_typed_as(old.rows, fresh), fresh]).take(index)
            self._note(rows["_error"])
            part = self._begin(folder, rows, apart=None)
            part.write(rows)
            return part
        good, failed = self._apart.split(new, at=0)
        failed_at = [table[POSITION].to_numpy() for table in failed]
        again_failed = np.concatenate([np.empty(0, np.int64), *failed_at]).astype(np.int64)
        fresh = self._as_old(good, old.rows)
        before = _typed_as(old.rows, fresh)
        assert old.apart is not None
        taken = old.apart[POSITION].to_numpy()
        there = np.setdiff1d(np.arange(before.num_rows + len(taken)), taken)
        at = np.concatenate([there, np.delete(positions, again_failed)])
        rows = pa.concat_tables([before, fresh]).take(np.argsort(at, kind="stable"))
        part = self._begin(folder, rows, apart=None)
        part.write(rows)
        left = self._still_failed(old.apart, failed, positions, again_failed)
        part.failed = [left] if left.num_rows else []
        self._note(left["_error"])
        return part

    def _still_failed(
        self,
        old: pa.Table,
        failed: Sequence[pa.Table],
        positions: np.ndarray[Any, Any],
        again_failed: np.ndarray[Any, Any],
    ) -> pa.Table:
        """Return the failed rows that were not done again, and those that failed again, in order."""
        kept = old.filter(pa.array(~np.isin(old[POSITION].to_numpy(), positions)))
        tables = [kept]
        for table in failed:
            at = table.schema.get_field_index(POSITION)
            placed = table.set_column(at, POSITION, pa.array(positions[again_failed], pa.int64()))
            tables = [_typed_as(kept, placed), placed]
        return pa.concat_tables(tables).sort_by(POSITION)

    def _as_old(self, rows: pa.Table, old: pa.Table) -> pa.Table:
        """Return rows as a part holds them, in the form in which it is read again."""
        sink: Any = self._sink
        left_out = [name for name in self._layout.partition_by if name in rows.column_names]
        fresh: pa.Table = sink.as_reread(rows.drop_columns(left_out) if left_out else rows)
        # What a format makes of a type when it is written and read counts, not the type itself.
        part = self._sink.begin(fresh.schema, {})
        part.write(fresh.slice(0, 0))
        now = sink.reread(part.finish({})).schema
        if not now.equals(old.schema):
            raise ContractError(
                "the job gives other columns now than the part in which rows are to be replaced: "
                f"{_columns(now)}, and there are {_columns(old.schema)}",
                hint="declare the types in output.columns, or compute all anew with `run --force`",
            )
        return fresh

    def _old(self, again: Again) -> dict[str, _Old]:
        """Read what the unit was, by folder. Raises DataError where something of it is gone or damaged."""
        sink: Any = self._sink
        found: dict[str, _Old] = {}
        for name in again.parts:
            rows = sink.reread(self._store.read(self._layout.uri(name)))
            found[name.rpartition("/")[0]] = _Old(rows)
        if self._apart is not None:
            (only,) = found.values()
            table = sink.reread(self._store.read(self._layout.uri(again.sidecar)))
            only.apart = table.replace_schema_metadata(None)
        return found

    def _note(self, errors: pa.ChunkedArray) -> None:
        """Count failed rows, those that were not done again included."""
        for error in errors.drop_null().to_pylist():
            self._failed.append(RowError(**{**error, "code": ErrorCode(error["code"])}))


def _failed_in(old: _Old, where: Mapping[str, str]) -> Iterator[tuple[int, int, int]]:
    """Yield number in the file, position in the part and attempts so far of each row to do again."""
    table = old.rows if old.apart is None else old.apart
    assert table is not None
    errors = table["_error"].combine_chunks()
    for at in np.flatnonzero(chosen(errors, where)).tolist():
        error = errors[at].as_py()
        yield error["row"], at if old.apart is None else table[POSITION][at].as_py(), error["attempts"]


def _with_attempts(rows: pa.Table, before: Sequence[int]) -> pa.Table:
    """Add the attempts that rows had before to those of the ones that failed again."""
    import pyarrow.compute as pc  # late: it takes a while

    errors = rows["_error"].combine_chunks()
    if errors.null_count == len(errors):
        return rows
    attempts = pc.add(pc.struct_field(errors, "attempts"), pa.array(before, pa.int32()))
    names = [field.name for field in errors.type]
    fields = [attempts if name == "attempts" else pc.struct_field(errors, name) for name in names]
    column = pa.StructArray.from_arrays(fields, fields=list(errors.type), mask=errors.is_null())
    return rows.set_column(rows.schema.get_field_index("_error"), "_error", column)


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _typed_as(rows: pa.Table, like: pa.Table) -> pa.Table:
    """Give rows the schema of others: what a format makes of a type is undone, and nothing else changes."""
    columns = [rows[field.name].cast(field.type) for field in like.schema]
    return pa.Table.from_arrays(columns, schema=like.schema)
