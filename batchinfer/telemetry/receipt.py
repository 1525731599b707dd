"""The receipt of a run: what it was told, what it did, on what. One JSON object without a secret or a row.

Its keys are described in `schemas/run-receipt.schema.json`.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from batchinfer.errors import BatchinferError
from batchinfer.redact import redact
from batchinfer.telemetry import environment
from batchinfer.telemetry.advice import advise, bottleneck

if TYPE_CHECKING:
    from batchinfer.config import Job
    from batchinfer.events import RunFinished
    from batchinfer.storage import Store
    from batchinfer.telemetry.recording import Recording
    from batchinfer.telemetry.snapshot import Snapshot

FORMAT = 1
"""Version of the receipt."""

_LISTED = 100


def folder(root: str) -> str:
    """Return where the receipts of an output are."""
    return f"{root.rstrip('/')}/_batchinfer/runs"


def receipt_of(job: Job, recording: Recording, snapshot: Snapshot) -> dict[str, Any]:
    """Return the receipt of a run that has ended, or of one that is at its plan and has not."""
    plan, finished = recording.plan, snapshot.finished
    assert plan is not None
    settings = {
        name: {"value": value, "why": "as asked" if _written(job, name) else why}
        for name, (value, why) in recording.settings.items()
    }
    found = {
        "format": FORMAT,
        "run": snapshot.run,
        "job": job.name,
        "started_at": _time(recording.started_at),
        "finished_at": _time(recording.started_at + finished.seconds) if finished else None,
        "seconds": round(snapshot.elapsed_s, 3),
        "start_s": None if snapshot.start_s is None else round(snapshot.start_s, 3),
        "exit_code": int(finished.exit_code) if finished else None,
        "complete": finished is not None and finished.complete,
        "error": finished.error if finished else None,
        "output": job.output.path,
        "plan": {
            "id": plan.plan,
            "generation": plan.generation,
            "fingerprint": plan.fingerprint,
            "manifest": f"_batchinfer/{plan.plan}/manifest.json",
            "manifest_sha256": finished.manifest_sha256 if finished else None,
        },
        "model": {
            "backend": job.model.backend,
            "path": job.model.path,
            "entry": job.model.entry,
            "version": job.model.version,
            "content": (plan.depends_on.get("model") or {}).get("path"),
        },
        "inputs": _inputs(plan.inputs),
        "document": job.document,
        "settings": settings,
        "versions": environment.versions(),
        "machine": {
            **environment.machine(),
            "gpus": [
                {"index": index, "name": one.gpu.name, "memory_bytes": one.gpu.memory_total_bytes}
                for index, one in sorted(recording.gpus.items())
            ],
        },
        **_counts(snapshot, finished),
        **_speed(recording, snapshot),
        **_price(snapshot),
        "forecast": _forecast(finished),
        "bottleneck": bottleneck(snapshot),
        "advice": list(advise(snapshot)),
        "warnings": [
            {"at_s": round(at, 3), "code": code, "message": message} for at, code, message in recording.notes
        ],
    }
    return dict(redacted(found))


def as_json(receipt: Mapping[str, Any]) -> bytes:
    """Return a receipt as it is stored."""
    return json.dumps(receipt, indent=1, allow_nan=False, default=str).encode()


def latest(store: Store, root: str, count: int, *, but: str) -> list[dict[str, Any]]:
    """Read the newest receipts beside an output, the oldest of them first, without that of the run `but`. One
    that cannot be read, or is of another release's format, is left out."""
    entries = [entry for entry in store.entries(folder(root)) if entry.uri.endswith(".json")]
    entries = [entry for entry in entries if not entry.uri.endswith(f"/{but}.json")]
    found = []
    for entry in sorted(entries, key=lambda entry: entry.modified)[-count:]:
        try:
            receipt = json.loads(store.read(entry.uri))
        except (ValueError, RecursionError, BatchinferError):
            continue
        if isinstance(receipt, dict) and receipt.get("format") == FORMAT:
            found.append(receipt)
    return found


