"""What a person sees of a run: progress, metrics, logs. Listens to events, never stands in the loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from batchinfer.telemetry.devices import Devices
from batchinfer.telemetry.outlets import metric_outlets
from batchinfer.telemetry.tally import Tally

if TYPE_CHECKING:
    from batchinfer.config.limits import LimitsOptions
    from batchinfer.config.sections import ObserveOptions
    from batchinfer.events import Event
    from batchinfer.protocols import Observer

__all__ = ["make_observers"]


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
) -> list[Observer]:
    """Return the observers of a run, in the order in which they must hear its events and be closed.

    `interactive` says that `stream` is a terminal that can be drawn over; `log_format` is "text" or
    "json", and JSON is written to a terminal too. A stream of None (standard error was closed) takes
    everything and shows nothing. `index` is this process's, where several share the job; `log_file` takes
    the place of the job's; `limits` are the job's, for the metric of its deadline. Raises JobFileError or
    AccessError where the log file cannot be opened.
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

    outlets = metric_outlets(observe, tally, devices, job=job, index=index, limits=limits, tell=tell)
    # The last push may have something to say, and the displays have the last word.
    return [devices, tally, *outlets, *observers[2:]]
