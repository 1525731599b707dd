"""What the engine and the runner say while they work. They speak; telemetry listens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from batchinfer.data import Receipt
from batchinfer.errors import BatchinferError, ExitCode

_KEYBOARD = 130
"""What Ctrl-C ends a command with where no run could come to an orderly end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """The plan stands. `rows_done` were committed by earlier runs.

    Where processes share an output, units and rows are those of this one's `share` (`0/3`), or all of them
    where units are claimed as they are needed (`is_claimed`): then OthersCommitted tells what others did.
    `devices` are those that this process computes on, each once. `errors_allowed` is how many rows may fail,
    in all runs together; the price of an hour of one device and the cost that ends the run are the job's.
    """

    job: str
    run: str
    units_total: int
    units_done: int
    rows_total: int
    rows_done: int
    num_workers: int
    model: str
    output: str
    devices: tuple[str, ...] = ()
    errors_allowed: int | None = None
    price_per_device_hour: float | None = None
    max_cost: float | None = None
    share: str = ""
    is_claimed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OthersCommitted:
    """Other processes have committed so many units more, of those that were not when this run began."""

    units: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsChosen:
    """What the job left open, and what became of it: by key, a value and why (`256 (tuned 2026-12-01)`)."""

    settings: Mapping[str, str]


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
    """One forward pass. Tokens are zero where the input has no ragged column. `split`: it failed, or did not
    fit, and was computed in pieces."""

    worker: int
    rows: int
    compute_s: float
    real_tokens: int
    padded_tokens: int
    split: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StagesTimed:
    """What a worker's device did since the worker began, in seconds by stage (of all lanes together), and
    its resident memory at most; and the bytes that wait in its queues."""

    worker: int
    seconds: Mapping[str, float]
    peak_bytes: int
    queue_bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """Calls that were tried again since the last such event, by why they had failed: `timeout`, `connection`,
    `throttled`, `server` or `busy`."""

    worker: int
    reasons: Mapping[str, int]


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
class RunFailed:
    """What ended a run early, or before it began: then no RunStarted came before it, and no RunFinished
    follows. `kind` is stable, `seconds` passed since the start of the run, which is called `run`."""

    kind: str
    message: str
    where: str | None = None
    hint: str | None = None
    exit_code: int = ExitCode.CRASH
    seconds: float = 0.0
    run: str = ""

    @classmethod
    def of(cls, error: BaseException, *, run: str = "", seconds: float = 0.0) -> RunFailed:
        """Return what there is to say of an error."""
        told: dict[str, Any] = {"kind": "bug", "message": type(error).__name__}
        if isinstance(error, BatchinferError):
            told = {"kind": error.kind, "message": error.message, "where": error.where, "hint": error.hint}
            told["exit_code"] = error.exit_code
        elif isinstance(error, KeyboardInterrupt):
            told = {"kind": "interrupted", "message": "interrupted from the keyboard"}
            told["exit_code"] = _KEYBOARD
        return cls(**told, run=run, seconds=seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """The run can be asked for its metrics, at `/metrics` under this URL."""

    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished:
    """The last word. `complete` says that every unit of the plan is committed.

    `rows_ok`, `rows_error` and `rows_filtered` are those of the whole output, earlier runs included;
    None where nobody has counted it. `error` says what ended the run early, `manifest_sha256` is that of
    the manifest of a complete output. `forecast` are the seconds that were foretold of this run, `low`,
    `expected` and `high`, and the `actual` ones; None where nothing was.
    """

    exit_code: int
    seconds: float
    complete: bool
    rows_ok: int | None = None
    rows_error: int | None = None
    rows_filtered: int | None = None
    error: str | None = None
    manifest_sha256: str | None = None
    forecast: Mapping[str, float] | None = None


Event: TypeAlias = (
    RunStarted
    | OthersCommitted
    | SettingsChosen
    | PlanFollowed
    | WorkerReady
    | BatchFinished
    | StagesTimed
    | EfficiencyMeasured
    | Retried
    | UnitCommitted
    | WorkerExited
    | WorkerSaid
    | Warned
    | RunFailed
    | Listening
    | RunFinished
)
