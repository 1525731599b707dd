"""What the verbs share: the job argument and its overrides."""

from __future__ import annotations

import enum
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from batchinfer.errors import UsageError

if TYPE_CHECKING:
    from batchinfer.config import Job, Machine
    from batchinfer.protocols import Observer

JobFile = Annotated[str, typer.Argument(metavar="JOB", help="The job file; `-` reads it from stdin.")]
Params = Annotated[
    list[str] | None,
    typer.Option("--param", "-p", metavar="NAME=VALUE", help="Set a parameter of the job. Repeatable."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="Override a key, such as batching.size=32. Repeatable."
    ),
]
Where = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="KEY=VALUE", help="Only these: code=, stage=, source=; each key once."),
]


class LogFormat(enum.StrEnum):
    """How progress is written where no person watches."""

    text = "text"
    json = "json"


LogLines = Annotated[LogFormat, typer.Option(help="Progress lines where the output is no terminal.")]
LogFile = Annotated[
    str | None, typer.Option(metavar="FILE", help="Append the run to a file as lines of JSON, too.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Output = Annotated[str, typer.Argument(metavar="OUTPUT", help="The output folder of a job, or its job file.")]


def load(job: str, params: list[str] | None, sets: list[str] | None) -> Job:
    """Load a job file with its overrides. Raises JobFileError, UsageError."""
    from batchinfer.config import load_job

    pairs = {}
    for pair in params or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--param {pair!r} has no value", hint="write --param NAME=VALUE")
        pairs[name] = value
    return load_job(job, params=pairs, overrides=sets or [])


def observers_of(
    job: Job, log_format: LogFormat, log_file: str | None, *, index: int | None = None
) -> list[Observer]:
    """Return what shows and keeps a run. `index` is this process's, where several share the job."""
    from batchinfer.cli.told import TOLD
    from batchinfer.telemetry import make_observers

    observers = make_observers(
        job.observe,
        job=job.name,
        interactive=interactive(),
        log_format=log_format.value,
        stream=sys.stderr,
        index=index,
        log_file=log_file,
        limits=job.limits,
        record=job,
    )
    # After the display: what is told is told there.
    return [*observers, TOLD] if log_format is LogFormat.json else observers


def this_machine(observers: Sequence[Observer] = ()) -> Machine:
    """Return what this machine has. Raises DeviceError where its driver hangs, of which observers hear."""
    from batchinfer.config import Machine, usable_cores
    from batchinfer.hardware import gpus_in_time

    try:
        return Machine(cores=usable_cores(), gpus=tuple(gpu.name for gpu in gpus_in_time()))
    except BaseException:
        from batchinfer.runner.audience import Audience

        with Audience(observers):
            raise


def is_job(target: str) -> bool:
    """Tell whether a job file is named, and not an output."""
    return target.endswith((".yaml", ".yml", ".json")) or target == "-"


def output_of(target: str) -> tuple[str, dict[str, object]]:
    """Return the output folder and storage options that a folder, URL or job file stands for."""
    if is_job(target):
        job = load(target, None, None)
        return job.output.path, dict(job.output.storage_options)
    return (target if "://" in target else os.path.abspath(target)), {}  # noqa: PTH100 - may be no file


def interactive() -> bool:
    """Tell whether a person watches: stderr is a terminal that can redraw."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
