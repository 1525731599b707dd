"""`batchinfer plan JOB`: what a run would do, before anything is computed or written."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from batchinfer.cli.arguments import AsJson, JobFile, Params, Sets, load, this_machine
from batchinfer.cli.forecast import foretell, show_forecast, size_of

NAME = "plan"


def command(
    job: JobFile,
    *,
    param: Params = None,
    set_: Sets = None,
    sample: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="ROWS", help="Run about so many rows, write nothing, and forecast the rest."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show units, rows and bytes, and what is committed already. Reads footers, writes nothing."""
    from batchinfer.runner.prepare import prepare
    from batchinfer.runner.tuned import CHOICES, find_tuned

    loaded = load(job, param, set_)
    # Whoever has tuned nothing need not ask what this machine has.
    tuned = find_tuned(loaded, this_machine()) if CHOICES.entries() else None
    prepared = prepare(loaded, tuned=tuned)
    made = None if sample is None else foretell(prepared, job, param, set_, num_rows=sample)
    plan, pending = prepared.plan, prepared.pending
    facts: dict[str, object] = {
        "job": plan.job,
        "plan": plan.plan8,
        "fingerprint": plan.fingerprint,
        "shards": len(plan.shards),
        "input_bytes": sum(size for _, size, _ in plan.inputs),
        "rows": plan.num_rows,
        "units": len(plan.units),
        "units_done": len(plan.units) - len(pending),
        "rows_left": prepared.planned_rows(pending),
        "output": prepared.job.output.path,
    }
    if made is not None:
        facts["forecast"] = asdict(made)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    where = prepared.job.input.where or prepared.job.input.sample
    typer.echo(f"{plan.job}   plan {plan.plan8}")
    typer.echo(
        f"  input    {facts['shards']:,} shards, {facts['rows']:,} rows, {size_of(facts['input_bytes'])}"
    )
    if where:
        typer.echo(f"           before `{where}`, which each unit applies as it reads")
    rows_per_unit = plan.num_rows // max(len(plan.units), 1)
    typer.echo(f"  units    {facts['units']:,}, about {rows_per_unit:,} rows each")
    typer.echo(
        f"  done     {facts['units_done']:,} units; left {len(pending):,} with {facts['rows_left']:,} rows"
    )
    typer.echo(f"  output   {facts['output']}")
    if made is not None:
        show_forecast(made)
