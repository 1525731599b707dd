"""A loader: a process that runs a job's preprocessing steps, so that they do not hold the worker's GIL.

It knows neither source, model nor store, and imports neither torch nor onnxruntime by itself.
"""

from __future__ import annotations

import base64
import faulthandler
import os
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from batchinfer import lifeline
from batchinfer.arrow_views import column_of
from batchinfer.config import Job
from batchinfer.engine.blame import Trust
from batchinfer.engine.retry import Retry
from batchinfer.engine.steps import Stepped, Steps, load_steps
from batchinfer.errors import to_message
from batchinfer.loader.exchange import Exchange

_TELL_S = 1.0


def serve(exchange: Exchange) -> None:
    """Take the job, then chunk after chunk, until the worker ends the line."""
    told = exchange.receive()
    if told is None:
        return
    try:
        steps = _open(told[0], exchange)
    except Exception as error:  # noqa: BLE001 - the worker raises it
        exchange.send({"error": to_message(error)})
        return
    exchange.send({})
    while (asked := exchange.receive()) is not None:
        assert asked[1] is not None
        Trust.presumed = asked[0]["sound"]
        answer, rows = _answer(steps, asked[1])
        # What is printed comes before what it led to: after its last answer a loader may be ended.
        sys.stdout.flush()
        # Where the steps kept nothing of the rows, the answer gives their slab back.
        del asked
        exchange.send(answer, rows)


class _Progress:
    """Tells the worker of rows that are done, or have failed, before all of a chunk are: once a second."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._told_at = time.monotonic()

    def __call__(self) -> None:
        """Hear of some rows."""
        now = time.monotonic()
        if now - self._told_at > _TELL_S:
            self._told_at = now
            self._exchange.send({"done": True})


def _open(told: Mapping[str, Any], exchange: Exchange) -> Steps:
    """Make the steps of a job, and let each see its schema, as the worker has checked it. The worker hears
    at once of what is tried again."""
    job = Job.from_message(told["job"])
    sys.path.insert(0, job.root)
    Trust.allowed = job.errors.max
    steps = load_steps(job, told["device"])
    schema = pa.ipc.read_schema(pa.BufferReader(base64.b64decode(told["schema"])))
    for step in steps:
        schema = step.output_schema(schema)
    retry = Retry(
        job.errors.retry,
        on_retry=lambda reason: exchange.send({"retry": reason}),
        on_attempt=_Progress(exchange),
    )
    return Steps(job, steps, columns=told["columns"], floats=told["floats"], retry=retry)


def _answer(steps: Steps, rows: pa.RecordBatch) -> tuple[dict[str, Any], pa.RecordBatch | None]:
    try:
        stepped = steps(rows)
    except Exception as error:  # noqa: BLE001 - the worker raises it
        return {"error": to_message(error)}, None
    return _packed(stepped)


def _packed(stepped: Stepped) -> tuple[dict[str, Any], pa.RecordBatch]:
    """Put the positions of the good rows beside the rows: there are as many."""
    failed = [
        [row, failure.stage, failure.code, failure.message, failure.attempts]
        for row, failure in stepped.failed.items()
    ]
    good = column_of(stepped.good)
    fields = [*stepped.rows.schema, pa.field("", pa.int64())]
    rows = pa.RecordBatch.from_arrays([*stepped.rows.columns, good], schema=pa.schema(fields))
    return {"failed": failed}, rows


def main() -> None:
    """Run as a process: `python -m batchinfer.engine.loader_process SOCKET_FD WORKER_PID`."""
    fd, worker = (int(argument) for argument in sys.argv[1:3])
    lifeline.die_with(worker)
    lifeline.leave_signals_to_parent()
    # A crash of native code shows where the user's code stood.
    faulthandler.enable()
    code = 0
    try:
        serve(Exchange(socket.socket(fileno=fd)))
    except (BrokenPipeError, ConnectionResetError):
        pass  # the worker is gone
    except BaseException as error:  # noqa: BLE001 - SystemExit of the user's code among them
        traceback.print_exception(error)
        code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Not through interpreter shutdown: threads of the user's code could hold it up.
    os._exit(code)


if __name__ == "__main__":
    main()
