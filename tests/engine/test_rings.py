"""Slots move along their map and no other way; buffers grow with the batches, within their budget."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batchinfer.engine.ring_pipeline import RingPipeline
from batchinfer.engine.rings import (
    DEVICE_IN,
    DEVICE_OUT,
    PINNED_IN,
    PINNED_OUT,
    Moves,
    Ring,
    RingSizes,
    Slot,
    State,
)
from batchinfer.errors import BatchinferError, DataError, DeviceError
from batchinfer.testing import LazyDevice
from tests.engine.harness import Model, drive, host_batch, make_batches, num_wrong

KIB = 1024


@pytest.mark.parametrize(
    ("moves", "way"),
    [
        (PINNED_IN, "free filling ready upload free"),
        (PINNED_IN, "free filling ready free"),
        (DEVICE_IN, "free upload compute upload"),
        (DEVICE_OUT, "free compute download compute"),
        (PINNED_OUT, "free download reading free"),
    ],
)
def test_slots_keep_to_their_way(moves: Moves, way: str) -> None:
    """At every step of its way a slot takes the next one, and refuses all that are not on the map."""
    states = [State(word) for word in way.split()]
    for at, new in enumerate(states[1:], start=1):
        for wrong in set(State) - moves[states[at - 1]]:
            slot = Slot("ring", moves)
            for state in states[1:at]:
                slot.move(state)
            with pytest.raises(BatchinferError, match=f"cannot go from {slot.state.value} to {wrong.value}"):
                slot.move(wrong)
        assert new in moves[states[at - 1]]


def test_the_host_does_not_take_what_the_device_has() -> None:
    """A slot goes to the host only once somebody waited for the device."""
    stream = LazyDevice().stream()
    slot = Slot("pinned_out", PINNED_OUT)
    slot.begin(State.DOWNLOAD, stream)
    slot.used(stream.record())
    with pytest.raises(BatchinferError, match="pinned_out is reading before the device has let it go"):
        slot.move(State.READING)
    slot.settle()
    slot.move(State.READING)


def test_a_slot_is_written_and_read_only_in_its_time() -> None:
    """Nobody writes a slot that is ready, or reads one that is on its way."""
    slot = Slot("ring", PINNED_IN)
    piece: Any = None
    with pytest.raises(BatchinferError, match="is free, and cannot be written"):
        slot.write(piece, np.ones(1))
    with pytest.raises(BatchinferError, match="is free, and cannot be read"):
        slot.read(piece)


def host_ring(num_slots: int, budget: int) -> Ring:
    """Return a ring of host buffers."""
    device = LazyDevice()
    return Ring(
        "pinned_out",
        PINNED_OUT,
        num_slots,
        allocate=device.host_buffer,
        recycle=device.recycle,
        budget=budget,
    )


def test_a_ring_that_is_too_small_says_so() -> None:
    """More batches under way than slots is an error, not a wait that nobody ends."""
    ring = host_ring(2, budget=1 << 20)
    stream = LazyDevice().stream()
    for _ in range(2):
        ring.acquire(10).begin(State.DOWNLOAD, stream)
    with pytest.raises(
        BatchinferError, match="all 2 slots of pinned_out are in use: the next one is download"
    ):
        ring.acquire(10)


def test_buffers_grow_and_stay() -> None:
    """A slot takes the size of the largest batch so far, and is then not allocated again."""
    ring = host_ring(2, budget=1 << 30)
    first = ring.acquire(10)
    assert first.capacity == 64 * KIB
    second = ring.acquire(200 * KIB)
    assert second.capacity == 256 * KIB
    buffer = second.buffer
    assert ring.acquire(70 * KIB) is first
    assert first.capacity == 256 * KIB
    assert ring.acquire(256 * KIB).buffer is buffer


def test_a_ring_keeps_to_its_budget() -> None:
    """However sizes come, slots that are idle give up what the next one needs; one batch is always taken."""
    rng = random.Random(5)
    ring = host_ring(3, budget=512 * KIB)
    for _ in range(300):
        wanted = rng.choice([1, 60, 100, 250, 500, 900]) * KIB
        slot = ring.acquire(wanted)
        assert slot.capacity >= wanted
        assert ring.num_bytes <= max(512 * KIB, 960 * KIB)
    for _ in range(6):
        slot = ring.acquire(60 * KIB)
    assert ring.num_bytes <= 512 * KIB, "what one large batch needed is given back"


def test_a_tight_budget_does_not_allocate_again_and_again() -> None:
    """Where the budget holds fewer batches than there are slots, buffers go from slot to slot; as many are
    allocated as were ever in use at once."""
    sizes: list[int] = []
    device = LazyDevice()
    stream = device.stream()

    def allocate(num_bytes: int) -> Any:
        sizes.append(num_bytes)
        return device.host_buffer(num_bytes)

    ring = Ring("pinned_in", PINNED_IN, 8, allocate=allocate, recycle=device.recycle, budget=500 * KIB)
    under_way: deque[Slot] = deque()
    for _ in range(100):
        slot = ring.acquire(300 * KIB)
        slot.move(State.FILLING)
        slot.move(State.READY)
        under_way.append(slot)
        if len(under_way) == 3:
            first = under_way.popleft()
            first.begin(State.UPLOAD, stream)
            first.used(stream.record())
    assert len(sizes) == 3
    assert ring.num_bytes == sum(sizes)


def test_batches_far_larger_than_the_rings() -> None:
    """Sizes that jump by a factor of ten thousand, far above the budget, come out right."""
    rng = random.Random(7)
    batches = []
    for number in range(30):
        rows = rng.choice([1, 3, 1000, 30_000])
        x = rng.random() + np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
        batches.append(host_batch({"x": x, "ids": np.full((rows, 2), number, np.int64)}))
    sizes = RingSizes(
        pinned_in=3, device_in=2, device_out=2, pinned_out=3, host_bytes=300 * KIB, device_bytes=300 * KIB
    )
    pipeline = RingPipeline(Model(), LazyDevice(is_racing=True), sizes)
    outputs = drive(pipeline, batches, ahead=2, flying=2)
    assert num_wrong(list(zip(batches, outputs, strict=True))) == 0


class Mixed(Model):
    """Text goes in and out beside numbers."""

    def forward(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Compute a batch."""
        texts: list[str] = tensors["text"].to_pylist()
        return {"shout": pa.array([text.upper() for text in texts]), "y": tensors["x"] + 1}


