"""Log lines: what each says in text, and in JSON under names that stay.

A record never holds what a row holds: rows are named by their source and number.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from batchinfer.events import (
    Event,
    Listening,
    RunFailed,
    RunFinished,
    RunStarted,
    SettingsChosen,
    UnitCommitted,
    Warned,
    WorkerExited,
    WorkerReady,
    WorkerSaid,
)
from batchinfer.redact import redact
from batchinfer.telemetry import figures
from batchinfer.telemetry.advice import advise

if TYPE_CHECKING:
    from batchinfer.telemetry.devices import Reading
    from batchinfer.telemetry.snapshot import Snapshot, WorkerState

_SHOWN_WAIT = 0.01


EVENT_NAMES = (
    "run_started",
    "settings",
    "worker_ready",
    "worker_said",
    "worker_exited",
    "unit_committed",
    "progress",
    "warning",
    "error",
    "listening",
    "run_finished",
    "lines_dropped",
)
"""What the `event` of a line may be."""


@dataclass(frozen=True, slots=True)
class Record:
    """One line: `event` and the keys of `fields` are stable names. `text`, if any, is what the text
    form has instead."""

    event: str
    fields: Mapping[str, Any]
    level: Literal["info", "warning", "error"] = "info"
    text: Mapping[str, Any] = field(default_factory=dict)


def as_json(record: Record, *, job: str, run: str, wall_time: float) -> str:
    """Return one JSON object, without a line break in it."""
    moment = dt.datetime.fromtimestamp(wall_time, dt.UTC)
    head = {
        "timestamp": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.level,
        "event": record.event,
        "job": job,
        "run": run,
    }
    return json.dumps(_redacted({**head, **record.fields}), ensure_ascii=True, allow_nan=False)


def _redacted(value: Any) -> Any:
    """Take the secrets out of every text in a value."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: _redacted(item) for key, item in value.items()}
    return [_redacted(item) for item in value] if isinstance(value, list) else value


def as_text(record: Record, *, elapsed_s: float) -> str:
    """Return `t=00:03:32 key=value ...`; values with spaces are in quotes."""
    pairs = dict(record.text or {"event": record.event, **record.fields})
    body = " ".join(f"{key}={_word(value)}" for key, value in pairs.items() if value is not None)
    return f"t={figures.clock(elapsed_s)} {body}"


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = figures.plain(f"{value:.4g}" if isinstance(value, float) else redact(str(value)))
    return json.dumps(text, ensure_ascii=False) if not text or any(char in text for char in ' "=\\') else text


def of_event(event: Event, snapshot: Snapshot | None = None) -> Record:  # noqa: PLR0911 - one for each event
    """Return the line for an event other than a batch or a commit."""
    match event:
        case RunStarted():
            return _run_started(event)
        case WorkerReady():
            fields = {"worker": event.worker, "device": event.device, "load_s": round(event.load_s, 2)}
            return Record("worker_ready", {**fields, "pid": event.pid})
        case WorkerExited():
            level: Literal["info", "warning"] = "info" if event.code == 0 else "warning"
            fields = {"worker": event.worker, "code": event.code, "restarts": event.restarts}
            return Record("worker_exited", fields, level)
        case WorkerSaid():
            # Before it is cut: half of a URL cannot be taken apart.
            line = figures.plain(redact(event.line))
            return Record("worker_said", {"worker": event.worker, "line": line})
        case Warned():
            fields = {"code": event.code, "message": event.message}
            return Record(
                "warning",
                fields,
                "warning",
                {"warning": event.code, "message": " ".join(event.message.split())},
            )
        case RunFailed():
            fields = {"kind": event.kind, "message": event.message, "where": event.where}
            return Record("error", {**fields, "hint": event.hint}, "error")
        case Listening():
            return Record("listening", {"url": event.url})
        case RunFinished():
            assert snapshot is not None
            return _run_finished(event, snapshot)
        case _:
            raise AssertionError(f"no line for {type(event).__name__}")


def settings(event: SettingsChosen) -> Record:
    """Return what the run settled on."""
    return Record(
        "settings", {"settings": dict(event.settings)}, text={"event": "settings", **event.settings}
    )


