"""The plan: which units there are. A pure function of the job, the listing and the footers."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pydantic import TypeAdapter

from batchinfer.config import Tuned
from batchinfer.data import Again, Entry, Shard, Unit
from batchinfer.engine.commit import FORMAT_VERSION, OutputLayout
from batchinfer.errors import DataError, FingerprintError, JobFileError
from batchinfer.sources.drift import unify

if TYPE_CHECKING:
    from batchinfer.config import Fingerprint, Job
    from batchinfer.protocols import Source

_UNIT_ROWS = 65_536
_UNIT_BYTES = 128 * 1024 * 1024
_UNITS_IN_MEMORY = 8
_FOOTERS_AT_ONCE = 16
_COUNTED_ROWS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """What a plan does again: failed rows of its parent, chosen by values of their `_error`.

    `units` are the parts and the table of failed rows ("" where there is none) that each unit replaces.
    """

    where: dict[str, str]
    units: tuple[tuple[tuple[str, ...], str], ...]

    def replaced_by(self, units: Iterable[int]) -> frozenset[str]:
        """Return the names of the files that some units replace."""
        chosen = (self.units[unit] for unit in units)
        return frozenset(name for parts, sidecar in chosen for name in (*parts, sidecar) if name)

    @property
    def replaced(self) -> frozenset[str]:
        """Names of the files that the output has no more once the plan is done."""
        return self.replaced_by(range(len(self.units)))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that a run has to agree on, as it is stored beside the output.

    `units` are (shard index, start, stop) in order. `inputs` are (uri, size, version) of every file
    that the output covers; `fingerprint` and `parts` say what it depends on besides. `generation`
    keeps the parts of two plans apart even where all else is the same. An incremental plan has the
    shards that came since its `parent`, whose parts stay; that of a `retry` has the units in which rows are
    done again, and all other parts of its parent stay.
    shards that came since its `parent`, whose parts stay. `batches` is how batches are cut where that was
    tuned: whoever goes on cuts them so, whatever was tuned since.
    """

    format: int
    generation: int
    parent: str | None
    job: str
    fingerprint: str
    parts: dict[str, Any]
    inputs: tuple[tuple[str, int, str], ...]
    schema: str
    shards: tuple[Shard, ...]
    units: tuple[tuple[int, int, int], ...]
    records: bool
    suffix: str
    partition_by: tuple[str, ...]
    retry: Retry | None = None
    batches: Tuned | None = None

    @cached_property
    def plan8(self) -> str:
        """Return the eight hex digits that stand in every part's name."""
        return hashlib.sha256(self.to_json()).hexdigest()[:8]

    @property
    def num_rows(self) -> int:
        """Rows planned, before `where` and `sample`."""
        return sum(stop - start for _, start, stop in self.units)

    def unit(self, index: int) -> Unit:
        """Return one unit."""
        shard, start, stop = self.units[index]
        again = None
        if self.retry is not None:
            parts, sidecar = self.retry.units[index]
            again = Again(parts=parts, sidecar=sidecar, where=self.retry.where)
        return Unit(index=index, shard=self.shards[shard], start=start, stop=stop, again=again)

    def arrow_schema(self) -> pa.Schema:
        """Return the input's schema, partition columns included."""
        return pa.ipc.read_schema(pa.BufferReader(base64.b64decode(self.schema)))

    def layout(self, root: str) -> OutputLayout:
        """Say where this plan's parts go."""
        return OutputLayout(
            root=root,
            plan8=self.plan8,
            num_units=len(self.units),
            suffix=self.suffix,
            partition_by=self.partition_by,
            records=self.records,
        )

    def to_json(self) -> bytes:
        """Return the canonical text, whose sha256 is the plan's identity."""
        plain = _PLAN.dump_python(self, mode="json")
        if self.batches is None:
            # As plans were before there was anything to tune.
            del plain["batches"]
        return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()

    @staticmethod
    def from_json(data: bytes, *, where: str) -> Plan:
        """Read a stored plan. Raises DataError for a damaged one, FingerprintError for one of another
        release's format."""
        try:
            plain = json.loads(data)
            found = plain["format"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"the stored plan is damaged: {error}", where=where) from error
        if found != FORMAT_VERSION:
            raise unreadable_format("plan", found, where)
        try:
            return _PLAN.validate_json(data)
        except ValueError as error:
            raise DataError("the stored plan is damaged", where=where) from error


