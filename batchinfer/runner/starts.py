"""What a run begins with: who of several processes does which units, and what each worker is told first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from batchinfer.clock import SystemClock
from batchinfer.runner.claims import Claims
from batchinfer.runner.deal import Deal, LeaseDeal, StaticDeal, Supersession
from batchinfer.runner.messages import Start

if TYPE_CHECKING:
    from batchinfer.runner.prepare import Prepared
    from batchinfer.runner.presence import Presence
    from batchinfer.runner.shares import Share


def make_deal(prepared: Prepared, pending: Sequence[int], presence: Presence, share: Share) -> Deal:
    """Deal this process its share of the pending units: fixed, or by leases."""
    job, plan = prepared.job, prepared.plan
    root, every_s = job.output.path, job.compute.heartbeat
    watch, clock = Supersession(prepared.store, root, plan.generation), SystemClock()
    if not share.leases(job.compute.claims):
        return StaticDeal(pending, presence=presence, watch=watch, every_s=every_s, clock=clock)
    claims = Claims(
        prepared.store,
        root,
        plan.plan8,
        owner=presence.owner,
        num_units=len(plan.units),
        every_s=every_s,
        clock=clock,
    )
    return LeaseDeal(
        claims=claims,
        presence=presence,
        watch=watch,
        store=prepared.store,
        layout=plan.layout(root),
        committed=prepared.ledger.committed,
        every_s=every_s,
        clock=clock,
    )


def make_start(prepared: Prepared, run: str, worker: int, devices: Sequence[str], *, measure: bool) -> Start:
    """Return the first message to a worker, which has the device of its number; they share the memory."""
    job, plan = prepared.job, prepared.plan
    metadata = {
        "batchinfer.plan": plan.plan8,
        "batchinfer.fingerprint": plan.fingerprint,
        "batchinfer.model_version": job.model.version or "",
        **({"batchinfer.retry_of": plan.parent or ""} if plan.retry is not None else {}),
    }
    return Start(
        job=job.to_message(),
        schema=plan.schema,
        run=run,
        worker=worker,
        device=devices[worker],
        threads=int(job.compute.threads),
        concurrency=int(job.compute.concurrency),
        memory_bytes=int(job.compute.host_memory) // len(devices),
        layout=asdict(plan.layout(job.output.path)),
        metadata=metadata,
        model_state=prepared.model_state,
        model_hash=prepared.model_hash,
        measure=measure,
    )
