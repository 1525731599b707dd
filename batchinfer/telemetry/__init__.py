"""What a person sees of a run: progress, metrics, logs. Listens to events, never stands in the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TextIO

from batchinfer.events import Warned
from batchinfer.telemetry.devices import Devices
from batchinfer.telemetry.tally import Tally

if TYPE_CHECKING:
    from batchinfer.config import Job
    from batchinfer.config.sections import ObserveOptions
    from batchinfer.protocols import Observer

__all__ = ["make_observers", "recorders"]


def make_observers(
    observe: ObserveOptions,
    *,
    job: str,
    interactive: bool,
    log_format: str,
    stream: TextIO | None,
    index: int | None = None,
    record: Job | None = None,
) -> list[Observer]:
    """Return the observers of a run, in the order in which they must hear its events and be closed.

    `interactive` says that `stream` is a terminal that can be drawn over; `log_format` is "text" or
    "json", and JSON is written to a terminal too. A stream of None (standard error was closed) takes
    everything and shows nothing. `index` is this process's, where several share the job. `record` is the
    job whose receipt and report are written beside its output.
    """
    tally, devices = Tally(), Devices()
    display: Observer
    if interactive and log_format == "text":
        from batchinfer.telemetry.live import LiveProgress

        display = LiveProgress(tally, stream=stream, devices=devices)
    else:
        from batchinfer.telemetry.lines import LineProgress

        display = LineProgress(
            tally,
            stream=stream,
            devices=devices,
            job=job,
            interval_s=observe.interval,
            log_format="json" if log_format == "json" else "text",
        )

    def warn(code: str, message: str) -> None:
        for observer in (tally, display):
            observer.on_event(Warned(code=code, message=message))

    before: list[Observer] = [tally]
    if record is not None:
        from batchinfer.telemetry.chronicle import Chronicle

        before.append(Chronicle(record, tally, devices, warn=partial(warn, "receipt")))
        before += _lineage(record, partial(warn, "openlineage"))
    if observe.pushgateway is None:
        return [*before, display]

    from batchinfer.telemetry.metrics import run_registry
    from batchinfer.telemetry.push import Pushgateway

    registry = run_registry(tally, devices)
    say = partial(warn, "pushgateway")
    push = Pushgateway(observe.pushgateway, job=job, registry=registry, warn=say, index=index)
    # The last push may have something to say, and the display has the last word.
    return [*before, push, display]


def recorders(job: Job, observers: Sequence[Observer]) -> list[Observer]:
    """Return what writes the receipt and the report of a run that nobody displays; `observers` hear of it
    where that fails."""
    from batchinfer.telemetry.chronicle import Chronicle

    def warn(code: str, message: str) -> None:
        for observer in observers:
            observer.on_event(Warned(code=code, message=message))

    tally = Tally()
    chronicle = Chronicle(job, tally, Devices(), warn=partial(warn, "receipt"))
    return [tally, chronicle, *_lineage(job, partial(warn, "openlineage"))]


def _lineage(job: Job, warn: Callable[[str], None]) -> list[Observer]:
    if job.observe.openlineage is None:
        return []
    from batchinfer.telemetry.lineage import Lineage

    return [Lineage(job, warn=warn)]
