"""Searches for the batches and workers with which a device computes most, one step at a time."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from batchinfer import registry
from batchinfer.config import fingerprint, resolve
from batchinfer.config.machine import CONCURRENT
from batchinfer.errors import DeviceError
from batchinfer.runner.crew import Crew, Trial
from batchinfer.runner.messages import Start
from batchinfer.runner.plan import make_plan
from batchinfer.runner.spread import spread
from batchinfer.runner.tuned import CHOICES, device_of, key_of, model_hash

if TYPE_CHECKING:
    from batchinfer.config import Job, Machine
    from batchinfer.data import Unit
    from batchinfer.protocols import Source

RISE = 0.03
"""What a larger batch, or another way to compute it, must gain to be worth it."""
WORKER_RISE = 0.1
"""What more workers must gain: each holds the model, and its rows, once more."""
SAFE = 0.9
"""The share of the device's memory that may be needed at most."""

_PIECES = 16
_PATIENCE = 5
"""Measurements' times that one batch of the usual size may take to be measured as well."""
_FEWEST = {"rows": 8, "tokens": 64, "bytes": 1024}
_MOST_WORKERS = {"cpu": 8, "cuda": 4}
_BUCKETS = (8, 16)
_MEMORY_BYTES = 2**29


@dataclass(slots=True, kw_only=True)
class Tuning:
    """What was measured, what was chosen of it, and why. `counted` is what rates count: rows, or real tokens
    where rows have some. `remembered` names the file in which later runs find the choice."""

    job: str
    device: str
    rows: int
    counted: str
    trials: tuple[Trial, ...]
    chosen: Trial
    reasons: tuple[str, ...]
    remembered: str | None


