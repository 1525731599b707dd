"""Log lines: what each says in text, and in JSON under names that stay."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from batchinfer.events import Event, RunFinished, RunStarted, Warned, WorkerExited, WorkerReady, WorkerSaid
from batchinfer.redact import redact
from batchinfer.telemetry import figures
from batchinfer.telemetry.advice import advise

if TYPE_CHECKING:
    from batchinfer.telemetry.devices import Reading
    from batchinfer.telemetry.snapshot import Snapshot


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


def of_event(event: Event, snapshot: Snapshot | None = None) -> Record:
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
        case RunFinished():
            assert snapshot is not None
            return _run_finished(event, snapshot)
        case _:
            raise AssertionError(f"no line for {type(event).__name__}")


def progress(snapshot: Snapshot, readings: Sequence[Reading]) -> Record:
    """Return how far the run is."""
    used = [r.sample.utilization_ratio for r in readings if r.sample.utilization_ratio is not None]
    gpu_ratio = sum(used) / len(used) if used else None
    running = sum(worker.state == "running" for worker in snapshot.workers)
    fields = {
        "rows_settled": snapshot.rows_settled,
        "rows_total": snapshot.rows_total,
        "rows_reused": snapshot.rows_reused,
        "rows_ok": snapshot.rows_ok,
        "rows_error": snapshot.rows_error,
        "rows_filtered": snapshot.rows_filtered,
        "rows_per_second": round(snapshot.rows_per_second, 3),
        "samples_per_second": round(snapshot.samples_per_second, 3),
        "tokens_per_second": round(snapshot.tokens_per_second, 3),
        "eta_s": _round(snapshot.eta_s, 1),
        "units_committed": snapshot.units_reused + snapshot.units_committed,
        "units_total": snapshot.units_total,
        "workers_running": running,
        "busy_ratio": _round(snapshot.busy_ratio, 4),
        "gpu_utilization_ratio": _round(gpu_ratio, 4),
        "last_commit_s": _round(snapshot.last_commit_s, 1),
    }
    text = {
        "rows": f"{snapshot.rows_settled}/{snapshot.rows_total}",
        "pct": figures.percent(snapshot.settled_ratio).removesuffix(" %"),
        "rate": figures.rate(snapshot.rows_per_second).replace(" ", ""),
        "eta": None if snapshot.eta_s is None else f"{snapshot.eta_s:.0f}s",
        "ok": snapshot.rows_ok,
        "err": snapshot.rows_error,
        "units": f"{snapshot.units_reused + snapshot.units_committed}/{snapshot.units_total}",
        "workers": f"{running}/{len(snapshot.workers)}",
        "busy": None if snapshot.busy_ratio is None else f"{snapshot.busy_ratio * 100:.0f}",
        "gpu_util": None if gpu_ratio is None else f"{gpu_ratio * 100:.0f}",
        "ckpt": None if snapshot.last_commit_s is None else figures.clock(snapshot.last_commit_s),
    }
    return Record("progress", fields, text=text)


def _run_started(event: RunStarted) -> Record:
    return Record(
        "run_started",
        {
            "model": event.model,
            "output": event.output,
            "rows_total": event.rows_total,
            "rows_reused": event.rows_done,
            "units_total": event.units_total,
            "units_reused": event.units_done,
            "workers": event.num_workers,
        },
        text={
            "event": "run_started",
            "job": event.job,
            "run": event.run,
            "model": figures.model_name(event.model) or None,
            "output": event.output,
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
        **counts,
    }
    more = {
        "rows_per_second": round(snapshot.mean_rows_per_second, 3),
        "steady_rows_per_second": round(snapshot.steady_rate, 3) or None,
        "model_rows_per_second": round(snapshot.model_rate, 3) or None,
        "padding_ratio": _round(snapshot.padding_ratio, 4),
        "advice": list(advise(snapshot)),
        "stage_seconds": {stage: round(seconds, 4) for stage, seconds in snapshot.stage_seconds.items()},
        "peak_bytes": snapshot.peak_bytes or None,
        "output": snapshot.output,
        "errors": dict(snapshot.errors),
        "error_samples": samples,
    }
    level: Literal["info", "error"] = "info" if event.exit_code == 0 else "error"
    rate = figures.rate(snapshot.mean_rows_per_second).replace(" ", "")
    text = {"event": "run_finished", **short, "rate": rate}
    return Record("run_finished", {**short, **more}, level, text)


def _round(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
