"""`batchinfer schema`: the JSON Schema of the job file."""

from __future__ import annotations

import json

import typer

NAME = "schema"


def command() -> None:
    """Print the JSON Schema of the job file, for editors and checks."""
    from batchinfer.config import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))
