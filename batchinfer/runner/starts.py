"""What a run begins with: who of several processes does which units, and what each worker is told first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from batchinfer.clock import SystemClock
from batchinfer.events import RunStarted
from batchinfer.runner.claims import Claims
from batchinfer.runner.deal import Deal, LeaseDeal, StaticDeal, Supersession
from batchinfer.runner.finish import rows_kept
from batchinfer.runner.messages import Start

if TYPE_CHECKING:
    from batchinfer.runner.prepare import Prepared
    from batchinfer.runner.presence import Presence
    from batchinfer.runner.shares import Share


def announcement(
    prepared: Prepared, run: str, share: Share, devices: Sequence[str], *, errors_allowed: int
) -> RunStarted:
    """Say what this process is about to do. Rows that earlier generations have done are those of the first
    share."""
    job, plan = prepared.job, prepared.plan
    is_claimed = share.leases(job.compute.claims)
    mine = range(len(plan.units)) if is_claimed else share.of(range(len(plan.units)))
    done = [unit for unit in mine if unit in prepared.ledger.committed]
    kept = 0 if share.count and share.index else rows_kept(prepared.store, plan.layout(job.output.path), plan)
    return RunStarted(
        job=job.name,
        run=run,
        share="" if is_claimed else str(share),
        is_claimed=is_claimed,
        units_total=len(mine),
        units_done=len(done),
        rows_total=prepared.planned_rows(mine) + kept,
        rows_done=prepared.planned_rows(done) + kept,
        num_workers=len(devices),
        model=job.model.version or job.model.path or job.model.entry or "",
        output=job.output.path,
        devices=tuple(dict.fromkeys(devices)),
        errors_allowed=errors_allowed,
        price_per_device_hour=job.limits.price_per_device_hour,
        max_cost=job.limits.max_cost,
    )


def make_deal(
    prepared: Prepared,
    pending: Sequence[int],
    presence: Presence,
    share: Share,
    on_others: Callable[[Sequence[int]], None],
) -> Deal:
    """Deal this process its share of the pending units: fixed, or by leases; then `on_others` hears which
    of them others have committed."""
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
        on_others=on_others,
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
        is_sound=plan.retry is not None or bool(prepared.ledger.committed),
        measure=measure,
    )
