"""What a person sees of a run: progress, metrics, logs. Listens to events, never stands in the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TextIO

from batchinfer.events import Warned
from batchinfer.telemetry.devices import Devices
from batchinfer.telemetry.outlets import metric_outlets
from batchinfer.telemetry.tally import Tally

if TYPE_CHECKING:
    from batchinfer.config import Job
    from batchinfer.config.limits import LimitsOptions
    from batchinfer.config.sections import ObserveOptions
    from batchinfer.events import Event
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
    log_file: str | None = None,
    limits: LimitsOptions | None = None,
    record: Job | None = None,
) -> list[Observer]:
    """Return the observers of a run, in the order in which they must hear its events and be closed.

    `interactive` says that `stream` is a terminal that can be drawn over; `log_format` is "text" or
    "json", and JSON is written to a terminal too. A stream of None (standard error was closed) takes
    everything and shows nothing. `index` is this process's, where several share the job; `log_file` takes
    the place of the job's; `limits` are the job's, for the metric of its deadline; `record` is the job whose
    receipt and report are written beside its output. Raises JobFileError or AccessError where the log file
    cannot be opened.
    """
    devices = Devices()
    tally = Tally(energy=devices.energy_joules)
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
    # What is sampled and counted comes first: the others read it.
    observers: list[Observer] = [devices, tally, display]
    path = log_file or observe.log_file
    if path is not None:
        from batchinfer.telemetry.log_file import LogFile

        interval_s = observe.interval
        observers.append(LogFile(path, tally, devices=devices, job=job, interval_s=interval_s))

    def tell(event: Event) -> None:
        for observer in observers:
            observer.on_event(event)

    def warn(code: str, message: str) -> None:
        tell(Warned(code=code, message=message))

    outlets = metric_outlets(observe, tally, devices, job=job, index=index, limits=limits, tell=tell)
    # The last push may have something to say, and the displays have the last word.
    return [devices, tally, *_records(record, tally, devices, warn), *outlets, *observers[2:]]


def recorders(job: Job, observers: Sequence[Observer]) -> list[Observer]:
    """Return what writes the receipt and the report of a run that nobody displays; `observers` hear of it
    where that fails."""

    def warn(code: str, message: str) -> None:
        for observer in observers:
            observer.on_event(Warned(code=code, message=message))

    devices = Devices()
    tally = Tally(energy=devices.energy_joules)
    return [devices, tally, *_records(job, tally, devices, warn)]


def _records(
    job: Job | None, tally: Tally, devices: Devices, warn: Callable[[str, str], None]
) -> list[Observer]:
    """Return what keeps a run beside its output, and tells others what it made of what."""
    if job is None:
        return []
    from batchinfer.telemetry.chronicle import Chronicle

    kept: list[Observer] = [Chronicle(job, tally, devices, warn=partial(warn, "receipt"))]
    if job.observe.openlineage is not None:
        from batchinfer.telemetry.lineage import Lineage

        kept.append(Lineage(job, warn=partial(warn, "openlineage")))
    return kept