def redacted(value: Any) -> Any:
    """Take the secrets out of every text in a value."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {str(key): redacted(item) for key, item in value.items()}
    return [redacted(item) for item in value] if isinstance(value, (list, tuple)) else value


def _written(job: Job, name: str) -> bool:
    """Tell whether a key stands in the job file, with a value of its own."""
    section, _, key = name.partition(".")
    value = (job.document.get(section) or {}).get(key)
    return value is not None and value != "auto"


def _time(unix_s: float) -> str:
    moment = dt.datetime.fromtimestamp(unix_s, dt.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _forecast(finished: RunFinished | None) -> dict[str, float] | None:
    """Return what was foretold, and what came."""
    if finished is None or finished.forecast is None:
        return None
    return {name: round(finished.forecast[name], 3) for name in ("low", "expected", "high", "actual")}


def _inputs(inputs: Sequence[tuple[str, int, str]]) -> dict[str, Any]:
    """Describe the input: every file where they are few, else the first, and a digest of all."""
    digest = hashlib.sha256(json.dumps([list(one) for one in inputs], separators=(",", ":")).encode())
    return {
        "files": len(inputs),
        "bytes": sum(size for _, size, _ in inputs),
        "sha256": digest.hexdigest(),
        "listed": [
            {"uri": uri, "bytes": size, "version": version} for uri, size, version in inputs[:_LISTED]
        ],
    }


def _counts(snapshot: Snapshot, finished: RunFinished | None) -> dict[str, Any]:
    whole = None
    if finished is not None and finished.rows_ok is not None:
        whole = {
            "ok": finished.rows_ok,
            "error": finished.rows_error,
            "filtered": finished.rows_filtered,
        }
    return {
        "share": snapshot.share or None,
        "rows": {
            "total": snapshot.rows_total,
            "reused": snapshot.rows_reused,
            "of_others": snapshot.rows_of_others,
            "ok": snapshot.rows_ok,
            "error": snapshot.rows_error,
            "filtered": snapshot.rows_filtered,
        },
        "output_rows": whole,
        "units": {
            "total": snapshot.units_total,
            "reused": snapshot.units_reused,
            "of_others": snapshot.units_of_others,
            "committed": snapshot.units_committed,
        },
        "errors": dict(snapshot.errors),
        "error_samples": [
            {
                "source": error.source,
                "row": error.row,
                "stage": error.stage,
                "code": str(error.code),
                "message": error.message,
            }
            for error in snapshot.error_samples
        ],
    }


def _speed(recording: Recording, snapshot: Snapshot) -> dict[str, Any]:
    spread = recording.batch_seconds
    return {
        "batches": {
            "count": snapshot.num_batches,
            "rows": snapshot.num_samples,
            "real_tokens": snapshot.real_tokens,
            "padded_tokens": snapshot.padded_tokens,
            "seconds": {
                "p50": round(spread.percentile(0.5), 6),
                "p90": round(spread.percentile(0.9), 6),
                "p99": round(spread.percentile(0.99), 6),
                "max": round(spread.most, 6),
                "sum": round(spread.total, 6),
            },
        },
        "stage_seconds": {stage: round(value, 4) for stage, value in snapshot.stage_seconds.items()},
        "workers": [
            {
                "index": worker.index,
                "device": worker.device,
                "load_s": round(worker.load_s, 3),
                "deaths": worker.deaths,
                "units": worker.units_committed,
                "rows": worker.num_samples,
                "busy_ratio": round(worker.mean_busy_ratio, 4),
                "peak_bytes": worker.peak_bytes,
                "stage_seconds": {stage: round(value, 4) for stage, value in worker.stage_seconds.items()},
            }
            for worker in snapshot.workers
        ],
        "rows_per_second": round(snapshot.mean_rows_per_second, 3),
        "steady_rows_per_second": round(snapshot.steady_rate, 3) or None,
        "model_rows_per_second": round(snapshot.model_rate, 3) or None,
        "efficiency": round(snapshot.steady_rate / snapshot.model_rate, 4) if snapshot.model_rate else None,
    }


def _price(snapshot: Snapshot) -> dict[str, Any]:
    joules, cost = snapshot.energy_joules, snapshot.cost
    return {
        "device_hours": round(snapshot.device_hours, 6),
        "cost": None if cost is None else round(cost, 6),
        "energy_joules": None if joules is None else round(joules, 1),
    }
