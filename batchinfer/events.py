"""What the engine and the runner say while they work. They speak; telemetry listens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from batchinfer.data import Receipt


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """The plan stands. `rows_done` were committed by earlier runs."""

    job: str
    run: str
    units_total: int
    units_done: int
    rows_total: int
    rows_done: int
    num_workers: int
    model: str
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFollowed:
    """The plan stands beside the output, and this run is at it.

    `depends_on` is what the fingerprint is made of, `inputs` are (uri, size, version) of every file.
    `settings` has what was chosen for this machine of so many `cores`, and why.
    """

    plan: str
    generation: int
    fingerprint: str
    depends_on: Mapping[str, Any]
    inputs: Sequence[tuple[str, int, str]]
    settings: Mapping[str, tuple[Any, str]]
    cores: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReady:
    """A worker has its model. `load_s` seconds passed since it was started; it computes `lanes` batches
    at once. `settings` are those that waited for the model, in the words of the job file."""

    worker: int
    device: str
    load_s: float
    pid: int
    lanes: int = 1
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFinished:
    """One forward pass. Tokens are zero where the input has no ragged column."""

    worker: int
    rows: int
    compute_s: float
    real_tokens: int
    padded_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StagesTimed:
    """What a worker's device did since the worker began, in seconds by stage (of all lanes together), and
    its resident memory at most."""

    worker: int
    seconds: Mapping[str, float]
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EfficiencyMeasured:
    """How long a worker's rows took from the first batch to the last commit, in seconds, and how long
    its model would have taken for them alone (`run --measure`)."""

    worker: int
    rows: int
    seconds: float
    model_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitCommitted:
    """A unit's output exists for readers."""

    worker: int
    receipt: Receipt


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerExited:
    """A worker is gone, on request (`code` 0) or not."""

    worker: int
    code: int
    restarts: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSaid:
    """A line that a worker (a library in it, or the user's code) printed."""

    worker: int
    line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned:
    """Something that a person should know and that does not stop the run. `code` is stable."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished:
    """The last word. `complete` says that every unit of the plan is committed.

    `rows_ok`, `rows_error` and `rows_filtered` are those of the whole output, earlier runs included;
    None where nobody has counted it. `error` says what ended the run early, `manifest_sha256` is that of
    the manifest of a complete output.
    """

    exit_code: int
    seconds: float
    complete: bool
    rows_ok: int | None = None
    rows_error: int | None = None
    rows_filtered: int | None = None
    error: str | None = None
    manifest_sha256: str | None = None


Event: TypeAlias = (
    RunStarted
    | PlanFollowed
    | WorkerReady
    | BatchFinished
    | StagesTimed
    | EfficiencyMeasured
    | UnitCommitted
    | WorkerExited
    | WorkerSaid
    | Warned
    | RunFinished
)
