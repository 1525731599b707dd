"""What the machine is, and what it can do at most: matrix products, and copies on, to and from the device."""

from __future__ import annotations

import contextlib
import importlib.metadata
import mmap
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from gpu_checks.bench import Bench

PACKAGES = (
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "transformers",
    "tokenizers",
    "pyarrow",
    "numpy",
    "pillow",
)
_ROUNDS = 5
_KIB, _MIB = 2**10, 2**20
_SIZES = (64 * _KIB, _MIB, 16 * _MIB, 256 * _MIB)
_POOL = 1024 * _MIB


def measure(bench: Bench) -> None:
    """Note versions and ceilings."""
    import torch

    bench.note("versions", versions())
    bench.note("cores", len(os.sched_getaffinity(0)))
    bench.note("gpu", _gpu(bench, torch))
    torch.backends.cuda.matmul.allow_tf32 = False
    side = 8192 if bench.on_gpu and not bench.tiny else 512
    flops: dict[str, float] = {}
    for precision in ("fp16", "bf16", "fp32") if bench.on_gpu else ("fp32",):
        flops[precision] = round(_gemm(bench, torch, precision, side))
        bench.note("gemm_flops", flops)
    size = (2048 if bench.on_gpu and not bench.tiny else 64) * _MIB
    bench.note("copy_bytes_per_second", round(_device_copy(bench, torch, size)))
    if bench.on_gpu:
        bench.note("transfers", {_text(size): _transfers(torch, size) for size in _SIZES})
        bench.note("both_ways", _both_ways(torch, 256 * _MIB))
        bench.note("pool_seconds", _pools(torch, _POOL))
    else:
        bench.needs_gpu("transfers", "both_ways", "pool_seconds")


def versions() -> dict[str, str]:
    """Return the versions of what matters, as far as it is there."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def seconds(bench: Bench, work: Callable[[], Any], *, times: int = 10, rounds: int = _ROUNDS) -> float:
    """Return how long some work takes once: the best of a few rounds of so many times."""
    import torch

    def wait() -> None:
        """Wait for the device."""
        if bench.on_gpu:
            torch.cuda.synchronize()

    work()
    wait()
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(times):
            work()
        wait()
        best = min(best, (time.perf_counter() - began) / times)
    return best


def _gpu(bench: Bench, torch: Any) -> dict[str, Any]:
    """Describe the GPU."""
    if not bench.on_gpu:
        return {"name": "none"}
    device = torch.cuda.get_device_properties(0)
    found = {
        "name": device.name,
        "memory_bytes": device.total_memory,
        "multiprocessors": device.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    with contextlib.suppress(Exception):
        import pynvml

        pynvml.nvmlInit()
        found["driver"] = str(pynvml.nvmlSystemGetDriverVersion())
    return found


def _gemm(bench: Bench, torch: Any, precision: str, side: int) -> float:
    """Return the FLOP/s of a square matrix product on random numbers."""
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    a, b = (torch.randn(side, side, device=bench.device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return float(2 * side**3 / seconds(bench, lambda: torch.mm(a, b, out=out)))


def _device_copy(bench: Bench, torch: Any, size: int) -> float:
    """Return the bytes per second of a copy in the device's own memory, read and written ones."""
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    return 2 * size / seconds(bench, lambda: target.copy_(source))


def _transfers(torch: Any, size: int) -> dict[str, float]:
    """Return bytes per second between host and device, by the kind of host memory."""
    there = torch.empty(size, dtype=torch.uint8, device="cuda")
    times = max(2, min(50, 512 * _MIB // size))
    found: dict[str, float] = {}
    kinds: dict[str, Any] = {
        "pageable": torch.zeros(size, dtype=torch.uint8),
        "pinned": torch.zeros(size, dtype=torch.uint8, pin_memory=True),
    }
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(RuntimeError, OSError):
            kinds["registered memfd"] = stack.enter_context(_registered(torch, size))
        for kind, here in kinds.items():
            up = _seconds_on_gpu(torch, partial(there.copy_, here, non_blocking=True), times)
            down = _seconds_on_gpu(torch, partial(here.copy_, there, non_blocking=True), times)
            found |= {f"{kind} up": round(size / up), f"{kind} down": round(size / down)}
        kinds.clear()
    return found


def _both_ways(torch: Any, size: int) -> dict[str, float]:
    """Return bytes per second of both directions at once, by two streams."""
    up, down = torch.cuda.Stream(), torch.cuda.Stream()
    here = [torch.zeros(size, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    there = [torch.zeros(size, dtype=torch.uint8, device="cuda") for _ in range(2)]

    def both() -> None:
        """Queue a copy each way."""
        with torch.cuda.stream(up):
            there[0].copy_(here[0], non_blocking=True)
        with torch.cuda.stream(down):
            here[1].copy_(there[1], non_blocking=True)

    return {"bytes_per_second": round(2 * size / _seconds_on_gpu(torch, both, 4))}


def _seconds_on_gpu(torch: Any, work: Callable[[], Any], times: int) -> float:
    """Return how long work takes once that is queued so many times."""
    work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / times


@contextlib.contextmanager
def _registered(torch: Any, size: int) -> Any:
    """Give page-locked memory of a memfd, as loaders could share. Raises RuntimeError where it is refused."""
    descriptor = os.memfd_create("gpu-check")
    os.ftruncate(descriptor, size)
    mapped = mmap.mmap(descriptor, size)
    os.close(descriptor)
    tensor = torch.frombuffer(mapped, dtype=torch.uint8)
    tensor.zero_()
    cudart = torch.cuda.cudart()
    if cudart.cudaHostRegister(tensor.data_ptr(), size, 0) != cudart.cudaError.success:
        # CUDA reports the refusal once more, to the next kernel.
        with contextlib.suppress(RuntimeError):
            torch.ones(1, device="cuda")
        raise RuntimeError("a memfd cannot be registered here")
    try:
        yield tensor
    finally:
        torch.cuda.synchronize()
        cudart.cudaHostUnregister(tensor.data_ptr())


def _pools(torch: Any, size: int) -> dict[str, float]:
    """Return how long page-locked memory takes to make: by torch, and mapped, touched and registered."""
    from batchinfer.engine.cuda_runtime import CudaRuntime

    torch.zeros(1, device="cuda")
    runtime = CudaRuntime("cuda:0")
    found = {}
    for name, make in (
        ("pinned by torch", lambda: torch.empty(size, dtype=torch.uint8, pin_memory=True)),
        ("mapped and registered", lambda: runtime.host_buffer(size)),
    ):
        began = time.perf_counter()
        made = make()
        found[name] = round(time.perf_counter() - began, 4)
        del made
    return found


def _text(size: int) -> str:
    return f"{size // _MIB} MiB" if size >= _MIB else f"{size // _KIB} KiB"
