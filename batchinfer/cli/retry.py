"""`batchinfer retry OUTPUT`: the failed rows once more; what goes well takes its place in the output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from batchinfer.cli.arguments import (
    LogFile,
    LogFormat,
    LogLines,
    Output,
    Params,
    Sets,
    Where,
    is_job,
    load,
    observers_of,
    output_of,
    this_machine,
)
from batchinfer.errors import UsageError

if TYPE_CHECKING:
    from batchinfer.config import Job

NAME = "retry"


def command(
    output: Output,
    *,
    where: Where = None,
    mended: Annotated[
        bool,
        typer.Option("--mended", help="The job was changed to mend these rows; all others stay as they are."),
    ] = False,
    param: Params = None,
    set_: Sets = None,
    log_format: LogLines = LogFormat.text,
    log_file: LogFile = None,
) -> None:
    """Do failed rows again, as a new generation of the units that they are in. The same command resumes."""
    from batchinfer.runner.failed_rows import asked_for
    from batchinfer.runner.job import run
    from batchinfer.runner.retry import NothingToRetry, Retrial

    asked = asked_for(where)
    job = _job_of(output, param, set_)
    observers = observers_of(job, log_format, log_file)
    try:
        run(job, this_machine(observers), observers, retrial=Retrial(where=asked, mended=mended))
    except NothingToRetry:
        typer.echo("nothing to do: no failed row is asked for")


def _job_of(output: str, params: list[str] | None, sets: list[str] | None) -> Job:
    """Return the job that is named, or that an output remembers. Raises UsageError where it does not."""
    from batchinfer.runner.inspection import latest_plan
    from batchinfer.runner.stored_job import read_job
    from batchinfer.storage import open_store

    if is_job(output):
        return load(output, params, sets)
    if params or sets:
        raise UsageError("--param and --set change a job file: name it in place of its output")
    root, options = output_of(output)
    store = open_store(root, options)
    return read_job(store, root, latest_plan(store, root, store.entries(root)))
