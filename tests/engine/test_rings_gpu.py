"""The traps on a GPU, with delays in its streams: the same mistakes lose the same data there.

The launching thread runs in torch's sync debug mode, in which anything that waits for the device raises.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from batchinfer.data import HostBatch
from batchinfer.engine import rings
from batchinfer.engine.cuda_runtime import CudaRuntime
from batchinfer.engine.device import InFlight, overlap
from batchinfer.engine.ring_pipeline import RingPipeline
from batchinfer.engine.rings import RingSizes
from tests.engine.bugs import BUGS
from tests.engine.harness import draw_sizes, drive, host_batch, make_batches, num_wrong
from tests.engine.torch_harness import (
    Delayed,
    ElsewhereOnCuda,
    KeptElsewhereOnCuda,
    ReusingTorchModel,
    TorchModel,
    draw_slow,
    pinned,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

DRAWS = 12
DEVICES = {"8 freed memory used by another stream": ElsewhereOnCuda}
DEVICES |= {"5 results downloaded from a graph's memory": KeptElsewhereOnCuda}


class Strict(RingPipeline):
    """A pipeline whose `submit` may not wait."""

    def submit(self, batch: HostBatch) -> InFlight:
        """Queue a batch in sync debug mode."""
        torch.cuda.set_sync_debug_mode("error")
        try:
            return super().submit(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def wrong_batches(seed: int, device: type[Delayed], model: TorchModel) -> int:
    """Run batches over rings of random sizes on a device that is slow somewhere; count the wrong ones."""
    rng = random.Random(seed)
    sizes = draw_sizes(rng)
    batches = make_batches(rng, 16)
    pipeline = Strict(model, device(draw_slow(rng)), sizes)
    ahead, flying = rng.randint(0, sizes.pinned_in - 1), rng.randint(0, sizes.pinned_out - 1)
    outputs = drive(pipeline, batches, ahead=ahead, flying=flying)
    torch.cuda.synchronize()
    return num_wrong(list(zip(batches, outputs, strict=True)))


@pytest.mark.parametrize("model", [TorchModel, ReusingTorchModel])
def test_no_false_alarm(model: type[TorchModel]) -> None:
    """Traps 1 to 9: whichever stream is slow, every result is right."""
    assert [wrong_batches(seed, Delayed, model()) for seed in range(DRAWS)] == [0] * DRAWS


@pytest.mark.parametrize("name", BUGS)
def test_every_mistake_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traps 1 to 9: with one wait or one copy less, results are wrong in some of the draws."""
    bug = BUGS[name]

    def is_seen(seed: int) -> bool:
        """Tell whether a draw gives wrong results."""
        monkeypatch.setattr(rings, "Slot", bug.slots())
        model = ReusingTorchModel() if bug.needs_reuse else TorchModel()
        return wrong_batches(seed, DEVICES.get(name, Delayed), model) > 0

    assert any(is_seen(seed) for seed in range(4 * DRAWS))


def test_host_memory_is_registered() -> None:
    """Trap 9: mapped memory is page-locked for torch, also at an offset, and freed with its buffer."""
    runtime = CudaRuntime("cuda:0")
    for num_bytes in (64 * 1024, 40 * 1024 * 1024):
        buffer = runtime.host_buffer(num_bytes)
        assert buffer.array.nbytes == num_bytes
        assert pinned(buffer)


class Centred(TorchModel):
    """y = x minus the largest of the batch."""

    def forward(self, tensors: Any) -> dict[str, Any]:
        """Queue a batch."""
        return {"y": tensors["x"] - tensors["x"].max()}


def test_a_shorter_batch_has_no_tail() -> None:
    """Trap 11: the model sees a batch's own rows, and none that a longer one left in the slot."""
    batches = [host_batch({"x": np.arange(size) - 100.0 * size}) for size in range(40, 0, -1)]
    pipeline = Strict(Centred(), Delayed("upload"), RingSizes(device_in=2))
    for batch, output in zip(batches, drive(pipeline, batches, ahead=3, flying=3), strict=True):
        x: Any = batch.tensors["x"]
        np.testing.assert_array_equal(output.tensors["y"], x - x.max())


class Halves(TorchModel):
    """Gives what NumPy has no name for, in an order of its own."""

    def forward(self, tensors: Any) -> dict[str, Any]:
        """Queue a batch."""
        return {"y": tensors["x"].to(torch.bfloat16).t()}


def test_halves_become_floats() -> None:
    """bfloat16 leaves the device as float32, and a transposed result as what it is."""
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    pipeline = Strict(Halves(), CudaRuntime("cuda:0"), RingSizes())
    (output,) = drive(pipeline, [host_batch({"x": x})], ahead=0, flying=0)
    np.testing.assert_array_equal(output.tensors["y"], x.T)


def test_threads_as_in_a_worker() -> None:
    """Staging, launching and collecting in threads of their own, over sizes that grow; memory stays put."""
    rng = random.Random(9)
    batches = make_batches(rng, 300)
    pipeline = RingPipeline(TorchModel(), CudaRuntime("cuda:0"), RingSizes())
    outputs = list(overlap(pipeline.submit, pipeline.collect, batches, depth=2))
    assert num_wrong(list(zip(batches, outputs, strict=True))) == 0
    before = torch.cuda.memory_reserved()
    outputs = list(overlap(pipeline.submit, pipeline.collect, batches, depth=2))
    assert num_wrong(list(zip(batches, outputs, strict=True))) == 0
    assert torch.cuda.memory_reserved() == before
    assert all(output.compute_s >= 0 for output in outputs)


@pytest.mark.skipif("PYTORCH_NO_CUDA_MEMORY_CACHING" in os.environ, reason="this is that run")
def test_without_the_caching_allocator() -> None:
    """Trap 8: where memory goes back to the driver at once, results are the same."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-k", "false_alarm", __file__],
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
