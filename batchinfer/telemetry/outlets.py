"""Where a run's metrics go: pushed, scraped, or written to a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from batchinfer.events import Event, Listening, Warned

if TYPE_CHECKING:
    from batchinfer.config.limits import LimitsOptions
    from batchinfer.config.sections import ObserveOptions
    from batchinfer.protocols import Observer
    from batchinfer.telemetry.devices import Devices
    from batchinfer.telemetry.tally import Tally


def metric_outlets(
    observe: ObserveOptions,
    tally: Tally,
    devices: Devices,
    *,
    job: str,
    index: int | None,
    limits: LimitsOptions | None,
    tell: Callable[[Event], None],
) -> list[Observer]:
    """Return the observers that give a run's metrics away; they must hear its events after the tally.

    `tell` hears what a person should know of them: where they can be asked, and what does not work.
    """
    if observe.pushgateway is None and observe.listen is None and observe.textfile is None:
        return []
    from batchinfer.telemetry.last_run import LastRun
    from batchinfer.telemetry.metrics import RunMetrics

    metrics = RunMetrics(tally, devices, limits=limits, compat_names=observe.compat_names)
    found: list[Observer] = [metrics]

    def warn(code: str) -> Callable[[str], None]:
        return lambda message: tell(Warned(code=code, message=message))

    if observe.listen is not None:
        from batchinfer.telemetry.listen import Listener

        try:
            listener = Listener(observe.listen, tally=tally, metrics=metrics)
        except OSError as error:
            why = error.strerror or type(error).__name__
            warn("listen")(f"cannot listen on {observe.listen}: {why}; the run goes on and is not scraped")
        else:
            found.append(listener)
            tell(Listening(url=listener.url))
    if observe.textfile is not None:
        from batchinfer.telemetry.push import instance_name
        from batchinfer.telemetry.textfile import Textfile

        # One of its own: it knows of the last success from its file, which is older than what the gateway
        # has where the run before was on another machine.
        last_run = LastRun(tally)
        found += [
            last_run,
            Textfile(
                observe.textfile,
                job=job,
                instance=instance_name(index),
                metrics=metrics,
                last_run=last_run,
                every_s=observe.interval,
                warn=warn("textfile"),
            ),
        ]
    if observe.pushgateway is not None:
        from batchinfer.telemetry.push import Pushgateway

        last_run = LastRun(tally)
        found += [
            last_run,
            Pushgateway(
                observe.pushgateway,
                job=job,
                metrics=metrics,
                last_run=last_run,
                warn=warn("pushgateway"),
                index=index,
            ),
        ]
    return found