_PLAN: TypeAdapter[Plan] = TypeAdapter(Plan)


def unreadable_format(what: str, found: object, where: str) -> FingerprintError:
    """Return the error for a file of another release, which must not be guessed at."""
    return FingerprintError(
        f"the stored {what} has format {found}, this release reads {FORMAT_VERSION}",
        where=where,
        hint="run it with the release that began it",
    )


def make_plan(
    job: Job,
    source: Source,
    entries: Sequence[Entry],
    fingerprint: Fingerprint,
    *,
    suffix: str,
    generation: int,
    parent: Plan | None = None,
    batches: Tuned | None = None,
) -> Plan:
    """Read the footers and cut the input into units. Raises DataError for shards that do not fit.

    With a `parent`, only the files that it does not cover are planned, and batches are cut as there.
    """
    covered = {uri for uri, _, _ in parent.inputs} if parent else set()
    new = [entry for entry in entries if entry.uri not in covered]
    inspected = _inspect(source, new)
    shards = [shard for shard, _ in inspected]
    schema = unify(inspected)
    if parent is not None:
        _check_drift(parent.arrow_schema(), schema)
    source.selection.check(schema)
    units = [unit for shard in shards for unit in _cut(job, shard)]
    if job.input.limit is not None:
        units = _limited(source, shards, units, schema, job.input.limit)
    constant = {name for shard in shards for name in shard.partition}
    if job.errors.to == "separate":
        _require_one_part(job, constant)
    return Plan(
        format=FORMAT_VERSION,
        generation=generation,
        parent=parent.plan8 if parent else None,
        job=job.name,
        fingerprint=fingerprint.digest,
        parts=dict(fingerprint.parts),
        inputs=(*(parent.inputs if parent else ()), *listing(new)),
        schema=base64.b64encode(schema.serialize().to_pybytes()).decode(),
        shards=tuple(shards),
        units=tuple(units),
        records=needs_records(job, constant),
        suffix=suffix,
        partition_by=job.output.partition_by,
        batches=parent.batches if parent else batches,
    )


def needs_records(job: Job, constant: Collection[str]) -> bool:
    """Tell whether a unit may have several parts, so that none of them can commit it. `constant` are the
    columns that do not vary inside a shard."""
    return not set(job.output.partition_by) <= set(constant)


def _require_one_part(job: Job, constant: Collection[str]) -> None:
    """Refuse failed rows apart where the part that commits a unit cannot say which table goes with it.

    Of several parts some may be an earlier attempt's, in which other rows failed. Raises JobFileError.
    """
    if job.output.format == "jsonl":
        why = "a part of JSON Lines cannot name the table of its failed rows"
    elif needs_records(job, constant):
        varying = ", ".join(sorted(set(job.output.partition_by) - set(constant)))
        why = (
            f"output.partition_by has {varying}, which varies inside a file, so that a unit has several parts"
        )
    else:
        return
    raise JobFileError(
        f"{job.place(('errors', 'to'))}  errors.to: separate does not go with this output: {why}",
        hint="use errors.to: column; or Parquet, partitioned by columns that the input is partitioned by",
    )


def listing(entries: Sequence[Entry]) -> tuple[tuple[str, int, str], ...]:
    """Return what identifies the input without opening it."""
    return tuple((entry.uri, entry.size_bytes, entry.version) for entry in entries)


def diff_inputs(planned: Sequence[tuple[str, int, str]], found: Sequence[tuple[str, int, str]]) -> list[str]:
    """Say how a listing differs from the planned one, in a few lines."""
    old = {uri: (size, version) for uri, size, version in planned}
    new = {uri: (size, version) for uri, size, version in found}
    added = sorted(new.keys() - old.keys())
    gone = sorted(old.keys() - new.keys())
    changed = sorted(uri for uri in old.keys() & new.keys() if old[uri] != new[uri])
    lines = []
    for what, uris in (("added", added), ("gone", gone), ("changed", changed)):
        if uris:
            more = f" and {len(uris) - 1} more" if len(uris) > 1 else ""
            lines.append(f"input: {len(uris)} of {len(old)} files {what}: {uris[0]}{more}")
    return lines


