"""How many rows failed in units that a run finds committed: read in the background, once it matters."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchinfer.data import PartFile
from batchinfer.engine.commit import describe_part
from batchinfer.engine.sidecar import sidecar_sink
from batchinfer.errors import BatchinferError
from batchinfer.runner.ledger import unit_of
from batchinfer.runner.output import read_control

if TYPE_CHECKING:
    from batchinfer.runner.prepare import Prepared


@dataclass(frozen=True, slots=True)
class Counted:
    """What a committed unit says of itself."""

    unit: int
    rows: int
    failed: int


class Earlier:
    """Counts the rows of the units that a run found committed.

    That costs a look at each, so it is not done unless somebody asks, and nobody waits for it. Where a look
    fails, nothing is heard: the end of the run counts all rows again.
    """

    def __init__(self, prepared: Prepared) -> None:
        self._store = prepared.store
        self._sink = prepared.sink
        self._ledger = prepared.ledger
        self._layout = prepared.plan.layout(prepared.job.output.path)
        self._pool: ThreadPoolExecutor | None = None
        self._found: tuple[Counted, ...] = ()

    @property
    def is_any(self) -> bool:
        """Whether there are such units."""
        return bool(self._ledger.committed)

    def ask(self) -> None:
        """Begin to count, unless that was asked before."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._store.parallel, "earlier")
            threading.Thread(target=self._read, args=(self._pool,), name="earlier", daemon=True).start()

    def heard(self) -> tuple[Counted, ...]:
        """Return what every one of them says; nothing until that is known."""
        return self._found

    def close(self) -> None:
        """End, without waiting for what is not known yet."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, pool: ThreadPoolExecutor) -> None:
        part_of = {unit_of(name): name for name in self._ledger.parts}
        units = sorted(self._ledger.committed)
        try:
            self._found = tuple(pool.map(lambda unit: self._count(unit, part_of.get(unit, "")), units))
        except (BatchinferError, CancelledError, RuntimeError):
            return  # a look failed, or the run has ended meanwhile
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _count(self, unit: int, part: str) -> Counted:
        """Ask a unit's record, its part's stamp or its part's footer; where none of them tells, its rows."""
        if self._layout.records:
            uri = self._layout.uri(self._layout.record_name(unit))
            said = read_control(self._store, uri, "record of a unit", "rows_ok", "rows_error")
            return Counted(unit, said["rows_ok"] + said["rows_error"], said["rows_error"])
        uri = self._layout.uri(part)
        stamp = self._store.stamp(uri)
        if stamped := PartFile.from_stamp(part, stamp):
            apart = 0
            if sidecar := stamp.get("sidecar"):
                apart = describe_part(self._store, self._layout, sidecar, sidecar_sink()).num_rows
            return Counted(unit, stamped.num_rows + apart, stamped.num_errors + apart)
        with self._store.open(uri) as file:
            footer = self._sink.footer(file)
        if "batchinfer.rows_error" in footer:
            failed = int(footer["batchinfer.rows_error"])
            return Counted(unit, int(footer["batchinfer.rows_ok"]) + failed, failed)
        return Counted(unit, *self._sink.count(self._store.read(uri)))
