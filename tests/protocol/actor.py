"""One process of a run without its model: the real protocol, from the plan to `_SUCCESS`.

What a run does between its workers and the store is done here by the same code: plan, deal, claims,
heartbeats, commit, manifest, seal. Only the rows are computed by a line of arithmetic.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from batchinfer.clock import Clock
from batchinfer.data import Block, ErrorCode, Receipt, RowError, Shard
from batchinfer.engine.commit import FORMAT_VERSION, UnitWriter
from batchinfer.engine.sidecar import Apart
from batchinfer.row_errors import ERROR_TYPE
from batchinfer.runner.claims import Claims
from batchinfer.runner.deal import Deal, LeaseDeal, StaticDeal, Supersession
from batchinfer.runner.finish import finish, manifest_name
from batchinfer.runner.ledger import read_ledger
from batchinfer.runner.output import below, generations, read_plan, store_plan
from batchinfer.runner.plan import Plan
from batchinfer.runner.presence import Presence, beats
from batchinfer.sinks.parquet import ParquetOptions, ParquetPart, ParquetSink
from batchinfer.storage import Store

NUM_UNITS = 5
UNIT_ROWS = 8
SCHEMA = pa.schema([("id", pa.int64()), ("kind", pa.string()), ("y", pa.float64())])
BEAT_S = 15.0


class RememberedPart(ParquetPart):
    """Encodes a part when it is whole, unless it was encoded before."""

    def __init__(
        self, part: ParquetPart, metadata: Mapping[str, str], encoded: dict[tuple[Any, ...], pa.Buffer]
    ) -> None:
        self._part = part
        self._metadata = metadata
        self._encoded = encoded
        self._rows: list[pa.Table] = []

    def write(self, rows: pa.Table) -> None:
        """Keep rows."""
        self._rows.append(rows)

    def finish(self, metadata: Mapping[str, str]) -> pa.Buffer:
        """Encode, or remember."""
        rows = pa.concat_tables(self._rows)
        said = tuple(sorted({**self._metadata, **metadata}.items()))
        key = (said, rows.num_rows, rows["id"][0].as_py() if rows.num_rows else -1)
        if key not in self._encoded:
            self._part.write(rows)
            self._encoded[key] = self._part.finish(metadata)
        return self._encoded[key]


class RememberingSink(ParquetSink):
    """A Parquet sink that encodes the same rows once: what it makes is a pure function of them."""

    def __init__(self) -> None:
        super().__init__(ParquetOptions(path="unused"))
        self._encoded: dict[tuple[Any, ...], pa.Buffer] = {}
        self._counted: dict[bytes, tuple[int, int]] = {}

    def begin(self, schema: pa.Schema, metadata: Mapping[str, str]) -> ParquetPart:
        """Begin a part that is remembered."""
        return RememberedPart(super().begin(schema, metadata), metadata, self._encoded)

    def count(self, data: bytes) -> tuple[int, int]:
        """Count, or remember."""
        key = bytes(data)
        if key not in self._counted:
            self._counted[key] = super().count(data)
        return self._counted[key]


def make_plan(generation: int, *, records: bool, num_units: int = NUM_UNITS, name: str = "job") -> Plan:
    """Return a plan of a few units over one shard of numbered rows."""
    rows = num_units * UNIT_ROWS
    shard = Shard(
        index=0,
        uri="in/a",
        key="a",
        size_bytes=1,
        version="v",
        blocks=(Block(num_rows=rows, num_bytes=rows * 8),),
    )
    return Plan(
        format=FORMAT_VERSION,
        generation=generation,
        parent=None,
        job=name,
        fingerprint=f"fingerprint of {name}",
        parts={},
        inputs=(("in/a", 1, "v"),),
        schema=base64.b64encode(SCHEMA.serialize().to_pybytes()).decode(),
        shards=(shard,),
        units=tuple((0, start, start + UNIT_ROWS) for start in range(0, rows, UNIT_ROWS)),
        records=records,
        suffix=".parquet",
        partition_by=("kind",) if records else (),
    )


@functools.cache
def rows_of(start: int, stop: int) -> pa.Table:
    """Compute the rows of a unit."""
    ids = list(range(start, stop))
    kinds = ["even" if number % 2 == 0 else "odd" for number in ids]
    return pa.table([ids, kinds, [number * 2.0 for number in ids]], schema=SCHEMA)


@functools.cache
def failing_rows_of(start: int, stop: int) -> tuple[pa.Table, tuple[RowError, ...]]:
    """Compute the rows of a unit of which every third fails."""
    rows = rows_of(start, stop)
    errors = [
        RowError(stage="model", code=ErrorCode.MODEL, message="no", attempts=1, source="a", row=number)
        if number % 3 == 0
        else None
        for number in range(start, stop)
    ]
    told = [None if error is None else {**asdict(error), "code": str(error.code)} for error in errors]
    table = rows.append_column("_error", pa.array(told, ERROR_TYPE))
    return table, tuple(error for error in errors if error is not None)


@dataclass(slots=True)
class Process:
    """One process of a run. `compute` waits as long as a unit takes."""

    store: Store
    root: str
    owner: str
    clock: Clock
    sink: ParquetSink
    records: bool = False
    apart: bool = False
    lease: bool = False
    share: tuple[int, int] | None = None
    force: bool = False
    salt: str = ""
    first: int = 1
    """The generation that a new output begins with."""
    compute: Callable[[], None] = lambda: None
    receipts: dict[int, Receipt] = field(default_factory=dict)
    plan8: str = ""

    def run(self) -> None:
        """Run to the end: plan or join, do what is left, and seal if all is done."""
        plan = self._plan()
        self.plan8 = plan.plan8
        layout = plan.layout(self.root)
        ledger = read_ledger(self.store, layout)
        presence = Presence(self.store, self.root, plan.plan8, self.owner)
        there = self.store.entries(self.root)
        presence.blame(beats(there, self.root, plan.plan8), ledger.committed)
        deal = self._deal(plan, presence, ledger.committed)
        while True:
            wait_s = deal.step()
            index = deal.take()
            if index is not None:
                self._do(plan, index)
                deal.done(index)
            elif deal.finished():
                break
            else:
                self.clock.sleep(max(wait_s, 0.5))
        if len(read_ledger(self.store, layout).committed) == layout.num_units:
            finish(self.store, layout, plan, self.sink, self.receipts, is_whole=True)
        deal.leave()

    def _plan(self) -> Plan:
        there = self.store.entries(self.root)
        numbers = generations(there, self.root)
        stored = read_plan(self.store, self.root, numbers[-1]) if numbers else None
        names = {below(self.root, entry.uri) for entry in there}
        if stored is not None and not (self.force and manifest_name(stored.plan8) in names):
            return stored
        return store_plan(
            self.store, self.root, make_plan(numbers[-1] + 1 if numbers else self.first, records=self.records)
        )

    def _deal(self, plan: Plan, presence: Presence, committed: frozenset[int]) -> Deal:
        watch = Supersession(self.store, self.root, plan.generation)
        if not self.lease:
            index, count = self.share or (0, 1)
            units = [
                unit for unit in range(len(plan.units)) if unit not in committed and unit % count == index
            ]
            return StaticDeal(units, presence=presence, watch=watch, every_s=BEAT_S, clock=self.clock)
        claims = Claims(
            self.store,
            self.root,
            plan.plan8,
            owner=self.owner,
            num_units=len(plan.units),
            every_s=BEAT_S,
            clock=self.clock,
        )
        return LeaseDeal(
            claims=claims,
            presence=presence,
            watch=watch,
            store=self.store,
            layout=plan.layout(self.root),
            committed=committed,
            every_s=BEAT_S,
            clock=self.clock,
        )

    def _do(self, plan: Plan, index: int) -> None:
        unit = plan.unit(index)
        writer = UnitWriter(
            unit,
            layout=plan.layout(self.root),
            sink=self.sink,
            store=self.store,
            metadata={"batchinfer.plan": plan.plan8, "batchinfer.salt": self.salt},
            apart=Apart(("y",)) if self.apart else None,
        )
        self.compute()
        if self.apart:
            writer.write(*failing_rows_of(unit.start, unit.stop))
        else:
            writer.write(rows_of(unit.start, unit.stop))
        self.receipts[index] = writer.commit()
