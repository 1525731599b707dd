"""The four rings of buffers between host and device, and the one rule by which a buffer is used again.

    pinned_in   FREE → FILLING → READY → UPLOAD → FREE       the host waits for the upload
    device_in   FREE → UPLOAD → COMPUTE → UPLOAD …           the upload waits for the model
    device_out  FREE → COMPUTE → DOWNLOAD → COMPUTE …        the model waits for the download
    pinned_out  FREE → DOWNLOAD → READING → FREE             the host waits for the download

Whoever takes a slot over waits for the event after its last use: a stream in `Slot.begin`, the host in
`Slot.settle`. Nothing else orders host and device, and a move that is not on the map raises.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from batchinfer.errors import BatchinferError

if TYPE_CHECKING:
    from batchinfer.engine.runtime import Event, Runtime, Stream

_ALIGNMENT = 256
_GRANULE = 64 * 1024


class State(enum.Enum):
    """Who has a slot."""

    FREE = "free"
    FILLING = "filling"
    READY = "ready"
    UPLOAD = "upload"
    COMPUTE = "compute"
    DOWNLOAD = "download"
    READING = "reading"


Moves = Mapping[State, frozenset[State]]


def _moves(text: str) -> Moves:
    """Read `free>filling filling>ready|free`."""
    pairs = (move.split(">") for move in text.split())
    return {State(old): frozenset(State(new) for new in news.split("|")) for old, news in pairs}


PINNED_IN = _moves("free>filling filling>ready|free ready>upload|free upload>free")
DEVICE_IN = _moves("free>upload upload>compute compute>upload|free")
DEVICE_OUT = _moves("free>compute compute>download download>compute|free")
PINNED_OUT = _moves("free>download download>reading reading>free")
_ON_HOST = frozenset({State.FREE, State.FILLING, State.READY, State.READING})


@dataclass(frozen=True, slots=True)
class Piece:
    """Where a tensor lies in a slot."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def of(self, memory: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """View this piece of some bytes, without a copy."""
        return memory[self.offset : self.offset + self.num_bytes].view(self.dtype).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Layout:
    """The tensors of one batch, one behind the other: one copy moves them all."""

    pieces: tuple[Piece, ...]
    num_bytes: int

    @classmethod
    def of(cls, tensors: Iterable[tuple[str, np.dtype[Any], tuple[int, ...]]]) -> Layout:
        """Lay out tensors of these names, dtypes and shapes, each at a multiple of 256 bytes."""
        pieces, at = [], 0
        for name, dtype, shape in tensors:
            piece = Piece(name, dtype, shape, at)
            pieces.append(piece)
            at += max(-(-piece.num_bytes // _ALIGNMENT), 1) * _ALIGNMENT
        return cls(tuple(pieces), at)


class Slot:
    """A buffer of a ring. `event` is the point after its last use by the device; None once the host knows
    that it has passed."""

    def __init__(self, ring: str, moves: Moves) -> None:
        self.ring = ring
        self.state = State.FREE
        self.event: Event | None = None
        self.buffer: Any = None
        self.capacity = 0
        self._moves = moves

    def move(self, state: State) -> None:
        """Give the slot on. Raises BatchinferError for a move that is not on the map, and for one to the
        host while the device may still use the slot."""
        if state not in self._moves[self.state]:
            raise BatchinferError(f"a slot of {self.ring} cannot go from {self.state.value} to {state.value}")
        if state in _ON_HOST and self.event is not None:
            raise BatchinferError(f"a slot of {self.ring} is {state.value} before the device has let it go")
        self.state = state

    def begin(self, state: State, stream: Stream) -> None:
        """Give the slot to a stream, which first waits for the last use."""
        self.move(state)
        if self.event is not None:
            stream.wait(self.event)

    def used(self, event: Event) -> None:
        """Take note that the use under way ends with `event`."""
        self.event = event

    def settle(self) -> None:
        """Wait here until the device has let the slot go."""
        if self.event is not None:
            self.event.synchronize()
            self.event = None

    def write(self, piece: Piece, column: np.ndarray[Any, Any]) -> None:
        """Copy a tensor to its place. Only while the slot is being filled."""
        if self.state is not State.FILLING:
            raise BatchinferError(f"a slot of {self.ring} is {self.state.value}, and cannot be written")
        np.copyto(piece.of(self.buffer.array), column)

    def read(self, piece: Piece) -> np.ndarray[Any, Any]:
        """Return a copy of a tensor, which outlives the slot's next use. Only while the slot is read."""
        if self.state is not State.READING:
            raise BatchinferError(f"a slot of {self.ring} is {self.state.value}, and cannot be read")
        return piece.of(self.buffer.array).copy()


