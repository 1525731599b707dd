"""`batchinfer validate JOB`: everything that can be checked before a run."""

from __future__ import annotations

import base64
from typing import Annotated

import pyarrow as pa
import typer

from batchinfer.cli.arguments import JobFile, Params, Sets, load, this_machine

NAME = "validate"


def command(
    job: JobFile,
    *,
    param: Params = None,
    set_: Sets = None,
    model: Annotated[
        bool, typer.Option("--model/--no-model", help="Load the model, in a process of its own.")
    ] = True,
) -> None:
    """Check a job: its file, the input's files and columns, and that they fit the model. Writes nothing."""
    from batchinfer import tensors
    from batchinfer.config import resolve
    from batchinfer.runner.check import check_model
    from batchinfer.runner.prepare import prepare

    loaded = load(job, param, set_)
    typer.echo(f"ok  {loaded.origin}: the job file")
    prepared = prepare(loaded)
    plan = prepared.plan
    typer.echo(f"ok  input: {len(plan.shards):,} shards, {plan.num_rows:,} rows, one schema")
    if not model:
        return
    resolved = resolve(loaded, this_machine())
    devices = resolved.compute.devices
    device = devices[0] if isinstance(devices, tuple) else "cpu"
    ready = check_model(resolved, schema=plan.schema, device=device, threads=int(resolved.compute.threads))
    typer.echo(f"ok  model: {', '.join(map(str, ready.inputs))} -> {', '.join(map(str, ready.outputs))}")
    assert ready.output_schema is not None
    schema = pa.ipc.read_schema(pa.BufferReader(base64.b64decode(ready.output_schema)))
    for field in schema:
        typer.echo(f"    output  {field.name}: {tensors.format_type(field.type)}")
    for hint in ready.hints:
        typer.echo(f"slow  {hint}")
