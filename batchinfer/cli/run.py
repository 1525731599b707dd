"""`batchinfer run JOB`: run what is not committed; the same command resumes."""

from __future__ import annotations

from typing import Annotated

import typer

from batchinfer.cli.arguments import (
    JobFile,
    LogFile,
    LogFormat,
    LogLines,
    Params,
    Sets,
    load,
    observers_of,
    this_machine,
)
from batchinfer.errors import ExitCode

NAME = "run"


def command(
    job: JobFile,
    *,
    param: Params = None,
    set_: Sets = None,
    log_format: LogLines = LogFormat.text,
    log_file: LogFile = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Do every N-th unit from I on; in an indexed Kubernetes Job it knows.",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Compute everything anew, as a new generation beside the old one."),
    ] = False,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Compare with the model alone, at the end: some seconds more."),
    ] = False,
    exit_empty: Annotated[
        int, typer.Option(metavar="CODE", help="Exit code when nothing left to do (0 or 99).")
    ] = 0,
) -> None:
    """Run a job. Run the same command again to resume: committed units are never done twice."""
    from batchinfer.runner.standby import Standby

    # First of all: it imports while the job is read.
    with Standby() as standby:
        from batchinfer.runner.job import run
        from batchinfer.runner.shares import share_of

        loaded = load(job, param, set_)
        share = share_of(shard)
        observers = observers_of(loaded, log_format, log_file, index=share.index)
        machine = this_machine(observers)
        report = run(loaded, machine, observers, share=share, force=force, measure=measure, standby=standby)
    if report.units_reused == report.units_total and exit_empty:
        raise typer.Exit(ExitCode.EMPTY)
