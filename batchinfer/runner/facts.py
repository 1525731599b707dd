"""What a run tells of itself for those who look at it later: what it follows, and what ended it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchinfer.config import usable_cores
from batchinfer.errors import BatchinferError
from batchinfer.events import PlanFollowed

if TYPE_CHECKING:
    from batchinfer.config import Job
    from batchinfer.runner.prepare import Prepared

_TELLING = (
    ("checkpoint", "unit_rows"),
    ("model", "precision"),
    ("output", "compression"),
    ("limits", "price_per_device_hour"),
)
"""Keys that decide how fast a run is, or what it costs, and that nobody resolves."""


def plan_followed(prepared: Prepared) -> PlanFollowed:
    """Describe the plan that a run follows, and the settings that were chosen for it."""
    plan, job = prepared.plan, prepared.job
    return PlanFollowed(
        plan=plan.plan8,
        generation=plan.generation,
        fingerprint=plan.fingerprint,
        depends_on=plan.parts,
        inputs=plan.inputs,
        settings={**job.resolved, **_told(job)},
        cores=usable_cores(),
    )


def _told(job: Job) -> dict[str, tuple[Any, str]]:
    found: dict[str, tuple[Any, str]] = {}
    for section, key in _TELLING:
        value = getattr(getattr(job, section), key, None)
        if value is not None:
            written = (job.document.get(section) or {}).get(key) is not None
            found[f"{section}.{key}"] = (value, "as asked" if written else "by default")
    return found


def told(error: BaseException) -> str:
    """Say what ended a run, in one text without secrets; of a fault of ours, only its kind."""
    return str(error) if isinstance(error, BatchinferError) else f"a bug: {type(error).__name__}"
