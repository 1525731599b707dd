"""`batchinfer tune JOB`: which batches and workers suit a model on this machine, measured and remembered."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from batchinfer.cli.arguments import AsJson, JobFile, Params, Sets, load, this_machine
from batchinfer.redact import visible

if TYPE_CHECKING:
    from batchinfer.runner.crew import Trial
    from batchinfer.runner.tune import Tuning

NAME = "tune"
_COLUMNS = ("batch", "workers", "at once", "threads", "rows/s", "tokens/s", "ms/batch", "memory", "")


def command(
    job: JobFile,
    *,
    param: Params = None,
    set_: Sets = None,
    num_rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="Rows to read.")] = 4096,
    seconds: Annotated[float, typer.Option(min=0.01, help="Seconds of each measurement.")] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Measure batch sizes, threads and workers on some rows, and remember the best for later runs."""
    from batchinfer.runner.tune import tune

    def show(trial: Trial) -> None:
        """Show that it goes on, to who waits."""
        sys.stderr.write(f"tried {_batch(trial)}, {trial.workers} x {trial.concurrency} x {trial.threads}\n")
        sys.stderr.flush()

    loaded = load(job, param, set_)
    tuning = tune(loaded, this_machine(), num_rows=num_rows, seconds=seconds, on_trial=show)
    if as_json:
        typer.echo(json.dumps(asdict(tuning), indent=2))
        return
    _print(tuning, asked=loaded.batching.size)


def _print(tuning: Tuning, *, asked: object) -> None:
    typer.echo(f"{tuning.job}   {visible(tuning.device)}   {tuning.rows:,} rows")
    _table(tuning)
    best = tuning.chosen
    typer.echo(
        f"chosen     {_batch(best)}; workers_per_device {best.workers}, concurrency "
        f"{best.concurrency}, threads {best.threads}"
    )
    for reason in tuning.reasons:
        typer.echo(f"why        {visible(reason)}")
    if tuning.remembered is None:
        typer.echo("remembered nowhere: the cache is off or cannot be written; put it into the job file")
        return
    typer.echo(f"remembered {visible(tuning.remembered)}; runs that leave it open (auto) use it from now on")
    if asked != "auto":
        typer.echo(f"           this job asks for batching.size {asked}, and keeps it")


def _table(tuning: Tuning) -> None:
    """Print what was measured: drawn on a terminal, in columns elsewhere."""
    kept = [at for at, name in enumerate(_COLUMNS) if name != "tokens/s" or tuning.counted == "tokens"]
    rows = [[_cells(trial, chosen=trial == tuning.chosen)[at] for at in kept] for trial in tuning.trials]
    names = [_COLUMNS[at] for at in kept]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for name in names:
            table.add_column(name, justify="right" if name else "left")
        for row in rows:
            table.add_row(*map(Text, row), style="bold" if row[-1] == "chosen" else None)
        Console(file=sys.stdout).print(table)
        return
    widths = [max(len(row[at]) for row in [names, *rows]) for at in range(len(names))]
    for row in [names, *rows]:
        typer.echo(
            "  ".join(cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False))
            + f"  {row[-1]}".rstrip()
        )


def _cells(trial: Trial, *, chosen: bool) -> tuple[str, ...]:
    measured = trial.rate > 0
    return (
        _batch(trial),
        str(trial.workers),
        str(trial.concurrency),
        str(trial.threads),
        f"{trial.rows_per_second:,.0f}" if measured else "-",
        f"{trial.tokens_per_second:,.0f}" if measured else "-",
        f"{trial.batch_s * 1000:,.2f}" if measured else "-",
        "-" if trial.memory is None else f"{trial.memory:.0%}",
        "chosen" if chosen else visible(trial.note),
    )


def _batch(trial: Trial) -> str:
    """Say how batches are cut."""
    buckets = f", {trial.batching['buckets']} buckets" if "buckets" in trial.batching else ""
    return f"{trial.batching['size']:,} {trial.batching['by']}{buckets}"
