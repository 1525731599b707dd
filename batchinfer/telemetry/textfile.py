"""A run's metrics as a file, for the textfile collector of node_exporter."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest

from batchinfer.events import Event, RunFailed, RunFinished, RunStarted
from batchinfer.telemetry.last_run import SUCCESS
from batchinfer.telemetry.metrics import registry_of
from batchinfer.telemetry.ticker import Ticker

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from batchinfer.telemetry.last_run import LastRun
    from batchinfer.telemetry.metrics import RunMetrics

_PATIENCE_S = 5.0
_READABLE = 0o644
_SUCCESS = re.compile(rf"^{SUCCESS}(?:{{.*}})? (\S+)$", re.MULTILINE)


class Textfile:
    """Writes the metrics to a file again and again, whole or not at all, readable for everybody.

    Every series has the labels `job` and `instance`, for a collector reads the files of many jobs. After a
    run that succeeded, or never began, only what it came to stays; the time of the last success is taken
    over from the file of the run before. What cannot be written costs one call of `warn`.
    """

    def __init__(
        self,
        path: str,
        *,
        job: str,
        instance: str,
        metrics: RunMetrics,
        last_run: LastRun,
        every_s: float,
        warn: Callable[[str], None],
    ) -> None:
        self._path = Path(path)
        labels = {"job": job, "instance": instance}
        self._live = registry_of(_Labelled(metrics, labels), _Labelled(last_run, labels))
        self._end = registry_of(_Labelled(last_run, labels))
        self._last_run = last_run
        self._warn = warn
        self._warned = False
        self._finished: RunFinished | None = None
        self._ticker = Ticker(self._write, every_s=every_s, name="textfile")

    def on_event(self, event: Event) -> None:
        """Begin to write when the run begins, or never will; note how it ends."""
        refused = isinstance(event, RunFailed) and self._last_run.never_began
        if isinstance(event, RunStarted) or refused:
            self._finished = None
            if self._last_run.succeeded_at is None:
                self._last_run.succeeded_at = _last_success(self._path)
            self._ticker.start()
        elif isinstance(event, RunFinished):
            self._finished = event

    def close(self) -> None:
        """Write for the last time."""
        if not self._ticker.stop(_PATIENCE_S):
            self._complain("it takes too long")

    def _write(self, last: bool) -> None:  # noqa: FBT001 - the ticker calls it so
        done = last and self._finished is not None and not self._finished.exit_code
        text = generate_latest(self._end if done or self._last_run.never_began else self._live)
        try:
            _put(self._path, text)
        except OSError as error:
            self._complain(error.strerror or type(error).__name__)

    def _complain(self, why: str) -> None:
        if not self._warned:
            self._warned = True
            then = "how it ended is not told there" if self._last_run.never_began else "the run goes on"
            self._warn(f"cannot write metrics to {self._path}: {why}; {then}")


class _Labelled:
    """Another collector's metrics, each series with some labels more."""

    def __init__(self, collector: Collector, labels: dict[str, str]) -> None:
        self._collector = collector
        self._labels = labels

    def describe(self) -> list[Metric]:
        """Return nothing, as the other would."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the other's metrics."""
        for family in self._collector.collect():
            family.samples = [
                sample._replace(labels={**self._labels, **sample.labels}) for sample in family.samples
            ]
            yield family


def _put(path: Path, text: bytes) -> None:
    """Replace a file. The name beside it is none that the collector reads."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            os.fchmod(file.fileno(), _READABLE)
            file.write(text)
        beside.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def _last_success(path: Path) -> float | None:
    """Return when a run was last complete, as the file of an earlier one says."""
    try:
        found = _SUCCESS.search(path.read_text(encoding="utf-8"))
        return float(found[1]) if found else None
    except (OSError, ValueError):
        return None
