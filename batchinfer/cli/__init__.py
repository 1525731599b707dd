"""The command line: one file per verb, errors to exit codes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from gc import set_threshold  # by name: there is a verb `gc` in this package
from typing import NoReturn

_OBJECTS = 50_000


def main() -> NoReturn:
    """Run the command line and exit with a code of the table in `errors`."""
    # What is imported stays: to look for garbage among it, again and again, is a tenth of the start.
    set_threshold(_OBJECTS)
    # This process computes nothing: NumPy's threads would only spin. Workers are told their own number.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # While the libraries are imported, Ctrl-C just ends the process. Where it is ignored, it stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from batchinfer.cli.app import run_app

    code = run_app()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    # Not through interpreter shutdown: a thread of some client that still waits for an answer would
    # hold it up.
    os._exit(code)
