"""Batches through four rings: one copy up, the model, one copy down, each on a stream of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from batchinfer.data import HostBatch, OutputBatch
from batchinfer.engine.device import InFlight
from batchinfer.engine.rings import Layout, Ring, Rings, RingSizes, Slot, State
from batchinfer.errors import BatchinferError
from batchinfer.user_code import device_error, told

if TYPE_CHECKING:
    from batchinfer.engine.runtime import Event, Runtime
    from batchinfer.protocols import Backend

_NUMBERS = "biuf"
_OLD_S = 60.0


@dataclass(frozen=True, slots=True)
class _Staged:
    """A batch whose numbers lie in a pinned slot. What is no tensor passes by, in host memory."""

    batch: HostBatch
    slot: Slot | None
    layout: Layout
    passing: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Computed:
    """What the model left in a slot of device_out, and what it gave in host memory."""

    slot: Slot | None
    layout: Layout
    passing: Mapping[str, Any]
    names: tuple[str, ...]
    uploaded: Event | None
    begin: Event
    end: Event


@dataclass(frozen=True, slots=True)
class _Flight:
    """Results on their way into a slot of pinned_out. They are there after `done`."""

    computed: _Computed
    slot: Slot | None
    done: Event


class RingPipeline:
    """Queues batches on a device: `stage` in one thread, `submit` in another, `collect` in a third.

    Batches are submitted in the order in which they were staged. At most `ahead` of them are staged and
    not yet taken up by `submit`, and `sizes.pinned_out` - 2 submitted and not yet taken up by `collect`.
    """

    def __init__(self, backend: Backend, runtime: Runtime, sizes: RingSizes) -> None:
        self.ahead = sizes.pinned_in - 2
        self._backend = backend
        self._runtime = runtime
        self._rings = Rings(runtime, sizes)
        self._uploads, self._computes, self._downloads = (runtime.stream() for _ in range(3))
        self._staged: dict[int, _Staged] = {}
        self._anchor = self._computes.record(timing=True)
        self._anchor.synchronize()
        self._anchored = time.perf_counter()

    def stage(self, batch: HostBatch) -> HostBatch:
        """Copy a batch's numbers into a pinned slot; waits for the upload that used the slot before."""
        if len(batch.rows):
            with _device_errors():
                self._staged[id(batch)] = self._fill(batch, self._rings.pinned_in)
        return batch

    def discard(self, batch: HostBatch) -> None:
        """Give back the slot of a batch that will not be submitted."""
        staged = self._staged.pop(id(batch), None)
        if staged is not None and staged.slot is not None:
            self._rings.pinned_in.free(staged.slot)

    def submit(self, batch: HostBatch) -> InFlight:
        """Queue upload, model and download. A batch that was not staged is copied here."""
        if not len(batch.rows):
            return InFlight(batch, {}, time.perf_counter())
        with _device_errors():
            staged = self._staged.pop(id(batch), None) or self._fill(batch, self._rings.direct)
            computed = self._compute(staged, *self._upload(staged))
            return InFlight(batch, {}, time.perf_counter(), flight=self._download(computed))

    def collect(self, inflight: InFlight) -> OutputBatch:
        """Wait for one batch's download, and copy its results out of the slot."""
        flight = inflight.flight
        if not isinstance(flight, _Flight):
            return OutputBatch(inflight.batch, {}, 0.0)
        computed, slot = flight.computed, flight.slot
        with _device_errors():
            self._wait(flight)
        found = dict(computed.passing)
        if slot is not None:
            slot.move(State.READING)
            found |= {piece.name: slot.read(piece) for piece in computed.layout.pieces}
            self._rings.pinned_out.free(slot)
        began = self._at(computed.begin)
        uploaded = self._at(computed.uploaded) if computed.uploaded is not None else 0.0
        seconds = self._runtime.elapsed_s(computed.begin, computed.end)
        outputs = {name: found[name] for name in computed.names}
        return OutputBatch(inflight.batch, outputs, seconds, started=began, uploaded=uploaded)

    def _fill(self, batch: HostBatch, ring: Ring) -> _Staged:
        tensors = {name: column for name, column in batch.tensors.items() if _is_tensor(column)}
        passing = {name: column for name, column in batch.tensors.items() if name not in tensors}
        layout = Layout.of((name, column.dtype, column.shape) for name, column in tensors.items())
        if not layout.pieces:
            return _Staged(batch, None, layout, passing)
        slot = ring.acquire(layout.num_bytes)
        slot.move(State.FILLING)
        for piece in layout.pieces:
            slot.write(piece, tensors[piece.name])
        slot.move(State.READY)
        return _Staged(batch, slot, layout, passing)

    def _upload(self, staged: _Staged) -> tuple[Slot | None, Event | None]:
        """Queue the one copy of a batch's inputs. Returns where they will be, and the event after it."""
        if staged.slot is None:
            return None, None
        into = self._rings.device_in.acquire(staged.layout.num_bytes)
        into.begin(State.UPLOAD, self._uploads)
        staged.slot.begin(State.UPLOAD, self._uploads)
        self._runtime.upload(into.buffer, staged.slot.buffer, staged.layout.num_bytes, self._uploads)
        uploaded = self._uploads.record(timing=True)
        into.used(uploaded)
        staged.slot.used(uploaded)
        return into, uploaded

    def _compute(self, staged: _Staged, source: Slot | None, uploaded: Event | None) -> _Computed:
        """Queue the model, and the copies of its results into the ring."""
        stream = self._computes
        inputs = dict(staged.passing)
        if source is not None:
            source.begin(State.COMPUTE, stream)
            inputs |= {piece.name: self._view(source, piece) for piece in staged.layout.pieces}
        begin = stream.record(timing=True)
        try:
            results = self._runtime.forward(
                self._backend, {name: inputs[name] for name in staged.batch.tensors}, stream
            )
            slot, layout = self._keep(results)
        finally:
            # Also after an error: what it queued before may still read its inputs.
            end = stream.record(timing=True)
            if source is not None:
                source.used(end)
        if slot is not None:
            slot.used(end)
        stored = {piece.name for piece in layout.pieces}
        passing = {name: value for name, value in results.items() if name not in stored}
        return _Computed(slot, layout, passing, tuple(results), uploaded, begin, end)

    def _view(self, source: Slot, piece: Any) -> Any:
        return self._runtime.view(source.buffer, piece)

    def _keep(self, results: Mapping[str, Any]) -> tuple[Slot | None, Layout]:
        """Queue copies of the results, where the model computes: what it does next to their memory, it does
        after them."""
        described = {name: self._runtime.describe(value) for name, value in results.items()}
        layout = Layout.of((name, *found) for name, found in described.items() if found is not None)
        if not layout.pieces:
            return None, layout
        slot = self._rings.device_out.acquire(layout.num_bytes)
        slot.begin(State.COMPUTE, self._computes)
        for piece in layout.pieces:
            self._runtime.store(slot.buffer, piece, results[piece.name], self._computes)
        return slot, layout

    def _download(self, computed: _Computed) -> _Flight:
        """Queue the one copy of a batch's results."""
        if computed.slot is None:
            return _Flight(computed, None, computed.end)
        into = self._rings.pinned_out.acquire(computed.layout.num_bytes)
        computed.slot.begin(State.DOWNLOAD, self._downloads)
        into.begin(State.DOWNLOAD, self._downloads)
        self._runtime.download(into.buffer, computed.slot.buffer, computed.layout.num_bytes, self._downloads)
        done = self._downloads.record(timing=True)
        computed.slot.used(done)
        into.used(done)
        return _Flight(computed, into, done)

    def _at(self, event: Event) -> float:
        """Return when an event passed, by `time.perf_counter`."""
        return self._anchored + self._runtime.elapsed_s(self._anchor, event)

    def _wait(self, flight: _Flight) -> None:
        """Wait, and set the device's clock by ours: a wait ends when the event happens."""
        had_to = not flight.done.query()
        if flight.slot is not None:
            flight.slot.settle()
        else:
            flight.done.synchronize()
        now = time.perf_counter()
        if had_to or now - self._anchored > _OLD_S:
            self._anchor, self._anchored = flight.done, now


@contextmanager
def _device_errors() -> Iterator[None]:
    """Turn what a device says of itself into a DeviceError. It may come late, and out of any call."""
    try:
        yield
    except BatchinferError:
        raise
    except Exception as error:
        if fault := device_error(error, f"the device failed: {told(error).splitlines()[0]}"):
            raise fault from error
        raise


def _is_tensor(column: Any) -> bool:
    return isinstance(column, np.ndarray) and column.dtype.kind in _NUMBERS
