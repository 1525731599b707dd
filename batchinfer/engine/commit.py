"""The commit: a unit is encoded whole, then each of its files is created under a name that only this
unit has. Creating fails if the name exists, so of several writers exactly one is seen.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from batchinfer.crash import crash_point
from batchinfer.data import PartFile, Receipt, RowError, Unit
from batchinfer.engine.publish import Outcome, new_attempt, publish, sha256
from batchinfer.errors import BatchinferError, DataError

if TYPE_CHECKING:
    from batchinfer.protocols import Sink
    from batchinfer.storage import Store

FORMAT_VERSION = 1
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_MAX_SAMPLES = 10
_LONGEST_NAME = 255


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

    def spill_folder(self, unit: int) -> str:
        """Return where the finished batches of an unfinished unit are put aside."""
        return f"_batchinfer/{self.plan8}/spill/{unit:05d}"

    def spilled_units(self, names: Iterable[str]) -> frozenset[int]:
        """Return the units that have batches put aside, from the names of a listing."""
        start = f"_batchinfer/{self.plan8}/spill/"
        found = (name.removeprefix(start).partition("/")[0] for name in names if name.startswith(start))
        return frozenset(int(unit) for unit in found if unit.isdigit())

    def uri(self, name: str) -> str:
        """Return the full name of something below the root."""
        return f"{self.root.rstrip('/')}/{name}"


class UnitWriter:
    """Collects one unit's rows; `commit` encodes and publishes them. Nothing is visible before.

    `deterministic`: the job declares that a unit's bytes never differ, because the store may overwrite.
    """

    def __init__(
        self,
        unit: Unit,
        *,
        layout: OutputLayout,
        sink: Sink,
        store: Store,
        metadata: Mapping[str, str],
        deterministic: bool = False,
    ) -> None:
        self._unit = unit
        self._layout = layout
        self._sink = sink
        self._store = store
        self._metadata = dict(metadata)
        self._deterministic = deterministic
        self._attempt = new_attempt()
        self._tables: list[pa.Table] = []
        self._failed: list[RowError] = []

    def write(self, rows: pa.Table, failed: Sequence[RowError] = ()) -> None:
        """Add rows in source order, and say which of them failed."""
        self._tables.append(rows)
        self._failed.extend(failed)

    @property
    def num_bytes(self) -> int:
        """Bytes of the rows so far."""
        return sum(table.nbytes for table in self._tables)

    def commit(self) -> Receipt:
        """Publish the unit. Raises UnavailableError when the store stays unclear about it, DataError
        where a part that was declared deterministic is there with other bytes."""
        rows = pa.concat_tables(self._tables)
        # Every folder must have its name before anything is published.
        pieces = list(self._by_folder(rows))
        published = [self._publish(folder, table) for folder, table in pieces]
        parts = tuple(part for part, _ in published)
        outcomes = {outcome for _, outcome in published}
        if self._layout.records:
            outcomes.add(self._record(parts))
        crash_point("commit.after")
        return Receipt(
            unit=self._unit.index,
            parts=parts,
            rows_read=rows.num_rows,
            rows_ok=rows.num_rows - len(self._failed),
            rows_error=len(self._failed),
            rows_filtered=self._unit.num_rows - rows.num_rows,
            won=outcomes <= {Outcome.WON},
            diverged=Outcome.OTHER in outcomes,
            errors=tuple(self._failed[:_MAX_SAMPLES]),
            error_codes=dict(Counter(str(error.code) for error in self._failed)),
        )

    def _publish(self, folder: str, table: pa.Table) -> tuple[PartFile, Outcome]:
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
        crash_point("encode.mid")
        data = self._sink.encode(table, described)
        # A fault of the encoder must show before anybody can see the part.
        if self._sink.count(data) != (table.num_rows, num_errors):
            raise BatchinferError(f"the encoded part does not hold the {table.num_rows} rows put into it")
        crash_point("encode.done")
        name = self._layout.part_name(self._unit.index, folder)
        part = PartFile(
            name=name,
            num_rows=table.num_rows,
            num_errors=num_errors,
            num_bytes=len(data),
            sha256=sha256(data),
        )
        outcome = publish(
            self._store,
            self._layout.uri(name),
            data,
            stamp={"attempt": self._attempt, **part.stamp},
            look_first=self._deterministic,
        )
        if outcome is not Outcome.OTHER:
            return part, outcome
        if self._deterministic:
            raise DataError(
                "this part was written with other bytes, though output.commit declares it deterministic",
                where=self._layout.uri(name),
                hint="find what differs between two runs, or use a store with conditional writes",
            )
        return describe_part(self._store, self._layout, name, self._sink), outcome

    def _record(self, parts: Sequence[PartFile]) -> Outcome:
        """Commit a unit of several parts: they are all there by now."""
        crash_point("side.before")
        record = {
            "format": FORMAT_VERSION,
            "unit": self._unit.index,
            "parts": [asdict(part) for part in parts],
        }
        data = json.dumps(record, sort_keys=True).encode()
        stamp = {"attempt": self._attempt}
        outcome = publish(
            self._store,
            self._layout.uri(self._layout.record_name(self._unit.index)),
            data,
            stamp=stamp,
        )
        crash_point("side.after")
        return outcome

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
        # By codes, not by comparing values: a NaN equals nothing, and its rows would get lost.
        codes = np.zeros(rows.num_rows, dtype=np.int64)
        for key in keys:
            encoded = rows[key].combine_chunks().dictionary_encode(null_encoding="encode")
            codes = codes * max(len(encoded.dictionary), 1) + encoded.indices.to_numpy(zero_copy_only=False)
        for code in np.unique(codes):
            mask = codes == code
            first = int(mask.argmax())
            yield _folder({key: rows[key][first].as_py() for key in keys}), rest.filter(pa.array(mask))


def describe_part(store: Store, layout: OutputLayout, name: str, sink: Sink) -> PartFile:
    """Describe a part that is there: by its stamp, or by reading it. Raises ObjectMissing, DataError."""
    found = store.stamp(layout.uri(name))
    if stamped := PartFile.from_stamp(name, found):
        return stamped
    data = store.read(layout.uri(name))
    num_rows, num_errors = sink.count(data)
    return PartFile(
        name=name, num_rows=num_rows, num_errors=num_errors, num_bytes=len(data), sha256=sha256(data)
    )


def _folder(values: Mapping[str, Any]) -> str:
    parts = []
    for key, value in values.items():
        text = NULL_PARTITION if value is None else str(value)
        folder = f"{quote(key, safe='')}={quote(text, safe=' ')}"
        if text in {"", ".", ".."} or (value is not None and text == NULL_PARTITION):
            raise DataError(f"partition column {key!r} has the value {text!r}, which names no folder")
        if len(folder) > _LONGEST_NAME:
            raise DataError(
                f"partition column {key!r} has a value of {len(text)} letters, too long for a folder's name",
                hint="partition by a shorter column, such as a hash or a prefix of it",
            )
        parts.append(folder)
    return "/".join(parts)