def test_text_passes_by_the_rings() -> None:
    """Arrow columns reach the model as they are, and what it makes on the host comes out as it is."""
    batches = [
        host_batch({"text": pa.array([f"row {at}"] * 3), "x": np.full((3, 2), at, np.float32)})
        for at in range(9)
    ]
    pipeline = RingPipeline(Mixed(), LazyDevice(), RingSizes(pinned_in=2, device_in=1, pinned_out=2))
    for at, output in enumerate(drive(pipeline, batches, ahead=1, flying=1)):
        assert output.tensors["shout"].tolist() == [f"ROW {at}"] * 3
        np.testing.assert_array_equal(output.tensors["y"], np.full((3, 2), at + 1, np.float32))


def test_a_batch_that_is_not_needed_gives_its_slot_back() -> None:
    """Batches that were staged and are led past the device leave room for the next."""
    pipeline = RingPipeline(Model(), LazyDevice(), RingSizes(pinned_in=2))
    for batch in make_batches(random.Random(2), 10):
        pipeline.discard(pipeline.stage(batch))


def test_columns_without_numbers_and_batches_without_rows() -> None:
    """An empty batch meets no device; tensors with no values in them are tensors all the same."""
    pipeline = RingPipeline(Model(), LazyDevice(), RingSizes())
    empty = host_batch({"x": np.empty((0, 3), np.float32), "ids": np.empty((0, 2), np.int64)})
    hollow = host_batch({"x": np.empty((2, 0), np.float32), "ids": np.ones((2, 1), np.int64)})
    first, second = drive(pipeline, [empty, hollow], ahead=1, flying=1)
    assert first.tensors == {}
    assert (second.tensors["y"].shape, second.tensors["same"].tolist()) == ((2, 0), [[1], [1]])


class Failing(Model):
    """Refuses batches with a negative number."""

    def forward(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Compute a batch."""
        if (tensors["x"] < 0).any():
            raise DataError("the model refused a batch")
        return super().forward(tensors)


class Prompt(LazyDevice):
    """A device on which a model's own checks come before anything is queued."""

    def forward(self, backend: Any, tensors: Mapping[str, Any], stream: Any) -> Mapping[str, Any]:
        """Look at the inputs first."""
        stream.record().synchronize()
        backend.forward(tensors)
        return super().forward(backend, tensors, stream)


def test_after_a_refused_batch_the_next_one_is_computed() -> None:
    """An error of `submit` leaves the rings as they were: the batch can be cut and tried again."""
    pipeline = RingPipeline(
        Failing(), Prompt(), RingSizes(pinned_in=1, device_in=1, device_out=1, pinned_out=1)
    )
    good, bad = make_batches(random.Random(1), 2)
    wrong = host_batch({**bad.tensors, "x": -1 - bad.tensors["x"]})
    for _ in range(4):
        with pytest.raises(DataError, match="refused"):
            pipeline.submit(pipeline.stage(wrong))
        (output,) = drive(pipeline, [good], ahead=0, flying=0)
        assert num_wrong([(good, output)]) == 0


def test_errors_of_the_device_surface_where_somebody_waits() -> None:
    """What fails on the device is raised by `collect`, as it was raised there, or as an error of the device."""
    good, bad = make_batches(random.Random(1), 2)
    wrong = host_batch({**bad.tensors, "x": -1 - bad.tensors["x"]})
    pipeline = RingPipeline(Failing(), LazyDevice(), RingSizes())
    first, second = pipeline.submit(good), pipeline.submit(wrong)
    assert num_wrong([(good, pipeline.collect(first))]) == 0
    with pytest.raises(DataError, match="refused"):
        pipeline.collect(second)

    class AcceleratorError(RuntimeError):
        """As torch calls it."""

    class Broken(LazyDevice):
        """A device whose downloads fail."""

        def download(self, into: Any, source: Any, num_bytes: int, stream: Any) -> None:
            """Queue a failure."""

            def fail() -> None:
                raise AcceleratorError("CUDA error: an illegal memory access\nmore")

            stream.enqueue(fail)

    pipeline = RingPipeline(Model(), Broken(), RingSizes())
    with pytest.raises(
        DeviceError, match="the device failed: AcceleratorError: CUDA error: an illegal memory access"
    ):
        pipeline.collect(pipeline.submit(good))


def test_times_are_those_of_the_host() -> None:
    """A batch says when it began and how long it took, by the clock of everybody else."""
    pipeline = RingPipeline(Model(), LazyDevice(), RingSizes())
    before = time.perf_counter()
    outputs = drive(pipeline, make_batches(random.Random(4), 20), ahead=3, flying=3)
    after = time.perf_counter()
    for output in outputs:
        assert before <= output.started <= output.started + output.compute_s <= after
        assert output.compute_s > 0
