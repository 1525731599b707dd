"""The commit: a unit is encoded whole, then each of its files is created under a name that only this
unit has. Creating fails if the name exists, so of several writers exactly one is seen.

After any answer but a plain yes, the object is read back: "exists" may be our own write whose answer
was lost, and an error may hide a write that was made. Nothing is ever cleaned up on a guess.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc

from batchinfer.data import PartFile, Receipt, RowError, Unit
from batchinfer.errors import DataError, UnavailableError
from batchinfer.storage import AlreadyExists, ObjectMissing

if TYPE_CHECKING:
    from batchinfer.protocols import Sink
    from batchinfer.storage import Store

FORMAT_VERSION = 1
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_ATTEMPTS = 4
_MAX_SAMPLES = 10


@dataclass(frozen=True, slots=True)
class OutputLayout:
    """Where a plan's parts go, and under which names.

    `records`: a unit may have several files (a partition column varies inside it), so that a small
    record, written last, is what commits it.
    """

    root: str
    plan8: str
    num_units: int
    suffix: str
    partition_by: tuple[str, ...]
    records: bool

    def part_name(self, unit: int, folder: str = "") -> str:
        """Return the name of a unit's file, relative to the root."""
        name = f"part-{unit:05d}-of-{self.num_units:05d}-{self.plan8}{self.suffix}"
        return f"{folder}/{name}" if folder else name

    def record_name(self, unit: int) -> str:
        """Return the name of a unit's record, relative to the root."""
        return f"_batchinfer/{self.plan8}/units/{unit:05d}.json"

    def uri(self, name: str) -> str:
        """Return the full name of something below the root."""
        return f"{self.root.rstrip('/')}/{name}"


class UnitWriter:
    """Collects one unit's rows; `commit` encodes and publishes them. Nothing is visible before."""

    def __init__(
        self, unit: Unit, *, layout: OutputLayout, sink: Sink, store: Store, metadata: Mapping[str, str]
    ) -> None:
        self._unit = unit
        self._layout = layout
        self._sink = sink
        self._store = store
        self._metadata = dict(metadata)
        self._tables: list[pa.Table] = []
        self._failed: list[RowError] = []

    def write(self, rows: pa.Table, failed: Sequence[RowError] = ()) -> None:
        """Add rows in source order, and say which of them failed."""
        self._tables.append(rows)
        self._failed.extend(failed)

    def commit(self) -> Receipt:
        """Publish the unit. Raises UnavailableError when the store stays unclear about it."""
        rows = pa.concat_tables(self._tables)
        outcomes = [self._publish(folder, table) for folder, table in self._by_folder(rows)]
        parts = tuple(part for part, _ in outcomes)
        won = all(won for _, won in outcomes)
        if self._layout.records:
            record = {"format": FORMAT_VERSION, "unit": self._unit.index, "parts": [asdict(p) for p in parts]}
            data = json.dumps(record, sort_keys=True).encode()
            won = create_once(self._store, self._layout.uri(self._layout.record_name(self._unit.index)), data)
        return Receipt(
            unit=self._unit.index,
            parts=parts,
            rows_read=rows.num_rows,
            rows_ok=rows.num_rows - len(self._failed),
            rows_error=len(self._failed),
            rows_filtered=self._unit.num_rows - rows.num_rows,
            won=won,
            errors=tuple(self._failed[:_MAX_SAMPLES]),
            error_codes=dict(Counter(str(error.code) for error in self._failed)),
        )

    def _publish(self, folder: str, table: pa.Table) -> tuple[PartFile, bool]:
        num_errors = 0
        if "_error" in table.column_names:
            num_errors = table.num_rows - table["_error"].null_count
        described = {
            **self._metadata,
            "batchinfer.format": str(FORMAT_VERSION),
            "batchinfer.unit": str(self._unit.index),
            "batchinfer.source": self._unit.shard.key,
            "batchinfer.source_version": self._unit.shard.version,
            "batchinfer.source_rows": f"{self._unit.start}..{self._unit.stop}",
            "batchinfer.rows": str(table.num_rows),
            "batchinfer.rows_error": str(num_errors),
        }
        data = self._sink.encode(table, described)
        name = self._layout.part_name(self._unit.index, folder)
        won = create_once(self._store, self._layout.uri(name), data)
        part = PartFile(
            name=name,
            num_rows=table.num_rows,
            num_errors=num_errors,
            num_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )
        return part, won

    def _by_folder(self, rows: pa.Table) -> Iterator[tuple[str, pa.Table]]:
        """Split rows by the partition columns, which become folders and leave the file."""
        keys = self._layout.partition_by
        if not keys:
            yield "", rows
            return
        rest = rows.drop_columns(list(keys))
        if not self._layout.records:
            # Constant in the shard, also where the unit has no row to read the value from.
            yield _folder({key: self._unit.shard.partition[key] for key in keys}), rest
            return
        for values in rows.select(list(keys)).group_by(list(keys)).aggregate([]).to_pylist():
            mask = pa.scalar(True)
            for key, value in values.items():
                same = pc.is_null(rows[key]) if value is None else pc.equal(rows[key], value)
                mask = pc.and_(mask, pc.fill_null(same, False))
            yield _folder(values), rest.filter(mask)


def create_once(store: Store, uri: str, data: Any) -> bool:
    """Create an object and make sure of the outcome: True if what is there now is ours.

    Raises UnavailableError when the store does not answer, and leaves everything as it is.
    """
    for attempt in range(_ATTEMPTS):
        try:
            store.create(uri, data)
        except AlreadyExists:
            return _is_ours(store, uri, data)
        except UnavailableError as error:
            # The write may have been made and its answer lost: only the store can tell.
            try:
                return _is_ours(store, uri, data)
            except ObjectMissing:
                if attempt == _ATTEMPTS - 1:
                    raise error from None
                time.sleep(0.2 * 2**attempt)
        else:
            return True
    raise AssertionError("unreachable")


def _is_ours(store: Store, uri: str, data: Any) -> bool:
    there = store.read(uri)
    return hashlib.sha256(there).digest() == hashlib.sha256(data).digest()


def _folder(values: Mapping[str, Any]) -> str:
    parts = []
    for key, value in values.items():
        text = NULL_PARTITION if value is None else str(value)
        if text in {"", ".", ".."}:
            raise DataError(f"partition column {key!r} has the value {text!r}, which names no folder")
        parts.append(f"{quote(key, safe='')}={quote(text, safe=' ')}")
    return "/".join(parts)
