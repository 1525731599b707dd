"""The commit: a unit is encoded whole, then each of its files is created under a name that only this
unit has. Creating fails if the name exists, so of several writers exactly one is seen.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from batchinfer.crash import crash_point
from batchinfer.data import PartFile, Receipt, RowError, Unit
from batchinfer.engine.publish import Outcome, new_attempt, publish, sha256
from batchinfer.engine.sidecar import APART, SIDECAR, Apart, encode_failed
from batchinfer.errors import BatchinferError, DataError
from batchinfer.tensors import num_bytes

if TYPE_CHECKING:
    from batchinfer.protocols import PartEncoder, Sink
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

    def sidecar_name(self, unit: int, digest: str) -> str:
        """Return the name of a table with a unit's failed rows, relative to the root."""
        return f"_batchinfer/{self.plan8}/errors/{unit:05d}-{digest[:16]}.parquet"

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


@dataclass(slots=True)
class Part:
    """One file of a unit while it is encoded, without the columns that `become` its folder."""

    folder: str
    encoder: PartEncoder
    become: tuple[str, ...]
    apart: Apart | None
    num_rows: int = 0
    num_errors: int = 0
    failed: list[pa.Table] = field(default_factory=list)

    @property
    def num_apart(self) -> int:
        """Failed rows that do not stand in the file."""
        return sum(rows.num_rows for rows in self.failed)

    def write(self, rows: pa.Table) -> None:
        """Encode some rows, and count them; take out the failed ones, where they go elsewhere."""
        if self.apart is not None:
            rows, failed = self.apart.split(rows, at=self.num_rows + self.num_apart)
            self.failed += failed
        self.num_rows += rows.num_rows
        if "_error" in rows.column_names:
            self.num_errors += rows.num_rows - rows["_error"].null_count
        self.encoder.write(rows.drop_columns(list(self.become)) if self.become else rows)