class Ring:
    """Slots that are used in turn. Buffers are allocated when a batch first needs them, and kept.

    A batch larger than its slot gets a larger buffer; where all would take more than `budget` bytes, idle
    slots give theirs. One batch is always admitted. One thread acquires; others may move the
    slots that they were given.
    """

    def __init__(
        self,
        name: str,
        moves: Moves,
        num_slots: int,
        *,
        allocate: Callable[[int], Any],
        recycle: Callable[[Any], None] | None,
        budget: int,
    ) -> None:
        self.name = name
        self._slots = [Slot(name, moves) for _ in range(num_slots)]
        self._last_states = frozenset(state for state, news in moves.items() if State.FREE in news)
        self._allocate = allocate
        self._recycle = recycle
        self._budget = budget
        self._largest = 0
        self._next = 0

    @property
    def num_bytes(self) -> int:
        """Bytes that all slots hold."""
        return sum(slot.capacity for slot in self._slots)

    def acquire(self, num_bytes: int) -> Slot:
        """Return a slot, with room for so many bytes: FREE on the host; on a device as its last use has left
        it, which `Slot.begin` waits for. It is the next one in turn, unless that still has its batch while
        pieces of a later one, which failed, come and go.

        Never waits for another thread. Raises BatchinferError where more batches are under way than slots.
        """
        count = len(self._slots)
        in_turn = [(self._next + at) % count for at in range(count)]
        place = next((place for place in in_turn if self._is_idle(self._slots[place])), None)
        if place is None:
            state = self._slots[self._next].state.value
            raise BatchinferError(f"all {count} slots of {self.name} are in use: the next one is {state}")
        slot = self._slots[place]
        self._next = (place + 1) % count
        self._largest = max(self._largest, num_bytes)
        if self._recycle is not None:
            self._reclaim(slot)
        if slot.capacity < num_bytes:
            self._grow(slot, num_bytes)
        return slot

    def free(self, slot: Slot) -> None:
        """Take a slot back whose content nobody needs, and that the device does not use."""
        if self._recycle is not None and slot.buffer is not None:
            self._recycle(slot.buffer)
        slot.move(State.FREE)

    def _is_idle(self, slot: Slot) -> bool:
        """Tell whether only the device may still use a slot, and has been told when that ends."""
        ended = slot.state in self._last_states and slot.event is not None
        return slot.state is State.FREE or (ended and slot.state not in _ON_HOST)

    def _reclaim(self, slot: Slot) -> None:
        slot.settle()
        if slot.state is not State.FREE:
            self.free(slot)

    def _grow(self, slot: Slot, num_bytes: int) -> None:
        """Give a slot a larger buffer: as large as any so far, if there is room for all of that size; a new
        one within the budget, else that of an idle slot."""
        self._reclaim(slot)
        wanted = max(num_bytes, min(self._largest, self._budget // len(self._slots)))
        wanted = -(-wanted // _GRANULE) * _GRANULE
        others = self._idle_in_turn()
        self._make_room(slot, wanted, [other for other in others if other.capacity > 2 * wanted])
        if not self._has_room(slot, wanted):
            for other in others:
                if other.capacity >= num_bytes:
                    self._reclaim(other)
                    slot.buffer, other.buffer = other.buffer, slot.buffer
                    slot.capacity, other.capacity = other.capacity, slot.capacity
                    return
        self._make_room(slot, wanted, others)
        self._give_up(slot)
        slot.buffer = self._allocate(wanted)
        slot.capacity = wanted

    def _idle_in_turn(self) -> list[Slot]:
        """Return the idle slots that hold a buffer, the one that was used longest ago first."""
        count = len(self._slots)
        in_turn = (self._slots[(self._next + at) % count] for at in range(count - 1))
        return [slot for slot in in_turn if slot.capacity and self._is_idle(slot)]

    def _has_room(self, slot: Slot, wanted: int) -> bool:
        return self.num_bytes - slot.capacity + wanted <= self._budget

    def _make_room(self, slot: Slot, wanted: int, others: list[Slot]) -> None:
        for other in sorted(others, key=lambda other: -other.capacity):
            if not self._has_room(slot, wanted):
                self._give_up(other)

    def _give_up(self, slot: Slot) -> None:
        """Drop a buffer, once nothing on the device refers to it."""
        self._reclaim(slot)
        slot.buffer, slot.capacity = None, 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RingSizes:
    """Slots of each ring, and bytes that all slots of one may hold: on the host, and on the device.

    `pinned_in` is two more than the batches that may be staged ahead of the device, `pinned_out` two more
    than those that may be submitted and not yet collected: so nobody waits for another thread's slot.
    """

    pinned_in: int = 18
    device_in: int = 3
    device_out: int = 3
    pinned_out: int = 8
    host_bytes: int = 256 * 1024 * 1024
    device_bytes: int = 1024 * 1024 * 1024


class Rings:
    """The rings of one device. `direct` serves batches that were not staged ahead."""

    def __init__(self, runtime: Runtime, sizes: RingSizes) -> None:
        def host(name: str, moves: Moves, num_slots: int) -> Ring:
            return Ring(
                name,
                moves,
                num_slots,
                allocate=runtime.host_buffer,
                recycle=runtime.recycle,
                budget=sizes.host_bytes,
            )

        def device(name: str, moves: Moves, num_slots: int) -> Ring:
            return Ring(
                name,
                moves,
                num_slots,
                allocate=runtime.device_buffer,
                recycle=None,
                budget=sizes.device_bytes,
            )

        self.pinned_in = host("pinned_in", PINNED_IN, sizes.pinned_in)
        self.direct = host("direct", PINNED_IN, sizes.device_in)
        self.device_in = device("device_in", DEVICE_IN, sizes.device_in)
        self.device_out = device("device_out", DEVICE_OUT, sizes.device_out)
        self.pinned_out = host("pinned_out", PINNED_OUT, sizes.pinned_out)
