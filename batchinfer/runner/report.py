"""What a run comes back with."""

from __future__ import annotations

from dataclasses import dataclass, field

from batchinfer.data import RowError


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """What the output holds now, and what this run did for it.

    `rows_in == rows_ok + rows_error + rows_filtered`, over the whole output. `rows_reused` of
    `rows_in` were committed by earlier runs, or by other processes. Where these still have `units_left` to
    do, the rows are those that this run has done, and there is no manifest yet.
    """

    job: str
    run: str
    plan: str
    output: str
    exit_code: int
    rows_in: int
    rows_ok: int
    rows_error: int
    rows_filtered: int
    rows_reused: int
    units_total: int
    units_reused: int
    seconds: float
    units_left: int = 0
    manifest_sha256: str | None = None
    errors: tuple[RowError, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)
    forecast: dict[str, float | bool] | None = None
    """What `plan --sample` foretold of this run, in seconds, and what came (`actual`, `inside`)."""

    @property
    def rows_per_second(self) -> float:
        """Rows that this run did per second of wall time, start-up included."""
        return (self.rows_in - self.rows_reused) / self.seconds if self.seconds else 0.0
