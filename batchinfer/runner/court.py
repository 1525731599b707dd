"""Who is to blame for a worker's death: a row, its device, or nobody yet."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchinfer.device_faults import harm_of
from batchinfer.runner.circuit import Circuits
from batchinfer.runner.endings import ending
from batchinfer.runner.inquest import Findings, Inquest

if TYPE_CHECKING:
    from batchinfer.data import Unit
    from batchinfer.runner.member import Member
    from batchinfer.runner.messages import Assign

_UP_TO_MODEL = ("preprocess", "model")
_NOTHING = Findings(is_told=False, said=(), elsewhere=())


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a worker ended; why its device is not to be trusted any more, if so; and what is known of rows."""

    how: str
    distrust: str | None
    found: Findings


class Court:
    """Judges deaths, by what workers had in hand and by what became of their units elsewhere."""

    def __init__(self, devices: Iterable[str]) -> None:
        self.circuits = Circuits(devices)
        self._inquest = Inquest()

    def death(self, member: Member, code: int) -> Verdict:
        """Judge the end of a worker. Raises an error that it told and that is about the job."""
        now = time.monotonic()
        stalled_s = member.watchdog.silent_s(now) if member.stalled_at is not None else None
        how, cause = ending(
            code, member.failure, stalled_s, has_begun=member.ready, no_memory=member.no_memory
        )
        if member.stopping:
            return Verdict(how, None, _NOTHING)
        fault, device = member.failure.fault if member.failure is not None else "", member.start.device
        distrust = self.circuits.fault(device, fault, now)
        if harm_of(fault) == "device":
            return Verdict(how, distrust, _NOTHING)
        # SIGKILL comes from outside: from a person, or from the kernel, whose memory ran out.
        is_suspect = code != -signal.SIGKILL or stalled_s is not None
        self._inquest.passed(member.passed)
        found = self._inquest.hear(
            member.in_hand,
            member.assigned,
            how=how,
            code=cause,
            device=device,
            has_others=is_suspect and self.circuits.has_others(device),
        )
        return Verdict(how, distrust, found)

    def computed(self, num_batches: int) -> None:
        """Note that the model has computed batches: who dies there dies of some rows, not of all."""
        self._inquest.passed(_UP_TO_MODEL if num_batches else ())

    def brief(self, assign: Assign) -> Assign:
        """Add what is known of a unit to its assignment."""
        return self._inquest.brief(assign)

    def done(self, unit: int, device: str) -> Iterator[tuple[str, str]]:
        """Note that a unit is committed by a worker on a device. Yields each other device that is not to be
        trusted now, and why: workers died there on units that others did."""
        for other in self._inquest.close(unit, device):
            why = None if self.circuits.is_open(other) else self.circuits.charge(other, time.monotonic())
            if why is not None:
                yield other, why


def first_unit(member: Member) -> Unit | None:
    """Return the unit that a worker was at, as far as its parent knows."""
    return next(iter(member.assigned.values()), None)
