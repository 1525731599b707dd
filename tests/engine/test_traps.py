"""Fourteen ways in which a fast pipeline loses data without a word: each is shut, and each test fails on a
pipeline that has it open. Rings have random sizes, because with equal ones a wait hides another."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from batchinfer.engine import rings
from batchinfer.engine.ring_pipeline import RingPipeline
from batchinfer.engine.rings import Layout, RingSizes
from batchinfer.testing import LazyDevice
from tests.engine.bugs import BUGS, StaleTail
from tests.engine.harness import Model, ReusingModel, drive, host_batch, make_batches, num_wrong, run

DRAWS = 100


@pytest.mark.parametrize("model", [Model, ReusingModel])
def test_no_false_alarm(model: type[Model]) -> None:
    """Over random ring sizes and both orders of a lazy device, every result is right (traps 1 to 9)."""
    for seed in range(DRAWS):
        results = run(random.Random(seed), model=model())
        assert num_wrong(results) == 0, f"draw {seed}"


@pytest.mark.parametrize("name", BUGS)
def test_every_mistake_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traps 1 to 9: with one wait or one copy less, results are wrong in some of the same draws."""
    bug = BUGS[name]

    def is_seen(seed: int) -> bool:
        """Tell whether a draw gives wrong results."""
        monkeypatch.setattr(rings, "Slot", bug.slots())
        model = ReusingModel() if bug.needs_reuse else Model()
        return num_wrong(run(random.Random(seed), device=bug.device, model=model)) > 0

    assert any(is_seen(seed) for seed in range(DRAWS))


def test_one_copy_each_way_for_a_batch() -> None:
    """Trap 9: all inputs lie in one slot at aligned offsets, and one copy moves them; so do all results."""
    copies: list[tuple[str, int]] = []

    class Counting(LazyDevice):
        """Notes every copy."""

        def upload(self, into: Any, source: Any, num_bytes: int, stream: Any) -> None:
            """Copy up."""
            copies.append(("up", num_bytes))
            super().upload(into, source, num_bytes, stream)

        def download(self, into: Any, source: Any, num_bytes: int, stream: Any) -> None:
            """Copy down."""
            copies.append(("down", num_bytes))
            super().download(into, source, num_bytes, stream)

    batch = host_batch({"x": np.ones((5, 3), np.float32), "ids": np.ones((5, 7), np.int64)})
    pipeline = RingPipeline(Model(), Counting(), RingSizes())
    drive(pipeline, [batch], ahead=0, flying=0)
    assert copies == [("up", 256 + 512), ("down", 256 + 512)]
    layout = Layout.of([("a", np.dtype("uint8"), (3,)), ("b", np.dtype("float64"), (2, 2))])
    assert [piece.offset for piece in layout.pieces] == [0, 256]


class Centred(Model):
    """y = x minus the largest of the batch: a row that is not of the batch changes all others."""

    def forward(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Compute a batch."""
        return {"y": tensors["x"] - tensors["x"].max(initial=-np.inf)}


def shrinking(device: LazyDevice, seed: int) -> int:
    """Run batches of falling sizes and numbers; return how many came out wrong."""
    rng = random.Random(seed)
    sizes = sorted((rng.randint(1, 40) for _ in range(12)), reverse=True)
    batches = [
        host_batch({"x": np.arange(size, dtype=np.float64) - 100.0 * at}) for at, size in enumerate(sizes)
    ]
    pipeline = RingPipeline(Centred(), device, RingSizes(device_in=rng.randint(1, 3), pinned_out=4))
    outputs = drive(pipeline, batches, ahead=rng.randint(0, 3), flying=rng.randint(0, 3))
    return sum(
        not np.array_equal(output.tensors["y"], Centred().forward(batch.tensors)["y"])
        for batch, output in zip(batches, outputs, strict=True)
    )


def test_a_shorter_batch_has_no_tail() -> None:
    """Trap 11: the model sees a batch's own rows, and none that a longer one left in the slot."""
    assert [shrinking(LazyDevice(is_racing=seed % 2 == 0), seed) for seed in range(20)] == [0] * 20
    assert all(shrinking(StaleTail(), seed) > 0 for seed in range(20))


def test_results_stay_what_they_are() -> None:
    """Trap 7: what a hundred later batches do to the rings does not change a result that was kept."""
    rng = random.Random(3)
    pipeline = RingPipeline(Model(), LazyDevice(), RingSizes(pinned_in=3, pinned_out=3))
    batches = make_batches(rng, 100)
    first, *_ = drive(pipeline, batches[:1], ahead=0, flying=0)
    kept = {name: value.copy() for name, value in first.tensors.items()}
    drive(pipeline, batches, ahead=2, flying=2)
    for name, value in kept.items():
        np.testing.assert_array_equal(first.tensors[name], value)
        assert first.tensors[name].flags.owndata
