"""`batchinfer status OUTPUT`: how far a run is, from its output alone."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from batchinfer.cli.arguments import AsJson, Output, output_of
from batchinfer.redact import visible

NAME = "status"


def command(output: Output, *, as_json: AsJson = False) -> None:
    """Show how far an output is. Works from any machine, also while others run."""
    from batchinfer.runner.inspection import read_status

    root, options = output_of(output)
    status = read_status(root, options)
    if as_json:
        typer.echo(json.dumps(asdict(status), indent=2))
        return
    share = status.units_done / max(status.units_total, 1)
    generation = f"   generation {status.generation}" if status.generation > 1 else ""
    typer.echo(f"{status.job}   plan {status.plan}{generation}   {status.state}")
    typer.echo(f"  units    {status.units_done:,} of {status.units_total:,} committed ({share:.1%})")
    typer.echo(f"  rows     {status.rows_done:,} of {status.rows_total:,} planned")
    typer.echo(f"  output   {status.output} ({status.num_bytes:,} bytes)")
    for process in status.processes if status.state != "complete" else ():
        typer.echo(f"  at work  {visible(process.owner)} (last sign {process.silent_s:.0f} s ago)")
    if status.suspects:
        shown = ", ".join(str(unit) for unit in status.suspects[:10])
        typer.echo(f"  suspect  units {shown}: a process died while it had them")
