"""`batchinfer verify OUTPUT`: is the output what its manifest says?"""

from __future__ import annotations

from typing import Annotated

import typer

from batchinfer.cli.arguments import Output, output_of
from batchinfer.errors import DataError
from batchinfer.redact import visible

NAME = "verify"
_SHOWN = 20


def command(
    output: Output,
    *,
    footer: Annotated[
        bool, typer.Option("--footer", help="Read every part's footer: its plan, unit, rows and columns.")
    ] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every byte: checksums, pages and row numbers.")
    ] = False,
) -> None:
    """Compare an output with its manifest: nothing missing, nothing changed, nothing that is not ours."""
    from batchinfer.runner.inspection import verify_output

    root, options = output_of(output)
    verdict = verify_output(root, options, level="deep" if deep else "footer" if footer else "quick")
    if verdict.problems:
        shown = "\n".join(f"  {visible(problem)}" for problem in verdict.problems[:_SHOWN])
        more = f"\n  and {len(verdict.problems) - _SHOWN} more" if len(verdict.problems) > _SHOWN else ""
        hint = "delete a damaged or missing part's file and run the job again: it is computed anew"
        if all("`batchinfer gc`" in problem for problem in verdict.problems):
            hint = f"every part that counts is there: `batchinfer gc {root} --delete` removes the others"
        raise DataError(f"the output is not what its manifest says:\n{shown}{more}", where=root, hint=hint)
    how = "every byte" if deep else "every footer" if footer else "names and sizes"
    typer.echo(
        f"verified {how}: {verdict.num_parts:,} parts, {verdict.num_rows:,} rows, "
        f"{verdict.num_errors:,} of them failed rows"
    )
