"""`batchinfer gc OUTPUT`: what nobody needs any more; with `--delete`, it goes."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import Annotated

import typer

from batchinfer.cli.arguments import AsJson, Output, output_of
from batchinfer.redact import visible

NAME = "gc"
_SHOWN = 20


def command(
    output: Output,
    *,
    delete: Annotated[bool, typer.Option("--delete", help="Delete what is listed.")] = False,
    as_json: AsJson = False,
) -> None:
    """List what is left of finished and superseded runs and of writers that died; delete it if told to."""
    from batchinfer.runner.garbage import find_garbage, sweep

    root, options = output_of(output)
    store, findings = find_garbage(root, options)
    if as_json:
        typer.echo(json.dumps(asdict(findings), indent=2))
    else:
        for item in findings.garbage[:_SHOWN]:
            typer.echo(f"  {visible(item.uri)}   {item.why}")
        if len(findings.garbage) > _SHOWN:
            typer.echo(f"  and {len(findings.garbage) - _SHOWN:,} more")
        for line in findings.spared:
            typer.echo(f"  kept: {visible(line)}")
    if delete:
        sweep(store, findings.garbage)
    if as_json:
        return
    size = sum(item.size_bytes for item in findings.garbage)
    kinds = ", ".join(f"{count:,}: {why}" for why, count in Counter(i.why for i in findings.garbage).items())
    if not findings.garbage:
        typer.echo("nothing to delete")
    elif delete:
        typer.echo(f"deleted {len(findings.garbage):,} files, {size:,} bytes ({kinds})")
    else:
        typer.echo(
            f"{len(findings.garbage):,} files, {size:,} bytes could go ({kinds}); `--delete` deletes them"
        )
