"""`batchinfer preview JOB -n 20`: a few rows through the real job, printed, nothing written."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchinfer.cli.arguments import AsJson, JobFile, Params, Sets, load, this_machine

if TYPE_CHECKING:
    import pyarrow as pa

NAME = "preview"
_SHOWN_VALUES = 4
_SHOWN_TEXT = 60


def command(
    job: JobFile,
    *,
    param: Params = None,
    set_: Sets = None,
    num_rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="Rows to run.")] = 20,
    as_json: AsJson = False,
    save_canary: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Keep what the model got and gave for these rows, for model.canary.",
        ),
    ] = None,
) -> None:
    """Run the first rows of a job and print their results. The job's output is not touched."""
    from batchinfer.runner.standby import Standby

    # First of all: it imports while the job is read.
    with Standby() as standby, tempfile.TemporaryDirectory(prefix="batchinfer-preview-") as folder:
        from batchinfer.runner.job import run

        overrides = [
            *(set_ or []),
            f"output.path={json.dumps(folder)}",
            "output.format=parquet",
            "output.storage_options={}",
            f"input.limit={num_rows}",
            "errors.max='100%'",
            "observe.pushgateway=null",
        ]
        loaded = load(job, param, overrides)
        run(loaded, this_machine(), [], standby=standby)
        rows = _read(folder)
        if save_canary is not None:
            from batchinfer.runner.check import make_canary

            canary = str(Path(save_canary).absolute())
            make_canary(load(job, param, [*overrides, "output.path=memory://canary"]), this_machine(), canary)
    if as_json:
        for row in rows.to_pylist():
            typer.echo(json.dumps(row, default=str))
        return
    _show(rows)


def _read(folder: str) -> pa.Table:
    import pyarrow.dataset as ds

    return ds.dataset(folder, format="parquet", partitioning="hive").to_table()


def _show(rows: pa.Table) -> None:
    """Print one block per row: wide tables do not fit a terminal, and vectors never do."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from batchinfer.redact import visible

    console = Console(file=sys.stdout)
    failed = rows["_error"].is_valid().to_pylist() if "_error" in rows.column_names else [False] * len(rows)
    shown = [name for name in rows.column_names if name != "_error" or any(failed)]
    table = Table(show_lines=False)
    # As text: what rows hold may look like markup, or like commands for a terminal.
    for name in shown:
        table.add_column(Text(visible(name)), overflow="fold")
    for row in rows.select(shown).to_pylist():
        table.add_row(*(Text(visible(_cell(value), lines=True)) for value in row.values()))
    console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], (int, float)):
        head = ", ".join(f"{number:.4g}" for number in value[:_SHOWN_VALUES])
        return f"[{head}, … {len(value)} values]" if len(value) > _SHOWN_VALUES else f"[{head}]"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, dict) and {"code", "message"} <= value.keys():
        return f"{value['code']} in {value['stage']}: {value['message']}"
    text = "" if value is None else str(value)
    return text if len(text) <= _SHOWN_TEXT else text[: _SHOWN_TEXT - 1] + "…"
