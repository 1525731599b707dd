"""The pipeline with one mistake in it: each is a way in which published pipelines have lost data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from batchinfer.engine.rings import Piece, Slot, State
from batchinfer.testing import LazyDevice


def no_device_wait(ring: str, state: State) -> type[Slot]:
    """Return slots that a stream takes over without waiting for the last use."""

    class Hasty(Slot):
        """A slot without one wait."""

        def begin(self, new: State, stream: Any) -> None:
            """Give the slot to a stream."""
            if (self.ring, new) == (ring, state):
                self.move(new)
            else:
                super().begin(new, stream)

    return Hasty


def no_host_wait(ring: str) -> type[Slot]:
    """Return slots that the host takes over without waiting for the device."""

    class Hasty(Slot):
        """A slot without one wait."""

        def settle(self) -> None:
            """Believe that the device is done."""
            if self.ring == ring:
                self.event = None
            else:
                super().settle()

    return Hasty


def known_by_first_address() -> type[Slot]:
    """Return slots of which only the first one's uploads are known: a tracker that looks an address up among
    the beginnings of allocations does not find those inside."""
    first: list[Slot] = []

    class Unknown(Slot):
        """A slot that may lie inside an allocation."""

        def settle(self) -> None:
            """Wait, if the address is known."""
            first[:] = first or [self]
            if self.ring == "pinned_in" and self is not first[0]:
                self.event = None
            else:
                super().settle()

    return Unknown


class Aliasing(Slot):
    """A slot whose results are views of it."""

    def read(self, piece: Piece) -> np.ndarray[Any, Any]:
        """Return a view."""
        return piece.of(self.buffer.array)


class Elsewhere(LazyDevice):
    """Copies results on the stream of the downloads, and lets go of the model's memory at once."""

    def store(self, into: Any, piece: Piece, value: Any, stream: Any) -> None:
        """Queue the copy on another stream, after the model."""
        other = self.streams[2]
        other.wait(stream.record())
        super().store(into, piece, value, other)


class KeptElsewhere(Elsewhere):
    """The same, but holds on to the model's memory."""

    def store(self, into: Any, piece: Piece, value: Any, stream: Any) -> None:
        """Queue the copy on another stream, and keep the result for good."""
        super().store(into, piece, value, stream)
        self.kept = [*getattr(self, "kept", []), value]


class StaleTail(LazyDevice):
    """Gives the model the input of the largest batch so far, of which a smaller one fills the beginning."""

    def __init__(self, *, is_racing: bool = False) -> None:
        super().__init__(is_racing=is_racing)
        self._most = 0
        self._rows = 0

    def view(self, buffer: Any, piece: Piece) -> np.ndarray[Any, Any]:
        """Return more rows than the batch has."""
        self._rows, self._most = piece.shape[0], max(self._most, piece.shape[0])
        whole = Piece(piece.name, piece.dtype, (self._most, *piece.shape[1:]), piece.offset)
        return super().view(buffer, whole)

    def forward(self, backend: Any, tensors: Mapping[str, Any], stream: Any) -> Mapping[str, Any]:
        """Run the model, and keep only the rows of the batch."""
        rows = self._rows

        class Cut:
            """The model, cut to the batch."""

            def forward(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
                """Compute all, return some."""
                return {name: value[:rows] for name, value in backend.forward(tensors).items()}

        # A shape is tried once: let every number of rows be a shape of its own.
        self._tried.clear()
        cut: Any = Cut()
        return super().forward(cut, tensors, stream)


class Bug(NamedTuple):
    """A mistake: the slots or the device that make it, and whether only a model shows it that uses its memory
    again."""

    slots: Callable[[], type[Slot]] = lambda: Slot
    device: type[LazyDevice] = LazyDevice
    needs_reuse: bool = False


BUGS = {
    "1 pinned_in refilled before its upload": Bug(lambda: no_host_wait("pinned_in")),
    "2 model before upload": Bug(lambda: no_device_wait("device_in", State.COMPUTE)),
    "3 device_in overwritten under the model": Bug(lambda: no_device_wait("device_in", State.UPLOAD)),
    "4 download before model": Bug(lambda: no_device_wait("device_out", State.DOWNLOAD)),
    "5 device_out overwritten under its download": Bug(lambda: no_device_wait("device_out", State.COMPUTE)),
    "5 results downloaded from a graph's memory": Bug(device=KeptElsewhere, needs_reuse=True),
    "6 pinned_out read before its download": Bug(lambda: no_host_wait("pinned_out")),
    "7 results alias a slot": Bug(lambda: Aliasing),
    "8 freed memory used by another stream": Bug(device=Elsewhere),
    "9 uploads known by first address": Bug(known_by_first_address),
}
