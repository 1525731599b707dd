"""`batchinfer plan JOB`: what a run would do, before anything is computed or written."""

from __future__ import annotations

import json

import typer

from batchinfer.cli.arguments import AsJson, JobFile, Params, Sets, load

NAME = "plan"


def command(job: JobFile, *, param: Params = None, set_: Sets = None, as_json: AsJson = False) -> None:
    """Show units, rows and bytes, and what is committed already. Reads footers, writes nothing."""
    from batchinfer.runner.prepare import prepare

    prepared = prepare(load(job, param, set_))
    plan, pending = prepared.plan, prepared.pending
    facts = {
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
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    where = prepared.job.input.where or prepared.job.input.sample
    typer.echo(f"{plan.job}   plan {plan.plan8}")
    typer.echo(
        f"  input    {facts['shards']:,} shards, {facts['rows']:,} rows, {_bytes(facts['input_bytes'])}"
    )
    if where:
        typer.echo(f"           before `{where}`, which each unit applies as it reads")
    rows_per_unit = plan.num_rows // max(len(plan.units), 1)
    typer.echo(f"  units    {facts['units']:,}, about {rows_per_unit:,} rows each")
    typer.echo(
        f"  done     {facts['units_done']:,} units; left {len(pending):,} with {facts['rows_left']:,} rows"
    )
    typer.echo(f"  output   {facts['output']}")


def _bytes(count: object) -> str:
    size = float(count)  # type: ignore[arg-type]
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":  # noqa: PLR2004 - binary prefixes
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")
