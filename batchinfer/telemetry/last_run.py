"""What is left of a run once it has ended, as a handful of metrics that stay."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily, Metric

from batchinfer.events import Event, RunFailed, RunFinished, RunStarted

if TYPE_CHECKING:
    from batchinfer.telemetry.tally import Tally

SUCCESS = "batchinfer_last_success_timestamp_seconds"


class LastRun:
    """Collects how a run ended; nothing while it goes on, and nothing of a share that is done while others
    have units left: the last one speaks for the job. Of a run that failed before it began there are no
    rows. The tally must hear each event first.

    `succeeded_at` is when an earlier run was last complete, in Unix time, where that is known.
    """

    def __init__(
        self,
        tally: Tally,
        *,
        succeeded_at: float | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._tally = tally
        self._wall_clock = wall_clock
        self._ended_at: float | None = None
        self._has_begun = False
        self._refused: RunFailed | None = None
        self.succeeded_at = succeeded_at

    def on_event(self, event: Event) -> None:
        """Note when the run ends."""
        if isinstance(event, RunStarted):
            self._ended_at, self._has_begun, self._refused = None, True, None
        elif isinstance(event, RunFailed) and not self._has_begun:
            self._ended_at, self._refused = self._wall_clock(), event
        elif isinstance(event, RunFinished) and (event.complete or event.exit_code):
            self._ended_at = self._wall_clock()
            if event.complete and event.exit_code == 0:
                self.succeeded_at = self._ended_at

    def close(self) -> None:
        """Do nothing: it is read after the end."""

    @property
    def never_began(self) -> bool:
        """Whether the run failed before it began: the end is all that there is to tell of it."""
        return self._refused is not None

    @property
    def is_told(self) -> bool:
        """Whether the run has ended in a way that speaks for the job."""
        return self._ended_at is not None

    def describe(self) -> list[Metric]:
        """Return nothing: registering asks for no figures."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield what is known of the end, and the time of the last success."""
        if self._ended_at is not None:
            yield from self._end(self._ended_at)
        if self.succeeded_at is not None:
            yield GaugeMetricFamily(
                SUCCESS, "When a run of this job was last complete, in Unix time.", value=self.succeeded_at
            )

    def _end(self, ended_at: float) -> Iterator[Metric]:
        snapshot = self._tally.snapshot()
        finished = snapshot.finished
        end = self._refused or finished
        assert end is not None
        yield GaugeMetricFamily(
            "batchinfer_last_run_timestamp_seconds", "When the last run ended, in Unix time.", value=ended_at
        )
        yield GaugeMetricFamily(
            "batchinfer_last_run_duration_seconds", "How long it took.", value=end.seconds
        )
        yield GaugeMetricFamily(
            "batchinfer_last_run_exit_code", "How it ended: 0, or the exit code.", value=end.exit_code
        )
        if self._refused is not None or finished is None:
            return
        rows = GaugeMetricFamily(
            "batchinfer_last_run_rows",
            "Rows of the whole output; where the run stopped early, those that it committed itself.",
            labels=["outcome"],
        )
        whole = finished.complete and finished.rows_ok is not None
        rows.add_metric(["ok"], (finished.rows_ok or 0) if whole else snapshot.rows_ok)
        rows.add_metric(["error"], (finished.rows_error or 0) if whole else snapshot.rows_error)
        rows.add_metric(["filtered"], (finished.rows_filtered or 0) if whole else snapshot.rows_filtered)
        yield rows
