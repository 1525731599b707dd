"""A clock that only moves when told, and the events of an invented run."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from batchinfer.data import ErrorCode, Receipt, RowError
from batchinfer.events import BatchFinished, RunFinished, RunStarted, UnitCommitted, WorkerReady
from batchinfer.telemetry.devices import Devices
from batchinfer.telemetry.tally import Tally


class Clock:
    """Counts seconds by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


class Run:
    """Says what a runner would say, to a list of observers."""

    def __init__(self, clock: Clock, tally: Tally) -> None:
        self.clock = clock
        self.tally = tally
        self.hear: list[Callable[..., None]] = [tally.on_event]

    def say(self, event: object) -> None:
        """Tell every observer."""
        for hear in self.hear:
            hear(event)

    def start(
        self, *, rows: int = 1000, reused: int = 0, units: int = 10, workers: int = 1, **more: Any
    ) -> None:
        """Begin."""
        done = units * reused // rows if rows else 0
        self.say(
            RunStarted(
                job="embed",
                run="7f3a91c2",
                units_total=units,
                units_done=done,
                rows_total=rows,
                rows_done=reused,
                num_workers=workers,
                model="/srv/models/minilm/model.onnx",
                output="/data/out",
                **{"errors_allowed": rows // 100, **more},
            )
        )

    def ready(self, worker: int = 0, device: str = "cpu") -> None:
        """A worker has its model."""
        self.say(WorkerReady(worker=worker, device=device, load_s=1.5, pid=42))

    def batch(
        self, rows: int, *, worker: int = 0, seconds: float = 0.5, after: float = 0.0, split: bool = False
    ) -> None:
        """A forward pass of 10 real and 16 padded tokens a row."""
        self.clock.now += after
        self.say(
            BatchFinished(
                worker=worker,
                rows=rows,
                compute_s=seconds,
                real_tokens=10 * rows,
                padded_tokens=16 * rows,
                split=split,
            )
        )

    def commit(
        self,
        ok: int,
        *,
        errors: tuple[RowError, ...] = (),
        filtered: int = 0,
        worker: int = 0,
        unit: int = 0,
    ) -> None:
        """A unit is committed; its receipt carries ten of the failed rows, and counts all."""
        failed = len(errors)
        receipt = Receipt(
            unit=unit,
            parts=(),
            rows_read=ok + failed,
            rows_ok=ok,
            rows_error=failed,
            rows_filtered=filtered,
            won=True,
            errors=errors[:10],
            error_codes=Counter(str(error.code) for error in errors),
        )
        self.say(UnitCommitted(worker=worker, receipt=receipt))

    def finish(self, *, exit_code: int = 0, **counts: Any) -> None:
        """End."""
        self.say(RunFinished(exit_code=exit_code, seconds=self.clock.now, complete=exit_code == 0, **counts))


def row_error(row: int, code: ErrorCode = ErrorCode.DECODE, message: str = "text is null") -> RowError:
    """Return a failed row."""
    return RowError(
        stage="tokenize", code=code, message=message, attempts=1, source="dt=1/part-0.parquet", row=row
    )


@pytest.fixture(scope="session")
def new_run() -> Callable[[], Run]:
    """Make an invented run with its tally and its clock."""

    def make() -> Run:
        clock = Clock()
        return Run(clock, Tally(clock=clock))

    return make


@pytest.fixture
def run(new_run: Callable[[], Run]) -> Run:
    """An invented run."""
    return new_run()


@pytest.fixture
def failed_row() -> Callable[..., RowError]:
    """Make a failed row."""
    return row_error


@pytest.fixture
def no_gpus() -> Devices:
    """A machine without a GPU."""
    return Devices(gpus=tuple)


@pytest.fixture
def require() -> Callable[[str], str]:
    """Return the path of a program. Without it, a test is skipped at home and fails in CI."""

    def find(program: str) -> str:
        path = shutil.which(program)
        if path is not None:
            return path
        if os.environ.get("CI") == "true":
            pytest.fail(f"{program} is not installed")
        pytest.skip(f"{program} is not installed")

    return find
