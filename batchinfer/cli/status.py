"""`batchinfer status OUTPUT`: how far a run is, from its output alone."""

from __future__ import annotations

import datetime as dt
import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchinfer.cli.arguments import AsJson, Output, output_of
from batchinfer.redact import visible

if TYPE_CHECKING:
    from batchinfer.cli.pace import Pace
    from batchinfer.runner.inspection import OutputStatus
    from batchinfer.runner.lookout import Look

NAME = "status"


def command(
    output: Output,
    *,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Go on looking until the output is complete.")
    ] = False,
    every: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Seconds between two looks, with --watch.")
    ] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Show how far an output is. Works from any machine, also while others run."""
    from batchinfer.runner.lookout import Lookout

    root, options = output_of(output)
    lookout = Lookout(root, options)
    if watch:
        from batchinfer.cli.watch import follow

        follow(lookout, root, every_s=every, as_json=as_json)
        return
    from batchinfer.cli.pace import pace_of

    look = lookout.look()
    pace = pace_of(look, now=time.time())
    if as_json:
        typer.echo(json.dumps(facts(look, pace), indent=2))
    else:
        _show(look.status, pace)


def facts(look: Look, pace: Pace) -> dict[str, Any]:
    """Return what scripts are told: the keys are an interface."""
    from batchinfer.cli.pace import as_fields

    now = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"timestamp": now, **asdict(look.status), **as_fields(pace)}


def _show(status: OutputStatus, pace: Pace) -> None:
    share = status.units_done / max(status.units_total, 1)
    generation = f"   generation {status.generation}" if status.generation > 1 else ""
    typer.echo(f"{visible(status.job)}   plan {status.plan}{generation}   {status.state}")
    typer.echo(f"  units    {status.units_done:,} of {status.units_total:,} committed ({share:.1%})")
    typer.echo(f"  rows     {status.rows_done:,} of {status.rows_total:,} planned")
    if pace.rows_per_second is not None:
        from batchinfer.telemetry import figures

        left = f", {figures.duration(pace.eta_s)} left" if pace.eta_s is not None else ""
        typer.echo(f"  pace     {figures.rate(pace.rows_per_second)}{left}")
    typer.echo(f"  output   {status.output} ({status.num_bytes:,} bytes)")
    for process in status.processes if status.state != "complete" else ():
        label = "silent " if process.is_silent else "at work"
        typer.echo(f"  {label}  {visible(process.owner)} (last sign {process.silent_s:.0f} s ago)")
    if status.suspects:
        shown = ", ".join(str(unit) for unit in status.suspects[:10])
        typer.echo(f"  suspect  units {shown}: a process died while it had them")
