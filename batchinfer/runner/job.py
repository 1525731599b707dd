"""The whole job: plan, run what is not committed, finish, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from batchinfer.config import Job, Machine, Tuned, resolve
from batchinfer.data import Receipt, RowError
from batchinfer.engine.publish import sha256
from batchinfer.errors import UnavailableError
from batchinfer.events import OthersCommitted, RunFinished, SettingsChosen, Warned
from batchinfer.runner.audience import Audience
from batchinfer.runner.budget import Budget
from batchinfer.runner.earlier import Earlier
from batchinfer.runner.environment import worker_environment
from batchinfer.runner.facts import plan_followed
from batchinfer.runner.finish import finish, manifest_bytes
from batchinfer.runner.forecast import against
from batchinfer.runner.keeper import DealtWork, Keeper
from batchinfer.runner.ledger import read_ledger
from batchinfer.runner.limits import LimitedWork
from batchinfer.runner.messages import Ready, Start
from batchinfer.runner.output import probe, store_plan
from batchinfer.runner.prepare import Prepared, prepare
from batchinfer.runner.presence import Presence, new_owner
from batchinfer.runner.process import InlineWorker, ProcessWorker, Worker
from batchinfer.runner.report import RunReport
from batchinfer.runner.retry import Retrial, plans_of
from batchinfer.runner.shares import Share
from batchinfer.runner.signals import Interrupts
from batchinfer.runner.standby import Standby
from batchinfer.runner.starts import announcement, make_deal, make_start
from batchinfer.runner.stored_job import store_job
from batchinfer.runner.supervisor import Supervisor
from batchinfer.runner.surroundings import Surroundings
from batchinfer.runner.tuned import find_tuned, told_settings

if TYPE_CHECKING:
    from batchinfer.protocols import Observer


def run(
    job: Job,
    machine: Machine,
    observers: Sequence[Observer],
    *,
    share: Share | None = None,
    force: bool = False,
    measure: bool = False,
    retrial: Retrial | None = None,
    standby: Standby | None = None,
    prepared: Prepared | None = None,
) -> RunReport:
    """Run a job to its end and report. Raises what ended it early; observers hear of it first.

    With a `share`, only this process's part of it. `force` begins a new generation of the output;
    `measure` compares the run with its model alone, at the end. A `retrial` does failed rows again, or raises
    NothingToRetry. A worker that is on `standby` is the first. With what is `prepared` already, that is run,
    whatever the job says of its input.
    """
    with Audience(observers) as audience:
        tuned = find_tuned(job, machine)
        resolved = resolve(job, machine, tuned=tuned)
        session = _Session(resolved, audience, share or Share(), force=force, measure=measure)
        session.standby, session.retrial = standby, retrial
        session.tuned, session.prepared = tuned, prepared
        report = session.run()
        whole = not report.units_left
        audience.emit(
            RunFinished(
                exit_code=0,
                seconds=report.seconds,
                complete=whole,
                rows_ok=report.rows_ok if whole else None,
                rows_error=report.rows_error if whole else None,
                rows_filtered=report.rows_filtered if whole else None,
                manifest_sha256=report.manifest_sha256,
                forecast=report.forecast,
            )
        )
        return report


_PROMISES = {
    "deterministic": "output.commit: deterministic: parts may be written twice; this job promises that the "
    "same unit always gives the same bytes, and ends with an error where it does not",
    "single-writer": "output.commit: single-writer: nothing keeps two runs apart; this job promises that "
    "there is only this one",
}
"""What a job takes upon itself where the store cannot commit safely."""


class _OtherPlanError(Exception):
    """Another process stored another plan of the same job."""


class _Session:
    """One run: what it found, what it did."""

    def __init__(self, job: Job, audience: Audience, share: Share, *, force: bool, measure: bool) -> None:
        self._job = job
        self._emit = audience.emit
        self._audience = audience
        self._share = share
        self._force = force
        self._measure = measure
        self._run_id = audience.run
        self._receipts: dict[int, Receipt] = {}
        self._settings: dict[str, str] = {}
        self.standby: Standby | None = None
        self.retrial: Retrial | None = None
        self.tuned: Tuned | None = None
        self.prepared: Prepared | None = None
        self._budget: Budget | None = None

    @property
    def _samples(self) -> tuple[RowError, ...]:
        return self._budget.samples if self._budget is not None else ()

    def run(self) -> RunReport:
        """Prepare, run the pending units, finish; where files arrived meanwhile, once more for them."""
        if self.standby is not None and self._in_this_process():
            self.standby.close()
        elif self.standby is not None:
            self.standby.expect(self._job, self._environment())
        with Interrupts() as interrupts:
            while True:
                prepared = self.prepared or self._prepare()
                try:
                    report = self._run(prepared, interrupts)
                except _OtherPlanError:
                    # Another process stored the same job, cut into other units, first: do as it does.
                    continue
                if not prepared.arrivals or report.units_left:
                    return report
                self._force = False
                self._receipts.clear()

    def _prepare(self) -> Prepared:
        if self.retrial is not None:
            return self.retrial.prepare(self._job)
        return prepare(self._job, force=self._force, tuned=self.tuned)

    def _run(self, prepared: Prepared, interrupts: Interrupts) -> RunReport:
        plan, root = prepared.plan, self._job.output.path
        self._budget = budget = Budget(self._job, plan, Earlier(prepared))
        leases = self._share.leases(self._job.compute.claims)
        pending = prepared.pending if leases else self._share.of(prepared.pending)
        devices = [device for device in self._devices() for _ in range(self._workers_per_device())]
        devices = devices[: max(len(pending), 1)]
        self._announce(prepared, devices if pending else ())
        if self.retrial is not None and (told := self.retrial.told(plan)):
            self._warn("retry", told)
        completes = not prepared.pending and not prepared.finished
        if prepared.stored and (pending or completes):
            self._emit(plan_followed(prepared))
        if pending:
            probe(prepared.store, root, commit=self._job.output.commit)
            if self._job.output.commit in _PROMISES:
                self._warn("commit", _PROMISES[self._job.output.commit])
            self._run_units(prepared, pending, devices, interrupts)
        layout = plan.layout(root)
        if len(pending) < len(prepared.pending):
            committed = read_ledger(prepared.store, layout).committed
            left = len(plan.units) - len(committed)
            if left:
                return self._partial_report(prepared, pending, left)
        manifest = finish(
            prepared.store, layout, plan, prepared.sink, self._receipts, is_whole=self._leaves_none_out()
        )
        kept = {part["name"] for part in manifest["parts"]}
        superseded = [name for name in prepared.ledger.others if name not in kept]
        if superseded:
            self._warn(
                "superseded",
                f"{len(superseded)} parts of earlier generations are still beside the new ones, and readers "
                f"that do not ask the manifest see both: `batchinfer gc {root} --delete` removes them",
            )
        there = prepared.store.entries
        budget.judge(manifest, lambda: plans_of(prepared.store, root, there(root), manifest["plans"]))
        return self._report(prepared, manifest)

    def _leaves_none_out(self) -> bool:
        """Tell whether every planned row has to be in the output."""
        return self._job.input.where is None and self._job.input.sample is None

    def _devices(self) -> tuple[str, ...]:
        devices = self._job.compute.devices
        assert isinstance(devices, tuple)
        return devices

    def _workers_per_device(self) -> int:
        return int(self._job.compute.workers_per_device)

    def _announce(self, prepared: Prepared, devices: Sequence[str]) -> None:
        assert self._budget is not None
        told = announcement(prepared, self._run_id, self._share, devices, errors_allowed=self._budget.allowed)
        self._emit(told)

    def _run_units(
        self, prepared: Prepared, pending: Sequence[int], devices: Sequence[str], interrupts: Interrupts
    ) -> None:
        """Run the pending units. The plan is stored once a worker has found the job sound."""
        plan, stored = prepared.plan, prepared.stored

        def on_others(units: Sequence[int]) -> None:
            """Tell of units that other processes have done."""
            self._emit(OthersCommitted(units=len(units), rows=prepared.planned_rows(units)))

        me, every_s = new_owner(self._share.index), self._job.compute.heartbeat
        presence = Presence(prepared.store, self._job.output.path, plan.plan8, me, every_s=every_s)
        deal = make_deal(prepared, pending, presence, self._share, on_others)
        keeper = Keeper(deal, on_trouble=self._on_trouble)
        began = False

        def on_ready(ready: Ready) -> None:
            """Store the plan when the first worker found the job sound, and show that we are at work."""
            nonlocal began
            if began:
                return
            began = True
            self._settings = told_settings(prepared.job, ready.settings)
            self._emit(SettingsChosen(settings=self._settings))
            for hint in ready.hints:
                self._warn("slow", hint)
            if not stored:
                store_job(prepared.store, self._job.output.path, plan, self._job)
                winner = store_plan(prepared.store, self._job.output.path, plan)
                if winner.plan8 != plan.plan8:
                    raise _OtherPlanError
                self._emit(plan_followed(prepared))
            suspects = presence.blame(prepared.beats, prepared.ledger.committed)
            if suspects:
                self._warn("suspects", f"units {_few(suspects)} were being done when an earlier run died")
            keeper.start()

        assert self._budget is not None
        dealt = DealtWork(
            plan,
            deal,
            keeper,
            spilled=prepared.spilled,
            on_done=self._on_done,
            on_check=self._budget.check,
        )
        num_devices = len(dict.fromkeys(devices))
        work = LimitedWork(dealt, self._job.limits, num_devices=num_devices, began=self._audience.began)
        work.begin()
        stall = self._job.compute.stall_timeout
        try:
            with (
                Surroundings(devices, prepared.store, self._job.output.path, self._run_id) as surroundings,
                interrupts.watched(),
            ):
                Supervisor(
                    starts=[
                        make_start(prepared, self._run_id, worker, devices, measure=self._measure)
                        for worker in range(len(devices))
                    ],
                    spawn=self._spawner(),
                    work=work,
                    emit=self._emit,
                    on_ready=on_ready,
                    interrupts=interrupts,
                    grace_s=self._job.limits.grace,
                    stall_timeout=None if stall == "auto" else float(stall),
                    surroundings=surroundings,
                ).run()
        finally:
            keeper.close()
            self._budget.close()
        work.close()

    def _on_trouble(self, error: UnavailableError) -> None:
        self._warn("heartbeat", f"no sign of life could be given ({error.message}); the run goes on")

    def _warn(self, code: str, message: str) -> None:
        self._emit(Warned(code=code, message=message))

    def _on_done(self, receipt: Receipt) -> None:
        self._receipts[receipt.unit] = receipt
        assert self._budget is not None
        self._budget.add(receipt)
        if receipt.diverged:
            self._warn(
                "divergence",
                f"unit {receipt.unit} had been committed by another process with other results; its "
                "output stands: the model or a step is not deterministic",
            )
        elif not receipt.won:
            self._warn(
                "already_committed",
                f"unit {receipt.unit} had been committed by another process; its output stands",
            )

    def _spawner(self) -> Callable[[Start], Worker]:
        if self._in_this_process():
            return lambda start: InlineWorker()  # noqa: ARG005 - told over its channel
        return self._spawn

    def _spawn(self, start: Start) -> Worker:  # noqa: ARG002 - told over its channel
        waiting = self.standby.take() if self.standby is not None else None
        return waiting or ProcessWorker(environment=self._environment())

    def _in_this_process(self) -> bool:
        """Tell whether the store is one that no other process can see."""
        return any(uri.startswith("memory://") for uri in _urls(self._job))

    def _environment(self) -> dict[str, str]:
        return worker_environment(int(self._job.compute.threads))

    def _partial_report(self, prepared: Prepared, pending: Sequence[int], units_left: int) -> RunReport:
        """Report a share that is done while others still have theirs to do."""
        receipts = self._receipts.values()
        return RunReport(
            job=self._job.name,
            run=self._run_id,
            plan=prepared.plan.plan8,
            output=self._job.output.path,
            exit_code=0,
            rows_in=prepared.planned_rows(pending),
            rows_ok=sum(receipt.rows_ok for receipt in receipts),
            rows_error=sum(receipt.rows_error for receipt in receipts),
            rows_filtered=sum(receipt.rows_filtered for receipt in receipts),
            rows_reused=0,
            units_total=len(prepared.plan.units),
            units_reused=len(prepared.plan.units) - len(self._receipts),
            seconds=self._audience.seconds,
            units_left=units_left,
            errors=self._samples,
            settings=self._settings,
        )

    def _report(self, prepared: Prepared, manifest: Mapping[str, Any]) -> RunReport:
        plan, planned = prepared.plan, manifest["rows_planned"]
        report = RunReport(
            job=self._job.name,
            run=self._run_id,
            plan=plan.plan8,
            output=self._job.output.path,
            exit_code=0,
            rows_in=planned,
            rows_ok=manifest["rows"] - manifest["rows_error"],
            rows_error=manifest["rows_error"],
            rows_filtered=planned - manifest["rows"],
            rows_reused=planned - prepared.planned_rows(list(self._receipts)),
            units_total=len(plan.units),
            units_reused=len(plan.units) - len(self._receipts),
            seconds=self._audience.seconds,
            errors=self._samples,
            manifest_sha256=sha256(manifest_bytes(manifest)),
            settings=self._settings,
        )
        return replace(report, forecast=against(prepared, report, devices=len(self._devices())))


def _urls(job: Job) -> list[str]:
    paths = job.input.path if isinstance(job.input.path, tuple) else (job.input.path,)
    return [*paths, job.output.path]


def _few(units: Sequence[int]) -> str:
    """Name a few units."""
    shown = ", ".join(str(unit) for unit in units[:5])
    return f"{shown} and {len(units) - 5} more" if len(units) > 5 else shown  # noqa: PLR2004 - a few
