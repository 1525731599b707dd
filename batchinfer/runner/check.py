"""Check a job against its model without running it: a worker loads the model, says what it found, ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

from batchinfer.config import resolve
from batchinfer.errors import BatchinferError, from_message
from batchinfer.lifeline import died_of
from batchinfer.runner.messages import Assign, Failed, Message, Ready, Start, Stop
from batchinfer.runner.prepare import prepare
from batchinfer.runner.process import LineTail, ProcessWorker
from batchinfer.runner.standby import Standby

if TYPE_CHECKING:
    from batchinfer.config import Job, Machine

_START_S = 300.0


def check_model(
    job: Job,
    *,
    schema: str,
    device: str,
    threads: int,
    purpose: Literal["check", "describe"] = "check",
    standby: Standby | None = None,
) -> Ready:
    """Load the job's model in a process of its own and check every seam of the job; or only load it.
    A worker that is on `standby` does it.

    Raises ContractError where the parts do not fit, DeviceError or DataError where the model does
    not load.
    """
    start = Start(
        job=job.to_message(),
        schema=schema,
        run="check",
        worker=0,
        device=device,
        threads=threads,
        concurrency=1,
        memory_bytes=1,
        layout={},
        metadata={},
        purpose=purpose,
    )
    return _ask(start, (), standby)


def make_canary(job: Job, machine: Machine, path: str) -> None:
    """Compute the first rows of a job on its first device, and keep what the model got and gave in a file.

    Raises DataError where no row reaches the model, and what `check_model` raises.
    """
    job = resolve(job, machine)
    assert isinstance(job.compute.devices, tuple)
    plan = prepare(job).plan
    start = Start(
        job=job.to_message(),
        schema=plan.schema,
        run="canary",
        worker=0,
        device=job.compute.devices[0],
        threads=int(job.compute.threads),
        concurrency=1,
        memory_bytes=int(job.compute.host_memory),
        layout=asdict(plan.layout(job.output.path)),
        metadata={},
        purpose="canary",
        canary=path,
    )
    _ask(start, (Assign(unit=plan.unit(0)), Stop(drain=True)), None)


def _ask(start: Start, more: Sequence[Message], standby: Standby | None) -> Ready:
    """Start a worker, say what it needs to know, and wait for its end. Raises what it found wrong."""
    worker = (standby.take() if standby is not None else None) or ProcessWorker(environment={})
    tail = LineTail()
    answer: Ready | Failed | None = None
    try:
        for message in (start, *more):
            worker.channel.send(message)
        while (messages := worker.channel.receive()) is not None:
            for message in messages:
                if isinstance(message, (Ready, Failed)):
                    answer = message
        code = worker.exit_code(_START_S)
    finally:
        worker.kill()
        worker.exit_code(_START_S)
        worker.drain(tail)
        worker.close()
    if isinstance(answer, Failed):
        raise from_message(asdict(answer))
    if answer is None:
        said = "\n".join(f"    {line}" for line in list(tail.lines)[-8:])
        raise BatchinferError(f"loading the model ended the process ({died_of(code or 0)})\n{said}")
    return answer
