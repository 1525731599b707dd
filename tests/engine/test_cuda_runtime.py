"""What the CUDA runtime asks of torch, on a machine without a GPU: the calls, not the device."""

from __future__ import annotations

import contextlib
import gc
import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from batchinfer.engine import cuda_runtime
from batchinfer.engine.cuda_runtime import CudaRuntime
from batchinfer.engine.ring_pipeline import RingPipeline
from batchinfer.engine.rings import RingSizes
from batchinfer.errors import DataError
from tests.engine.harness import drive, host_batch, make_batches, num_wrong
from tests.engine.torch_harness import TorchModel


class Event:
    """An event of a device that does everything at once."""

    def __init__(self, *, enable_timing: bool, blocking: bool) -> None:
        assert blocking
        self.timing = enable_timing

    def query(self) -> bool:
        """Tell that it has passed."""
        return True

    def synchronize(self) -> None:
        """Return."""

    def elapsed_time(self, later: Event) -> float:
        """Return milliseconds, as torch does, for timing events alone."""
        assert self.timing
        assert later.timing
        return 5.0


class Stream:
    """A stream in which nothing waits."""

    def __init__(self, device: Any) -> None:
        self.waits: list[Event] = []

    def record_event(self, event: Event) -> Event:
        """Return it."""
        return event

    def wait_event(self, event: Event) -> None:
        """Note it."""
        self.waits.append(event)


class Cudart:
    """CUDA's own functions: registers memory, or refuses."""

    cudaError = SimpleNamespace(success=0)  # noqa: N815 - CUDA's name

    def __init__(self) -> None:
        self.registered: dict[int, int] = {}

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:  # noqa: N802 - CUDA's name
        """Lock some memory."""
        assert flags == 0
        assert address not in self.registered
        self.registered[address] = num_bytes
        return 0

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802 - CUDA's name
        """Unlock it."""
        del self.registered[address]
        return 0


class OnCpu(CudaRuntime):
    """Takes tensors of the CPU for those of the device."""

    def _on_host(self, value: Any) -> Any:
        return value


@pytest.fixture
def cudart(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cudart]:
    """Let torch's CUDA functions work on the CPU."""
    assert {"record_event", "wait_event"} <= set(dir(torch.cuda.Stream))
    assert {"query", "synchronize", "elapsed_time"} <= set(dir(torch.cuda.Event))
    found = Cudart()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: found)
    for name in ("stream", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda _: contextlib.nullcontext())
    monkeypatch.setattr(cuda_runtime, "torch_device", lambda _: torch.device("cpu"))
    yield found
    gc.collect()
    assert found.registered == {}, "memory that is gone is still registered"


def test_batches_go_through(cudart: Cudart) -> None:
    """Views, copies and dtypes fit each other; memory is registered once, when it is first needed."""
    batches = make_batches(random.Random(1), 40)
    pipeline = RingPipeline(TorchModel(), OnCpu("cuda:0"), RingSizes(pinned_in=3, pinned_out=3))
    outputs = drive(pipeline, batches, ahead=2, flying=2)
    assert num_wrong(list(zip(batches, outputs, strict=True))) == 0
    assert len(cudart.registered) == 6
    assert {output.compute_s for output in outputs} == {0.005}


class Kinds(TorchModel):
    """Gives its inputs back, and a half of one."""

    def forward(self, tensors: Any) -> dict[str, Any]:
        """Return a batch."""
        with torch.inference_mode():
            return {**tensors, "half": tensors["float32"].to(torch.bfloat16).t()}


def test_every_dtype_keeps_its_bytes(cudart: Cudart) -> None:
    """Each dtype that a model may take goes up and comes down; bfloat16 comes as float32."""
    names = [
        "bool",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "float16",
        "float32",
        "float64",
    ]
    given = {name: np.arange(15).reshape(3, 5).astype(name) for name in names}
    pipeline = RingPipeline(Kinds(), OnCpu("cuda:0"), RingSizes())
    (output,) = drive(pipeline, [host_batch(dict(given))], ahead=0, flying=0)
    for name, column in given.items():
        np.testing.assert_array_equal(output.tensors[name], column)
        assert output.tensors[name].dtype == name
    np.testing.assert_array_equal(output.tensors["half"], given["float32"].T)
    assert output.tensors["half"].dtype == np.float32


def test_a_result_that_numpy_cannot_hold(cudart: Cudart) -> None:
    """An 8-bit float is refused by name, with the way out (some packages teach NumPy its name)."""
    value = torch.zeros(2).to(torch.float8_e4m3fn)
    with pytest.raises(DataError, match="the model gave float8_e4m3fn, which cannot leave the device"):
        OnCpu("cuda:0").describe(value)


def test_what_is_on_the_host_passes_by(cudart: Cudart) -> None:
    """A tensor on the CPU is a result that is already here."""

    class OnHost(TorchModel):
        """Gives a tensor in host memory."""

        def forward(self, tensors: Any) -> dict[str, Any]:
            """Return it."""
            return {"y": torch.ones(4, dtype=torch.bfloat16)}

    pipeline = RingPipeline(OnHost(), CudaRuntime("cuda:0"), RingSizes())
    (output,) = drive(pipeline, make_batches(random.Random(1), 1), ahead=0, flying=0)
    np.testing.assert_array_equal(output.tensors["y"], np.ones(4, np.float32))