def unit_committed(event: UnitCommitted, *, device: str, seconds: float) -> Record:
    """Return the line for a unit, of which the worker's device took so many seconds."""
    receipt = event.receipt
    return Record(
        "unit_committed",
        {
            "unit": receipt.unit,
            "worker": event.worker,
            "device": device,
            "seconds": round(seconds, 4),
            "rows_read": receipt.rows_read,
            "rows_ok": receipt.rows_ok,
            "rows_error": receipt.rows_error,
            "rows_filtered": receipt.rows_filtered,
            "errors": dict(receipt.error_codes),
            "num_bytes": sum(part.num_bytes for part in receipt.parts),
            "won": receipt.won,
        },
    )


def progress(snapshot: Snapshot, readings: Sequence[Reading]) -> Record:
    """Return how far the run is."""
    used = [r.sample.utilization_ratio for r in readings if r.sample.utilization_ratio is not None]
    gpu_ratio = sum(used) / len(used) if used else None
    running = sum(worker.state == "running" for worker in snapshot.workers)
    least, most = snapshot.eta_range_s or (None, None)
    fields = {
        "rows_settled": snapshot.rows_settled,
        "rows_total": snapshot.rows_total,
        "rows_reused": snapshot.rows_reused,
        "rows_of_others": snapshot.rows_of_others,
        "rows_ok": snapshot.rows_ok,
        "rows_error": snapshot.rows_error,
        "rows_filtered": snapshot.rows_filtered,
        "rows_per_second": round(snapshot.rows_per_second, 3),
        "samples_per_second": round(snapshot.samples_per_second, 3),
        "tokens_per_second": round(snapshot.tokens_per_second, 3),
        "eta_s": _round(snapshot.eta_s, 1),
        "eta_least_s": _round(least, 1),
        "eta_most_s": _round(most, 1),
        "units_committed": snapshot.units_done,
        "units_total": snapshot.units_total,
        "workers_running": running,
        "busy_ratio": _round(snapshot.busy_ratio, 4),
        "gpu_utilization_ratio": _round(gpu_ratio, 4),
        "last_commit_s": _round(snapshot.last_commit_s, 1),
        "errors_allowed": snapshot.errors_allowed,
        "splits": snapshot.num_splits,
        "restarts": snapshot.num_restarts,
        "cost": _round(snapshot.cost, 4),
        "energy_joules": _round(snapshot.energy_joules, 1),
        "workers": [_worker(worker) for worker in snapshot.workers],
        "gpus": [_gpu(reading) for reading in readings],
    }
    text = {
        "rows": f"{snapshot.rows_settled}/{snapshot.rows_total}",
        "pct": figures.percent(snapshot.settled_ratio).removesuffix(" %"),
        "rate": figures.rate(snapshot.rows_per_second).replace(" ", ""),
        "eta": None if snapshot.eta_s is None else f"{snapshot.eta_s:.0f}s",
        "eta_range": None if least is None or most is None else f"{least:.0f}..{most:.0f}s",
        "ok": snapshot.rows_ok,
        "err": snapshot.rows_error,
        "units": f"{snapshot.units_done}/{snapshot.units_total}",
        "workers": f"{running}/{len(snapshot.workers)}",
        "busy": None if snapshot.busy_ratio is None else f"{snapshot.busy_ratio * 100:.0f}",
        "waits": _longest_wait(snapshot),
        "gpu_util": None if gpu_ratio is None else f"{gpu_ratio * 100:.0f}",
        "splits": snapshot.num_splits or None,
        "restarts": snapshot.num_restarts or None,
        "cost": None if snapshot.cost is None else figures.money(snapshot.cost),
        "ckpt": None if snapshot.last_commit_s is None else figures.clock(snapshot.last_commit_s),
    }
    return Record("progress", fields, text=text)


def _longest_wait(snapshot: Snapshot) -> str | None:
    """Return `read:41`: what the devices wait for most, and the share of their time in percent."""
    waits = snapshot.waits
    stage = max(waits, key=lambda name: waits[name], default="")
    return f"{stage}:{waits[stage] * 100:.0f}" if waits.get(stage, 0.0) >= _SHOWN_WAIT else None


