"""The verbs, in the order in which a person meets them."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Annotated

import typer

from batchinfer import crash
from batchinfer.cli import (
    doctor,
    errors,
    export,
    gc,
    init,
    plan,
    preview,
    retry,
    run,
    schema,
    status,
    tune,
    validate,
    verify,
)
from batchinfer.cli.failures import exit_code_of, in_our_words, show_failure
from batchinfer.cli.streams import occupy
from batchinfer.cli.told import asks_for_json
from batchinfer.errors import BatchinferError

app = typer.Typer(
    name="batchinfer",
    help="Run a model over every row of a dataset: one YAML file, exactly-once output, no cluster.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog="Begin with: batchinfer init MODEL DATA > job.yaml, then batchinfer run job.yaml",
)


def _version(value: bool) -> None:  # noqa: FBT001 - typer calls it so
    if value:
        import importlib.metadata

        typer.echo(f"batchinfer {importlib.metadata.version('batchinfer-pipeline')}")
        raise typer.Exit


@app.callback()
def _global(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for _verb in (init, validate, plan, tune, preview, run, status, errors, retry, verify, gc, schema, doctor):
    app.command(name=_verb.NAME)(_verb.command)
app.add_typer(export.app)


class _Keyboard:
    """Knows that Ctrl-C was pressed, also where what it raised comes out as something else: a library
    that is interrupted while it builds its tables reports a fault of the tables."""

    def __init__(self) -> None:
        self.pressed = False
        # Python delivers signals to its main thread only. Where Ctrl-C is ignored, it stays so.
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        if not ignored and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._press)

    def _press(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the system's call
        self.pressed = True
        raise KeyboardInterrupt


def run_app() -> int:
    """Run the command line; every error becomes a message and an exit code."""
    occupy()
    keyboard = _Keyboard()
    try:
        crash.arm()
        code = app(standalone_mode=False)
    except BaseException as raised:  # noqa: BLE001 - the outermost boundary
        stopped = keyboard.pressed and not isinstance(raised, BatchinferError)
        error = KeyboardInterrupt() if stopped else in_our_words(raised)
        show_failure(error, as_json=asks_for_json(sys.argv[1:]))
        return exit_code_of(error)
    return code if isinstance(code, int) else 0
