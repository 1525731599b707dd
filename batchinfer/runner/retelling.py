"""What observers hear of a worker's messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from batchinfer.events import (
    BatchFinished,
    EfficiencyMeasured,
    Event,
    Retried,
    StagesTimed,
    UnitCommitted,
    WorkerReady,
)
from batchinfer.runner.messages import Batches, Done, Measured, Message, Ready

if TYPE_CHECKING:
    from batchinfer.runner.member import Member


def events_of(member: Member, message: Message) -> Iterator[Event]:
    """Yield the events that a message of a worker stands for, in order."""
    match message:
        case Ready():
            yield WorkerReady(
                worker=member.index,
                device=member.start.device,
                load_s=message.load_s,
                pid=member.worker.pid,
                lanes=message.lanes,
                settings=message.settings,
            )
        case Batches():
            for note in message.notes:
                yield BatchFinished(
                    worker=member.index,
                    rows=note.rows,
                    compute_s=note.compute_s,
                    real_tokens=note.real_tokens,
                    padded_tokens=note.padded_tokens,
                    split=note.split,
                )
            yield StagesTimed(
                worker=member.index,
                seconds=message.stages,
                peak_bytes=message.peak_bytes,
                queue_bytes=message.queues,
            )
            if message.retries:
                yield Retried(worker=member.index, reasons=message.retries)
        case Measured():
            yield EfficiencyMeasured(
                worker=member.index,
                rows=message.rows,
                seconds=message.seconds,
                model_s=message.model_s,
            )
        case Done():
            yield UnitCommitted(worker=member.index, receipt=message.receipt)
        case _:
            pass
