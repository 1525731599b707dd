"""A run at one moment, in numbers. Everything that is shown or pushed is made from one of these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from batchinfer.data import RowError
    from batchinfer.events import RunFinished


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """One worker. `busy_ratio` is the share of the last seconds that its device spent computing."""

    index: int
    device: str
    state: Literal["starting", "running", "restarting", "gone"]
    samples_per_second: float = 0.0
    busy_ratio: float = 0.0
    mean_busy_ratio: float = 0.0
    """The share of all the time since it was ready."""

    load_s: float = 0.0
    deaths: int = 0
    batch_rows: int = 0
    """Rows of a usual one of its last batches."""

    waits: Mapping[str, float] = field(default_factory=dict)
    """The share of the last seconds that its device waited, by what it waited for."""

    peak_bytes: int = 0
    """Its resident memory at most."""

    lanes: int = 1
    num_samples: int = 0
    units_committed: int = 0
    stage_seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What a run has done so far.

    Rows of the input: `rows_settled` of `rows_total` have their place in the output or wait for
    their unit's commit; `rows_reused` of them were committed by earlier runs, and `rows_of_others` by other
    processes since this run began. `rows_ok`, `rows_error` and `rows_filtered` are committed by this run.
    Where processes share an output from the start, all of it is about this one's `share`.
    Samples are rows that went through the model.
    """

    job: str = ""
    run: str = ""
    model: str = ""
    output: str = ""
    share: str = ""
    started: bool = False
    elapsed_s: float = 0.0
    start_s: float | None = None
    """Of these, the seconds until the first worker was ready, planning and loading the model; None before."""

    rows_total: int = 0
    rows_reused: int = 0
    rows_of_others: int = 0
    rows_settled: int = 0
    rows_ok: int = 0
    rows_error: int = 0
    rows_filtered: int = 0
    units_total: int = 0
    units_reused: int = 0
    units_of_others: int = 0
    units_committed: int = 0
    num_batches: int = 0
    num_splits: int = 0
    """Batches that were computed in pieces, because they failed or did not fit."""

    batch_seconds: tuple[tuple[str, int], ...] = ()
    batch_seconds_sum: float = 0.0
    num_samples: int = 0
    real_tokens: int = 0
    padded_tokens: int = 0
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    """What the devices did: seconds of computing, and of waiting by what they waited for."""

    peak_bytes: int = 0
    """Resident memory of the workers at most, each at its own peak."""

    steady_rate: float = 0.0
    model_rate: float = 0.0
    """Rows per second from the first batch to the last commit, and of the model alone; 0 if not measured."""

    rows_per_second: float = 0.0
    mean_rows_per_second: float = 0.0
    samples_per_second: float = 0.0
    tokens_per_second: float = 0.0
    eta_s: float | None = None
    eta_range_s: tuple[float, float] | None = None
    """The least and the most seconds that are likely left."""

    last_commit_s: float | None = None
    workers: tuple[WorkerState, ...] = ()
    errors: Mapping[str, int] = field(default_factory=dict)
    """Failed rows by code."""

    retries: Mapping[str, int] = field(default_factory=dict)
    """Calls that were made again, by why they had failed."""

    error_samples: tuple[RowError, ...] = ()
    num_warnings: int = 0
    devices: tuple[str, ...] = ()
    errors_allowed: int | None = None
    """Rows of the whole input that may fail."""

    price_per_device_hour: float | None = None
    max_cost: float | None = None
    energy_joules: float | None = None
    """What the GPUs took since the start, whoever used them; None where one of them does not tell."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What was chosen for this run, by the name of its key; numbers and texts."""

    cores: int = 0
    report: str = ""
    """Where the report of the run is, once it is written."""

    finished: RunFinished | None = None

    @property
    def rows_committed(self) -> int:
        """Rows of the input that are settled for good, by whomever."""
        mine = self.rows_ok + self.rows_error + self.rows_filtered
        return self.rows_reused + self.rows_of_others + mine

    @property
    def units_done(self) -> int:
        """Units that are committed, by whomever."""
        return self.units_reused + self.units_of_others + self.units_committed

    @property
    def settled_ratio(self) -> float:
        """How far the run is, from 0 to 1."""
        return self.rows_settled / self.rows_total if self.rows_total else 1.0

    @property
    def error_ratio(self) -> float:
        """Failed rows among those that this run wrote."""
        written = self.rows_ok + self.rows_error
        return self.rows_error / written if written else 0.0

    @property
    def device_hours(self) -> float:
        """Devices that the run was given times its wall time so far."""
        return len(self.devices) * self.elapsed_s / 3600

    @property
    def cost(self) -> float | None:
        """What the run's devices cost so far; None without a price."""
        price = self.price_per_device_hour
        return None if price is None else price * self.device_hours

    @property
    def num_restarts(self) -> int:
        """How often a worker died and another took its place."""
        return sum(worker.deaths for worker in self.workers)

    @property
    def padding_ratio(self) -> float | None:
        """The share of the computed tokens that were only padding; None where rows have no tokens."""
        return 1 - self.real_tokens / self.padded_tokens if self.padded_tokens else None

    @property
    def waits(self) -> dict[str, float]:
        """The share of the last seconds that the devices waited, on average, by what they waited for."""
        running = [worker for worker in self.workers if worker.state == "running"]
        total: Counter[str] = Counter()
        for worker in running:
            total.update(worker.waits)
        return {stage: share / len(running) for stage, share in total.items()}

    @property
    def mean_busy_ratio(self) -> float | None:
        """How much of the time the workers' devices computed, on average; None without a worker."""
        ready = [worker.mean_busy_ratio for worker in self.workers if worker.device]
        return sum(ready) / len(ready) if ready else None

    @property
    def busy_ratio(self) -> float | None:
        """The same, over the last seconds, of the workers that run."""
        running = [worker.busy_ratio for worker in self.workers if worker.state == "running"]
        return sum(running) / len(running) if running else None
