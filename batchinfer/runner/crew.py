"""The workers of one device while they are measured: all alike, all at the same time."""

from __future__ import annotations

import dataclasses
import statistics
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from batchinfer.errors import DeviceError
from batchinfer.runner.environment import worker_environment
from batchinfer.runner.messages import Try
from batchinfer.runner.trial_worker import TrialWorker, WorkerGoneError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from batchinfer.data import Unit
    from batchinfer.runner.messages import Computing, Ready, Start, Tried

_PARTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One line of the table: what was tried, and what came of it, all workers of the device together.

    `batch_s` is how long a batch takes, `memory` the share of the device's memory that was needed at most,
    None where nobody knows. `note` says why there are no figures. `is_whole`: a larger batch would be the
    same, for want of rows.
    """

    batching: Mapping[str, int | str]
    workers: int
    concurrency: int
    threads: int
    rows_per_second: float = 0.0
    tokens_per_second: float = 0.0
    batch_rows: float = 0.0
    batch_s: float = 0.0
    memory: float | None = None
    note: str = ""
    is_whole: bool = False

    @property
    def rate(self) -> float:
        """What is compared: real tokens per second where rows have tokens, else rows per second."""
        return self.tokens_per_second or self.rows_per_second


class Crew:
    """So many workers like `start`, each with the rows of the same units. Started when they are needed."""

    def __init__(self, start: Start, units: Sequence[Unit], *, workers: int) -> None:
        self._start = start
        self._units = units
        self._count = workers
        self._stack = ExitStack()
        self._workers: list[TrialWorker] = []
        self._ready: Ready | None = None

    def open(self) -> Ready:
        """Start the workers, and wait until each has its model. Raises what loading it raises."""
        if self._ready is None:
            environment = worker_environment(self._start.threads)
            for index in range(self._count):
                start = dataclasses.replace(self._start, worker=index)
                self._workers.append(self._stack.enter_context(TrialWorker(start, self._units, environment)))
            for worker in self._workers:
                self._ready = worker.ready()
        assert self._ready is not None
        return self._ready

    def measure(self, batching: Mapping[str, int | str], seconds: float) -> Trial:
        """Let all workers compute at once, for so many seconds."""
        trial = Trial(
            batching=dict(batching),
            workers=self._count,
            concurrency=self._start.concurrency,
            threads=self._start.threads,
        )
        try:
            self.open()
            found = self._ask(Try(settings=dict(batching), seconds=0))
            if not any(each.out_of_memory for each in found):
                found = self._ask(Try(settings=dict(batching), seconds=seconds))
        except (WorkerGoneError, DeviceError) as error:
            # So does the kernel end a process that takes too much memory; the next trial begins anew.
            self.close()
            return dataclasses.replace(trial, note=error.message.splitlines()[0])
        memory = max((each.memory for each in found if each.memory is not None), default=None)
        if any(each.out_of_memory for each in found):
            return dataclasses.replace(trial, note="out of memory", memory=memory)
        batches = [batch for each in found for batch in each.batches]
        return dataclasses.replace(
            trial,
            rows_per_second=_rate(found, lambda batch: batch.rows),
            tokens_per_second=_rate(found, lambda batch: batch.tokens),
            batch_rows=statistics.mean(batch.rows for batch in batches),
            batch_s=statistics.median(batch.ended - batch.began for batch in batches),
            memory=memory,
            is_whole=any(each.is_whole for each in found),
        )

    def _ask(self, attempt: Try) -> list[Tried]:
        """Let every worker do the same at the same time, and wait for all."""
        for worker in self._workers:
            worker.begin(attempt)
        return [worker.result() for worker in self._workers]

    def close(self) -> None:
        """End them."""
        self._stack.close()
        self._workers.clear()
        self._ready = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _rate(found: Sequence[Tried], count: Callable[[Computing], int]) -> float:
    """Return what all workers together did in a second, while all of them were at it: the median of three
    parts of that time. A batch counts for a part by its share in it."""
    began, ended = max(each.began for each in found), min(each.ended for each in found)
    length = (ended - began) / _PARTS
    if length <= 0:
        return 0.0
    batches = [batch for each in found for batch in each.batches]

    def done(start: float) -> float:
        """Return what was done in the part that begins then."""
        return sum(
            count(batch)
            * max(min(batch.ended, start + length) - max(batch.began, start), 0.0)
            / max(batch.ended - batch.began, 1e-9)
            for batch in batches
        )

    return statistics.median(done(began + part * length) / length for part in range(_PARTS))