class UnitWriter:
    """Encodes one unit's rows as they come; `commit` publishes them. Nothing is visible before.

    `deterministic`: the job declares that a unit's bytes never differ, because the store may overwrite.
    `apart` takes the failed rows out of the part; their table is published before the part that names it. A
    unit of several parts cannot have one: some may be an earlier attempt's, in which other rows failed.
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
        apart: Apart | None = None,
    ) -> None:
        self._unit = unit
        self._layout = layout
        self._sink = sink
        self._store = store
        self._metadata = dict(metadata)
        self._deterministic = deterministic
        self._apart = apart
        self._attempt = new_attempt()
        self._tables: deque[pa.Table] = deque()
        self._part: Part | None = None
        self._encoding: Future[None] | None = None
        self._turn = threading.Lock()
        self._is_encoding = False
        self._num_rows = self._num_queued = 0
        self._failed: list[RowError] = []
        self.encoded_at = 0.0
        """When its first file was whole, by `time.perf_counter`; from then on it is being committed."""

    def write(self, rows: pa.Table, failed: Sequence[RowError] = (), pool: Executor | None = None) -> None:
        """Add rows in source order, and say which of them failed. With a `pool`, they are encoded there,
        one after the other, unless it takes all of a unit's rows to know which file each is for."""
        self._num_rows += rows.num_rows
        self._failed.extend(failed)
        with self._turn:
            self._tables.append(rows)
            self._num_queued += num_bytes(rows)
            if pool is None or self._layout.records or self._is_encoding:
                return
            self._is_encoding = True
        self._encoding = pool.submit(self._encode)

    @property
    def num_bytes(self) -> int:
        """Bytes that it holds: rows that are not encoded yet, and what has become of the others."""
        return self._num_queued + (self._part.encoder.num_bytes if self._part is not None else 0)

    def catch_up(self, *, at_most: int) -> None:
        """Wait for the encoding where more bytes of rows than these wait for it."""
        if self._encoding is not None and self._num_queued > at_most:
            self._encoding.result()

    def commit(self) -> Receipt:
        """Publish the unit. Raises UnavailableError when the store stays unclear about it, DataError
        where a part that was declared deterministic is there with other bytes."""
        if self._encoding is not None:
            # It was begun before this was: whoever waits here does not wait for a place in the pool.
            self._encoding.result()
        encoded = self._parts()
        sidecar = self._publish_failed([rows for part in encoded for rows in part.failed])
        published = [self._publish(part, sidecar) for part in encoded]
        parts = tuple(part for part, _ in published)
        outcomes = {outcome for _, outcome in published}
        if self._layout.records:
            outcomes.add(self._record(parts))
        crash_point("commit.after")
        return Receipt(
            unit=self._unit.index,
            parts=parts,
            rows_read=self._num_rows,
            rows_ok=self._num_rows - len(self._failed),
            rows_error=len(self._failed),
            rows_filtered=self._unit.num_rows - self._num_rows,
            won=outcomes <= {Outcome.WON},
            diverged=Outcome.OTHER in outcomes,
            errors=tuple(self._failed[:_MAX_SAMPLES]),
            error_codes=dict(Counter(str(error.code) for error in self._failed)),
            sidecar=sidecar,
        )

    def _encode(self) -> None:
        """Encode the rows that are there, until there are none."""
        while True:
            with self._turn:
                if not self._tables:
                    self._is_encoding = False
                    return
                rows = self._tables.popleft()
            self._part = self._part or self._begin(self._folder_of_all(), rows, apart=self._apart)
            self._part.write(rows)
            with self._turn:
                self._num_queued -= num_bytes(rows)

    def _parts(self) -> list[Part]:
        """Encode what is not yet encoded. Every folder has its name before anything is published."""
        if not self._layout.records:
            self._encode()
            assert self._part is not None
            return [self._part]
        parts = []
        for folder, rows in self._by_folder(pa.concat_tables(self._tables)):
            part = self._begin(folder, rows, apart=self._apart)
            part.write(rows)
            parts.append(part)
        return parts

    def _begin(self, folder: str, rows: pa.Table, *, apart: Apart | None) -> Part:
        """Begin a file for rows like these; `apart` takes the failed ones out of them."""
        left_out = self._layout.partition_by if self._apart is None else (*self._layout.partition_by, *APART)
        kept = [field for field in rows.schema if field.name not in left_out]
        encoder = self._sink.begin(pa.schema(kept), self._described())
        become = tuple(name for name in self._layout.partition_by if name in rows.column_names)
        return Part(folder, encoder, become, apart)

    def _described(self) -> dict[str, str]:
        """Return what a file says of itself."""
        return {
            **self._metadata,
            "batchinfer.format": str(FORMAT_VERSION),
            "batchinfer.unit": str(self._unit.index),
            "batchinfer.source": self._unit.shard.key,
            "batchinfer.source_version": self._unit.shard.version,
            "batchinfer.source_rows": f"{self._unit.start}..{self._unit.stop}",
        }

    def _publish_failed(self, failed: Sequence[pa.Table]) -> PartFile | None:
        """Publish the failed rows that stand in no part. Named by its content, their table is the same for
        everyone who writes it, and one that nobody's part names is in nobody's way."""
        if not failed:
            return None
        table = pa.concat_tables(failed)
        data = encode_failed(table, self._described())
        digest = sha256(data)
        sidecar = PartFile(
            name=self._layout.sidecar_name(self._unit.index, digest),
            num_rows=table.num_rows,
            num_errors=table.num_rows,
            num_bytes=len(data),
            sha256=digest,
        )
        crash_point("errors.before")
        uri = self._layout.uri(sidecar.name)
        if publish(self._store, uri, data, stamp=sidecar.stamp) is Outcome.OTHER:
            raise DataError(
                "this table of failed rows was changed by somebody else",
                where=uri,
                hint="delete the file and run the same command again",
            )
        crash_point("errors.after")
        return sidecar

    def _publish(self, encoded: Part, sidecar: PartFile | None) -> tuple[PartFile, Outcome]:
        crash_point("encode.mid")
        num_rows, num_errors = encoded.num_rows, encoded.num_errors
        named = {} if sidecar is None else {SIDECAR: sidecar.name}
        data = encoded.encoder.finish({**self._counts(encoded), **named})
        # A fault of the encoder must show before anybody can see the part.
        if self._sink.count(data) != (num_rows, num_errors):
            raise BatchinferError(f"the encoded part does not hold the {num_rows} rows put into it")
        crash_point("encode.done")
        self.encoded_at = self.encoded_at or time.perf_counter()
        name = self._layout.part_name(self._unit.index, encoded.folder)
        part = PartFile(
            name=name,
            num_rows=num_rows,
            num_errors=num_errors,
            num_bytes=len(data),
            sha256=sha256(data),
        )
        outcome = publish(
            self._store,
            self._layout.uri(name),
            data,
            stamp={"attempt": self._attempt, **part.stamp, **_stamped(sidecar)},
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

    def _counts(self, part: Part) -> dict[str, str]:
        """Return how many rows came in for a part, and what became of them. Of the rows that `where` and
        `sample` left out, nobody can say which of several parts they were for."""
        num_failed = part.num_errors + part.num_apart
        num_ok = part.num_rows - part.num_errors
        num_filtered = 0 if self._layout.records else self._unit.num_rows - self._num_rows
        return {
            "batchinfer.rows": str(part.num_rows),
            "batchinfer.rows_in": str(num_ok + num_failed + num_filtered),
            "batchinfer.rows_ok": str(num_ok),
            "batchinfer.rows_error": str(num_failed),
            "batchinfer.rows_filtered": str(num_filtered),
        }

    def _record(self, parts: Sequence[PartFile]) -> Outcome:
        """Commit a unit of several parts: they are all there by now."""
        crash_point("side.before")
        record = {
            "format": FORMAT_VERSION,
            "unit": self._unit.index,
            "parts": [asdict(part) for part in parts],
            "rows_in": self._unit.num_rows,
            "rows_ok": self._num_rows - len(self._failed),
            "rows_error": len(self._failed),
            "rows_filtered": self._unit.num_rows - self._num_rows,
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

    def _folder_of_all(self) -> str:
        """Return the folder of a unit whose rows all go into one file."""
        # Constant in the shard, also where the unit has no row to read the value from.
        return folder_of({key: self._unit.shard.partition[key] for key in self._layout.partition_by})

    def _by_folder(self, rows: pa.Table) -> Iterator[tuple[str, pa.Table]]:
        """Split rows by the partition columns, which become folders."""
        keys = self._layout.partition_by
        # By codes, not by comparing values: a NaN equals nothing, and its rows would get lost.
        codes = np.zeros(rows.num_rows, dtype=np.int64)
        for key in keys:
            encoded = rows[key].combine_chunks().dictionary_encode(null_encoding="encode")
            codes = codes * max(len(encoded.dictionary), 1) + encoded.indices.to_numpy(zero_copy_only=False)
        for code in np.unique(codes):
            mask = codes == code
            first = int(mask.argmax())
            yield folder_of({key: rows[key][first].as_py() for key in keys}), rows.filter(pa.array(mask))


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


def _stamped(sidecar: PartFile | None) -> dict[str, str]:
    """Return what a part's stamp says of its failed rows."""
    return {} if sidecar is None else {"sidecar": sidecar.name}


def folder_of(values: Mapping[str, Any]) -> str:
    """Return the hive folder of some values. Raises DataError for a value that names none."""
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
