"""The errors that a GPU's driver reports by number (Xid), counted while somebody watches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchinfer import hardware

if TYPE_CHECKING:
    from batchinfer.hardware import Gpu

_XID_EVENT = 0x08
_MOST_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Xids:
    """How many errors a GPU had, and the number of the last one."""

    count: int = 0
    last: int | None = None


class XidWatch:
    """Counts the Xid errors of some GPUs from now on. Never raises: a driver that reports none has none."""

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        self._nvml = hardware.nvml()
        self._cards: dict[str, str] = {}
        """The physical GPU of each: the driver reports what happens in a slice as its GPU's."""

        self._found: dict[str, Xids] = {}
        self._set = self._ask("nvmlEventSetCreate") if gpus else None
        for gpu in gpus if self._set is not None else ():
            self._watch(gpu.uuid)

    def _watch(self, uuid: str) -> None:
        handle = self._ask("nvmlDeviceGetHandleByUUID", uuid)
        card = self._ask("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", handle) or handle
        try:
            self._nvml.nvmlDeviceRegisterEvents(card, _XID_EVENT, self._set)
        except (self._nvml.NVMLError, AttributeError):
            return
        self._cards[uuid] = self._uuid(card)

    def poll(self) -> None:
        """Take in what was reported since the last time, without waiting."""
        for _ in range(_MOST_AT_ONCE if self._cards else 0):
            event = self._ask("nvmlEventSetWait_v2", self._set, 0)
            if event is None:
                return  # the usual time-out: there is no more
            card = self._uuid(event.device)
            before = self._found.get(card, Xids())
            self._found[card] = Xids(before.count + 1, int(event.eventData))

    def of(self, uuid: str) -> Xids | None:
        """Return the errors of a GPU, or of the one that a slice is of; None where nobody can tell."""
        card = self._cards.get(uuid)
        return None if card is None else self._found.get(card, Xids())

    def close(self) -> None:
        """Stop watching."""
        if self._set is not None:
            self._ask("nvmlEventSetFree", self._set)
            self._set, self._cards = None, {}

    def _uuid(self, handle: Any) -> str:
        return os.fsdecode(self._ask("nvmlDeviceGetUUID", handle) or "")  # older bindings give bytes

    def _ask(self, function: str, *args: Any) -> Any:
        return None if self._nvml is None else hardware.ask(self._nvml, function, *args)
