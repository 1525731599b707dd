"""`batchinfer validate JOB`: everything that can be checked before a run."""

from __future__ import annotations

import base64
import contextlib
from typing import TYPE_CHECKING, Annotated

import typer

from batchinfer.cli.arguments import JobFile, Params, Sets, load, this_machine
from batchinfer.errors import BatchinferError

if TYPE_CHECKING:
    from batchinfer.config import Job
    from batchinfer.runner.messages import Ready
    from batchinfer.runner.plan import Plan
    from batchinfer.runner.standby import Standby

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
    if not model:
        _check_input(_checked_file(job, param, set_))
        return
    from batchinfer.runner.standby import Standby

    # First of all: it imports while the job is read.
    with Standby() as standby:
        from batchinfer.config import resolve

        loaded, machine = _checked_file(job, param, set_), this_machine()
        with contextlib.suppress(BatchinferError):  # raised below, in its turn
            standby.expect(resolve(loaded, machine), {})
        plan = _check_input(loaded)
        ready = _check_model(resolve(loaded, machine), plan.schema, standby)
    _show(ready)


def _checked_file(job: str, params: list[str] | None, sets: list[str] | None) -> Job:
    loaded = load(job, params, sets)
    typer.echo(f"ok  {loaded.origin}: the job file")
    return loaded


def _check_input(loaded: Job) -> Plan:
    from batchinfer.runner.prepare import prepare

    plan = prepare(loaded).plan
    typer.echo(f"ok  input: {len(plan.shards):,} shards, {plan.num_rows:,} rows, one schema")
    return plan


def _check_model(resolved: Job, schema: str, standby: Standby) -> Ready:
    from batchinfer.runner.check import check_model

    devices = resolved.compute.devices
    device = devices[0] if isinstance(devices, tuple) else "cpu"
    threads = int(resolved.compute.threads)
    return check_model(resolved, schema=schema, device=device, threads=threads, standby=standby)


def _show(ready: Ready) -> None:
    import pyarrow as pa

    from batchinfer import tensors

    typer.echo(f"ok  model: {', '.join(map(str, ready.inputs))} -> {', '.join(map(str, ready.outputs))}")
    assert ready.output_schema is not None
    schema = pa.ipc.read_schema(pa.BufferReader(base64.b64decode(ready.output_schema)))
    for field in schema:
        typer.echo(f"    output  {field.name}: {tensors.format_type(field.type)}")
    for hint in ready.hints:
        typer.echo(f"slow  {hint}")
