"""`batchinfer errors OUTPUT`: which rows failed, and why."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from batchinfer.cli.arguments import AsJson, Output, Where, output_of
from batchinfer.errors import AccessError, LocalDiskError, UsageError
from batchinfer.redact import visible

if TYPE_CHECKING:
    import pyarrow as pa

    from batchinfer.runner.failed_rows import FailedRows

NAME = "errors"
_FORMATS = {".parquet", ".csv"}


def command(
    output: Output,
    *,
    where: Where = None,
    samples: Annotated[int, typer.Option("--samples", "-n", min=0, help="Rows to show.")] = 10,
    export: Annotated[
        Path | None,
        typer.Option("--export", metavar="FILE", help="Write every failed row to a .parquet or .csv file."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the failed rows of an output: how many by code and stage, and some of them."""
    from batchinfer.runner.failed_rows import asked_for, read_failed_rows

    asked = asked_for(where)
    if export is not None and export.suffix not in _FORMATS:
        raise UsageError(f"--export {export}: no such format", hint="name a .parquet or a .csv file")
    root, options = output_of(output)
    found = read_failed_rows(root, options, where=asked)
    if export is not None:
        _write(found.table, export)
    if as_json:
        said = {
            "output": found.output,
            "rows_total": found.rows_total,
            "rows_error": found.table.num_rows,
            "groups": [asdict(group) for group in found.groups()],
            "samples": found.table.slice(0, samples).to_pylist(),
        }
        typer.echo(json.dumps(said, indent=2))
        return
    _show(found, samples, export)


def _show(found: FailedRows, samples: int, export: Path | None) -> None:
    share = found.table.num_rows / max(found.rows_total, 1)
    typer.echo(f"{found.table.num_rows:,} of {found.rows_total:,} rows failed ({share:.2%})")
    for group in found.groups():
        typer.echo(f"  {group.rows:>9,}  {group.code:<8}  {visible(group.stage)}")
    if samples and found.table.num_rows:
        typer.echo("")
    for row in found.table.slice(0, samples).to_pylist():
        place = f"{row['source']} row {row['row']}"
        typer.echo(
            f"  {visible(place)}   {row['code']} in {visible(row['stage'])}: {visible(row['message'])}"
        )
    if found.table.num_rows > samples > 0:
        typer.echo(f"  and {found.table.num_rows - samples:,} more: --export FILE writes all of them")
    if export is not None:
        typer.echo(f"written to {export}")


def _write(table: pa.Table, path: Path) -> None:
    """Write a table in the format that the name says. Raises LocalDiskError, AccessError."""
    import pyarrow.csv
    import pyarrow.parquet as pq

    write = pq.write_table if path.suffix == ".parquet" else pyarrow.csv.write_csv
    try:
        write(table, path)
    except PermissionError as error:
        raise AccessError("permission denied", where=str(path), hint="name another file") from error
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise LocalDiskError(
            f"the failed rows cannot be written: {why}",
            where=str(path),
            hint="name a file in a folder that is there, on a disk with room",
        ) from error