def tune(
    job: Job, machine: Machine, *, num_rows: int, seconds: float, on_trial: Callable[[Trial], None]
) -> Tuning:
    """Measure a job on its first device, and remember what is best. The job's output is not touched.

    Raises what listing the input and loading the model raise, and DeviceError where no batch fits.
    """
    # Whatever it asks for now: what is found is for a job that leaves it open.
    job = dataclasses.replace(job, batching=job.batching.model_copy(update={"size": "auto"}))
    resolved, mine = resolve(job, machine), fingerprint(job)
    device = device_of(resolved, machine)
    source: Source = registry.load("sources", job.input.format)(job.input)
    plan = make_plan(job, source, source.list_entries(), mine, suffix="", generation=1)
    units = spread(plan, num_rows, pieces=_PIECES)
    devices = resolved.compute.devices
    assert isinstance(devices, tuple)
    start = Start(
        job=resolved.to_message(),
        schema=plan.schema,
        run="tune",
        worker=0,
        device=devices[0],
        threads=int(resolved.compute.threads),
        concurrency=int(resolved.compute.concurrency),
        memory_bytes=_MEMORY_BYTES,
        layout=asdict(plan.layout(job.output.path)),
        metadata={},
        model_hash=model_hash(job, mine),
        purpose="try",
    )
    search = _Search(
        job=job,
        start=start,
        units=units,
        cores=max(1, machine.cores // len(devices)),
        seconds=seconds,
        on_trial=on_trial,
    )
    chosen = search.run(workers=int(resolved.compute.workers_per_device))
    entry = {
        "on": dt.datetime.now(dt.UTC).date().isoformat(),
        "batching": chosen.batching,
        "compute": {
            "workers_per_device": chosen.workers,
            "concurrency": chosen.concurrency,
            "threads": chosen.threads,
        },
    }
    is_kept = CHOICES.put(key_of(job, mine, device), entry)
    return Tuning(
        job=job.name,
        device=device,
        rows=sum(unit.num_rows for unit in units),
        counted="tokens" if any(trial.tokens_per_second for trial in search.trials) else "rows",
        trials=tuple(search.trials),
        chosen=chosen,
        reasons=tuple(search.reasons),
        remembered=str(CHOICES.path) if is_kept else None,
    )


@dataclass(kw_only=True)
class _Search:
    """Batch sizes first, with the workers that a run would have; then, at the best size, the workers."""

    job: Job
    start: Start
    units: Sequence[Unit]
    cores: int
    seconds: float
    on_trial: Callable[[Trial], None]
    trials: list[Trial] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def run(self, *, workers: int) -> Trial:
        """Return the best of all. Raises DeviceError where nothing fits."""
        with Crew(self.start, self.units, workers=workers) as crew:
            settings = crew.open().settings
            best = self._climb(crew, settings["batching.by"], int(settings["batching.size"]))
            if "lengths" in settings.get("batching.buckets", "") and self.job.batching.buckets == "auto":
                for count in _BUCKETS:
                    best = self._better(best, self._measure(crew, {**best.batching, "buckets": count}))
        compute = self.job.compute
        if (compute.threads, compute.concurrency) == ("auto", "auto") and self.start.device == "cpu":
            best = self._shares(best)
        return self._more_workers(best) if compute.workers_per_device == "auto" else best

    def _measure(self, crew: Crew, batching: Mapping[str, int | str]) -> Trial:
        trial = crew.measure(batching, self.seconds)
        self.trials.append(trial)
        self.on_trial(trial)
        return trial

    def _climb(self, crew: Crew, by: str, usual: int) -> Trial:
        """Double the size while that gains, and compare with what is usual."""
        size, best, descends = min(_FEWEST[by], usual), None, False
        ends_at = 0
        while size:
            trial = self._measure(crew, {"by": by, "size": size})
            if best is not None and self._fits(trial) and not _gains(trial, best):
                # One that does not gain ends it: not by chance.
                trial = max(trial, self._measure(crew, {"by": by, "size": size}), key=lambda each: each.rate)
            if not self._fits(trial):
                ends_at, descends = size, best is None
                size = size // 2 if descends else 0
                continue
            if best is not None and not _gains(trial, best):
                self.reasons.append(f"{size:,} {by} at once: {_gain(trial, best)} against {_size(best)}")
                break
            best = trial
            if trial.is_whole:
                self.reasons.append(f"the rows that were read fill no larger batch than {_size(best)}")
            size = 0 if descends or trial.is_whole else size * 2
        if best is None:
            why = f" ({self.trials[-1].note})" if self.trials[-1].note else ""
            raise DeviceError(
                f"not even the smallest batch can be computed{why}",
                hint="a smaller model or precision; shorter rows; `batchinfer preview` tries a few rows",
            )
        if ends_at:
            self.reasons.append(f"{ends_at:,} {by} at once do not fit, or leave less than a tenth free")
        known = [trial for trial in self.trials if trial.batching["size"] == usual]
        is_slow = usual * best.batch_s / int(best.batching["size"]) > _PATIENCE * self.seconds
        if not known and not 0 < ends_at <= usual and not best.is_whole and not is_slow:
            known = [self._measure(crew, {"by": by, "size": usual})]
        # What suits every stage stays, where the model alone gains nothing.
        if known and self._fits(known[0]) and not _gains(best, known[0]):
            return known[0]
        return best

    def _shares(self, best: Trial) -> Trial:
        """Try fewer batches at once with more threads each, and the other way round."""
        at_once = [2**power for power in range(self.cores.bit_length()) if 2**power <= self.cores]
        ways = [(count, self.cores // count) for count in at_once]
        if self.job.model.backend not in CONCURRENT:
            ways = [(1, threads) for threads in at_once]
        for concurrency, threads in ways:
            if (concurrency, threads) != (self.start.concurrency, self.start.threads):
                start = dataclasses.replace(self.start, concurrency=concurrency, threads=threads)
                with Crew(start, self.units, workers=best.workers) as crew:
                    best = self._better(best, self._measure(crew, best.batching))
        return best

    def _more_workers(self, best: Trial) -> Trial:
        """Double the workers while that gains; they share the cores."""
        kind = self.start.device.partition(":")[0]
        workers = best.workers * 2
        while workers <= min(_MOST_WORKERS[kind], self.cores):
            each = self.cores // workers
            concurrency = max(1, min(best.concurrency, each))
            start = dataclasses.replace(
                self.start, concurrency=concurrency, threads=max(1, min(best.threads, each // concurrency))
            )
            with Crew(start, self.units, workers=workers) as crew:
                trial = self._measure(crew, best.batching)
            if self._better(best, trial, rise=WORKER_RISE) is best:
                break
            best, workers = trial, workers * 2
        return best

    def _better(self, best: Trial, trial: Trial, *, rise: float = RISE) -> Trial:
        """Return which of two is to be preferred, and say why where it is the older."""
        if self._fits(trial) and _gains(trial, best, rise):
            return trial
        told = f"{_gain(trial, best)} against {_way(best)}" if self._fits(trial) else trial.note
        self.reasons.append(f"{_way(trial)}: {told}")
        return best

    def _fits(self, trial: Trial) -> bool:
        return trial.rate > 0 and (trial.memory is None or trial.memory <= SAFE)


def _gains(trial: Trial, best: Trial, rise: float = RISE) -> bool:
    return trial.rate > best.rate * (1 + rise)


def _gain(trial: Trial, best: Trial) -> str:
    return f"{trial.rate / best.rate - 1:+.1%}"


def _size(trial: Trial) -> str:
    return f"{trial.batching['size']:,}"


def _way(trial: Trial) -> str:
    """Say how a trial differs from others of its size."""
    buckets = f", {trial.batching['buckets']} buckets" if "buckets" in trial.batching else ""
    workers = f"{trial.workers} worker{'s' if trial.workers > 1 else ''}"
    return f"{workers}, {trial.concurrency} x {trial.threads} threads{buckets}"