def _worker(worker: WorkerState) -> dict[str, Any]:
    return {
        "worker": worker.index,
        "device": worker.device,
        "state": worker.state,
        "samples_per_second": round(worker.samples_per_second, 3),
        "busy_ratio": round(worker.busy_ratio, 4),
        "waits": {stage: round(share, 4) for stage, share in worker.waits.items()},
        "batch_rows": worker.batch_rows,
        "peak_bytes": worker.peak_bytes,
        "restarts": worker.deaths,
    }


def _gpu(reading: Reading) -> dict[str, Any]:
    """Return what a GPU tells; what it does not is left out."""
    told = {key: value for key, value in asdict(reading.sample).items() if value is not None}
    if "throttled_by" in told:
        told["throttled_by"] = list(told["throttled_by"])
    named = {"gpu": reading.gpu.index, "uuid": reading.gpu.uuid, "name": reading.gpu.name}
    return {**named, "memory_total_bytes": reading.gpu.memory_total_bytes, **told}


def _run_started(event: RunStarted) -> Record:
    return Record(
        "run_started",
        {
            "model": event.model,
            "output": event.output,
            "share": event.share or None,
            "rows_total": event.rows_total,
            "rows_reused": event.rows_done,
            "units_total": event.units_total,
            "units_reused": event.units_done,
            "workers": event.num_workers,
            "devices": list(event.devices),
        },
        text={
            "event": "run_started",
            "job": event.job,
            "run": event.run,
            "model": figures.model_name(event.model) or None,
            "output": event.output,
            "share": event.share or None,
            "rows": event.rows_total,
            "reused": event.rows_done,
            "units": event.units_total,
            "workers": event.num_workers,
        },
    )


def _run_finished(event: RunFinished, snapshot: Snapshot) -> Record:
    samples = [
        {
            "source": error.source,
            "row": error.row,
            "stage": error.stage,
            "code": str(error.code),
            "message": error.message,
        }
        for error in snapshot.error_samples
    ]
    whole = event.complete and event.rows_ok is not None
    counts = {
        "rows_ok": event.rows_ok if whole else snapshot.rows_ok,
        "rows_error": event.rows_error if whole else snapshot.rows_error,
        "rows_filtered": event.rows_filtered if whole else snapshot.rows_filtered,
    }
    short = {
        "exit_code": event.exit_code,
        "complete": event.complete,
        "seconds": round(event.seconds, 2),
        "rows_total": snapshot.rows_total,
        "rows_committed": snapshot.rows_committed,
        "rows_reused": snapshot.rows_reused,
        "rows_of_others": snapshot.rows_of_others,
        **counts,
    }
    joules = snapshot.energy_joules
    kwh = None if joules is None else joules / figures.JOULES_PER_KWH
    more = {
        "rows_per_second": round(snapshot.mean_rows_per_second, 3),
        "steady_rows_per_second": round(snapshot.steady_rate, 3) or None,
        "model_rows_per_second": round(snapshot.model_rate, 3) or None,
        "padding_ratio": _round(snapshot.padding_ratio, 4),
        "advice": list(advise(snapshot)),
        "start_s": _round(snapshot.start_s, 3),
        "stage_seconds": {stage: round(seconds, 4) for stage, seconds in snapshot.stage_seconds.items()},
        "peak_bytes": snapshot.peak_bytes or None,
        "splits": snapshot.num_splits,
        "restarts": snapshot.num_restarts,
        "errors_allowed": snapshot.errors_allowed,
        "device_seconds": round(snapshot.device_hours * 3600, 2),
        "cost": _round(snapshot.cost, 4),
        "energy_joules": _round(joules, 1),
        "energy_kwh": _round(kwh, 6),
        "output": snapshot.output,
        "errors": dict(snapshot.errors),
        "retries": dict(snapshot.retries),
        "error_samples": samples,
    }
    level: Literal["info", "error"] = "info" if event.exit_code == 0 else "error"
    rate = figures.rate(snapshot.mean_rows_per_second).replace(" ", "")
    others = snapshot.rows_of_others or None
    text = {"event": "run_finished", **short, "rows_of_others": others, "rate": rate}
    return Record("run_finished", {**short, **more}, level, text)


def _round(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