def _check_drift(before: pa.Schema, now: pa.Schema) -> None:
    """Refuse files whose columns differ from those of the files that the output has already."""
    changed = [
        f"{field.name!r} was {field.type} and is {now.field(field.name).type}"
        if field.name in now.names
        else f"{field.name!r} is missing"
        for field in before
        if field.name not in now.names or now.field(field.name).type != field.type
    ]
    if changed:
        raise DataError(
            f"the files that came since the last run have other columns: {'; '.join(changed)}",
            hint="write them as the earlier ones, or give them a job of their own",
        )


def _inspect(source: Source, entries: Sequence[Entry]) -> list[tuple[Shard, pa.Schema]]:
    """Read all footers, several at once, in order."""
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        return list(pool.map(lambda at: source.inspect(entries[at], index=at), range(len(entries))))


def _cut(job: Job, shard: Shard) -> list[tuple[int, int, int]]:
    """Cut a shard into units: whole blocks up to the target; a block above it, into row ranges.

    A shard without rows is one empty unit, so that its part exists and says so.
    """
    target = _target_rows(job, shard)
    units: list[tuple[int, int, int]] = []
    start = at = 0
    for block in shard.blocks:
        if at > start and at + block.num_rows - start > target:
            units.append((shard.index, start, at))
            start = at
        at += block.num_rows
        while at - start > target:
            units.append((shard.index, start, start + target))
            start += target
    if at > start or not units:
        units.append((shard.index, start, at))
    return units


def _limited(
    source: Source,
    shards: Sequence[Shard],
    units: Sequence[tuple[int, int, int]],
    schema: pa.Schema,
    limit: int,
) -> list[tuple[int, int, int]]:
    """Keep the units of the first `limit` selected rows; the last is cut behind the last of them.

    Where rows are selected by `where` or `sample`, they are counted by reading those columns.
    """
    kept: list[tuple[int, int, int]] = []
    left = limit
    for index, (shard, start, stop) in enumerate(units):
        unit = Unit(index=index, shard=shards[shard], start=start, stop=stop)
        numbers = _selected(source, unit, schema, left)
        left -= len(numbers)
        last = stop if left else int(numbers[-1]) + 1
        kept.append((shard, start, last))
        if not left:
            break
    return kept


def _selected(source: Source, unit: Unit, schema: pa.Schema, limit: int) -> Sequence[int]:
    """Return the numbers of the first `limit` selected rows of a unit."""
    if not source.selection.selects:
        return range(unit.start, min(unit.stop, unit.start + limit))
    column = next(name for name in schema.names if name not in unit.shard.partition)
    numbers: list[int] = []
    for chunk in source.read(unit, schema=schema, columns=[column], batch_rows=_COUNTED_ROWS):
        numbers += chunk.numbers.tolist()
        if len(numbers) >= limit:
            break
    return numbers[:limit]


def schema_of(source: Source, entries: Sequence[Entry]) -> pa.Schema:
    """Return the schema of some files, partition columns included."""
    return unify(_inspect(source, entries))


def _target_rows(job: Job, shard: Shard) -> int:
    """Return the rows of a unit: as the job says, or near 128 MiB of input and at most 65,536; less where a
    worker's memory would not hold two parts as large as that."""
    if isinstance(job.checkpoint.unit_rows, int):
        return job.checkpoint.unit_rows
    num_bytes = sum(block.num_bytes for block in shard.blocks)
    row_bytes = max(num_bytes // max(shard.num_rows, 1), 1)
    return max(1, min(_UNIT_ROWS, _unit_bytes(job) // row_bytes))


def _unit_bytes(job: Job) -> int:
    """Return the bytes of input of a unit."""
    compute = job.compute
    if not (isinstance(compute.host_memory, int) and isinstance(compute.devices, tuple)):
        return _UNIT_BYTES
    workers = len(compute.devices) * (
        compute.workers_per_device if isinstance(compute.workers_per_device, int) else 1
    )
    return max(1, min(_UNIT_BYTES, compute.host_memory // workers // _UNITS_IN_MEMORY))
