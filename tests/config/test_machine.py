"""`auto` becomes a number or a name, with its reason; what the machine lacks is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from batchinfer.config import Job, Machine, batch_size, load_job, resolve, usable_cores, window_rows
from batchinfer.config.machine import By, _quota
from batchinfer.errors import DeviceError, ExitCode, JobFileError

T4 = "Tesla T4"


def job_with(**sections: Any) -> Job:
    """Return a job with some sections beside the least."""
    least = {"job": "a", "input": {"path": "d"}, "model": {"path": "m.onnx"}, "output": {"path": "o"}}
    return load_job({**least, **sections})


@pytest.mark.parametrize(
    ("compute", "machine", "devices", "workers", "threads", "readers"),
    [
        ({}, Machine(8), ("cpu",), 1, 1, 4),
        ({"concurrency": 1}, Machine(8), ("cpu",), 1, 8, 4),
        ({"concurrency": 2}, Machine(8), ("cpu",), 1, 4, 4),
        ({}, Machine(1), ("cpu",), 1, 1, 1),
        ({}, Machine(8, (T4, T4)), ("cuda:0", "cuda:1"), 1, 4, 4),
        ({}, Machine(2, (T4,) * 4), ("cuda:0", "cuda:1", "cuda:2", "cuda:3"), 1, 1, 1),
        ({"devices": "cpu"}, Machine(8, (T4,)), ("cpu",), 1, 1, 4),
        ({"devices": 1}, Machine(8, (T4, T4)), ("cuda:0",), 1, 8, 4),
        ({"devices": ["cuda:1", "cpu"]}, Machine(8, (T4, T4)), ("cuda:1", "cpu"), 1, 4, 4),
        ({"workers_per_device": 2}, Machine(8), ("cpu",), 2, 1, 4),
        ({"threads": 3, "readers": 7}, Machine(8), ("cpu",), 1, 3, 7),
    ],
)
def test_compute(
    *,
    compute: dict[str, Any],
    machine: Machine,
    devices: tuple[str, ...],
    workers: int,
    threads: int,
    readers: int,
) -> None:
    """Devices are what there is or what was asked; the cores are divided among the workers."""
    found = resolve(job_with(compute=compute), machine).compute
    assert (found.devices, found.workers_per_device) == (devices, workers)
    assert (found.threads, found.readers) == (threads, readers)


@pytest.mark.parametrize(
    ("compute", "path", "concurrency"),
    [
        ({}, "m.onnx", 8),
        ({"threads": 2}, "m.onnx", 4),
        ({"workers_per_device": 4}, "m.onnx", 2),
        ({"concurrency": 3}, "m.safetensors", 3),
        ({}, "m.safetensors", 1),
        ({"devices": 1}, "m.onnx", 1),
    ],
)
def test_batches_at_once(compute: dict[str, Any], path: str, concurrency: int) -> None:
    """On a CPU every core computes a batch of its own, where the model can be called by several threads."""
    machine = Machine(8, (T4,) if "devices" in compute else ())
    model = {"backend": "onnx" if path.endswith("onnx") else "torch", "path": path}
    assert resolve(job_with(compute=compute, model=model), machine).compute.concurrency == concurrency


def test_a_gpu_computes_one_batch_at_a_time() -> None:
    """What a GPU cannot do is refused, and the way out is said."""
    with pytest.raises(JobFileError, match="a GPU computes one batch") as caught:
        resolve(job_with(compute={"concurrency": 2}), Machine(8, (T4,)))
    assert "workers_per_device" in str(caught.value.hint)


def test_every_choice_has_its_reason() -> None:
    """What was resolved can be printed: the value, and why it is that."""
    job = resolve(job_with(compute={"readers": 2}), Machine(8, (T4, T4)))
    assert job.resolved == {
        "input.format": ("parquet", "from the path"),
        "model.backend": ("onnx", "from the path"),
        "compute.devices": (("cuda:0", "cuda:1"), "every GPU (Tesla T4)"),
        "compute.workers_per_device": (1, "one each"),
        "compute.concurrency": (1, "one after the other"),
        "compute.threads": (4, "8 cores / 2 workers"),
        "compute.readers": (2, "as asked"),
        "compute.host_memory": (2 * 2**30, "1024 MiB a worker"),
        "compute.loaders": ("threads", "no step runs code of yours"),
    }


@pytest.mark.parametrize(
    ("steps", "asked", "loaders"),
    [
        ([], "auto", "threads"),
        (["image"], "auto", "threads"),
        (["image", {"python": "users_code:step"}], "auto", "processes"),
        ([{"python": "users_code:step"}], "threads", "threads"),
        (["image"], "processes", "processes"),
    ],
)
def test_code_of_the_users_runs_in_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[object], asked: str, loaders: str
) -> None:
    """auto: processes exactly where a step runs code of the user's; what is asked for holds."""
    (tmp_path / "users_code.py").write_text("def step(rows): return rows\n")
    monkeypatch.chdir(tmp_path)
    job = resolve(job_with(preprocess=steps, compute={"loaders": asked}), Machine(8))
    assert job.compute.loaders == loaders


def test_a_resolved_job_crosses_a_process_border() -> None:
    """A worker sees the parent's choices, whatever its own machine looks like."""
    job = resolve(job_with(), Machine(8, (T4,)))
    rebuilt = Job.from_message(job.to_message())
    assert rebuilt.compute == job.compute
    assert rebuilt.compute.devices == ("cuda:0",)


@pytest.mark.parametrize(
    ("devices", "gpus", "message"),
    [
        (2, (T4,), "compute.devices asks for 2 GPUs, but this machine has 1 usable GPU"),
        (1, (), "compute.devices asks for 1 GPUs, but this machine has no usable GPU"),
        (["cuda:2"], (T4, T4), "compute.devices asks for cuda:2, but this machine has 2 usable GPUs"),
    ],
)
def test_devices_that_are_not_there(devices: Any, gpus: tuple[str, ...], message: str) -> None:
    """A job never falls back to another device than the one it asks for."""
    with pytest.raises(DeviceError) as caught:
        resolve(job_with(compute={"devices": devices}), Machine(8, gpus))
    assert caught.value.message == message
    assert caught.value.exit_code == ExitCode.DEVICE


@pytest.mark.parametrize(
    ("batching", "device", "ragged", "row_bytes", "expected"),
    [
        ({}, "cpu", False, 4, ("rows", 8192)),
        ({}, "cpu", False, 1000, ("rows", 1024)),
        ({}, "cpu", False, 3 * 224 * 224 * 4, ("rows", 8)),
        ({}, "cuda:3", False, 3 * 224 * 224 * 4, ("rows", 256)),
        ({}, "cuda:3", False, 3 * 224 * 224, ("rows", 1024)),
        ({}, "cpu", True, 1, ("tokens", 512)),
        ({}, "cuda:0", True, 1, ("tokens", 16384)),
        ({"by": "rows"}, "cpu", True, 1, ("rows", 32)),
        ({"size": 32}, "cpu", True, 1, ("rows", 32)),
        ({"size": 32, "by": "tokens"}, "cpu", True, 1, ("tokens", 32)),
        ({"size": "8MiB"}, "cpu", True, 1, ("bytes", 2**23)),
        ({"size": 1000, "by": "bytes"}, "cpu", False, 1, ("bytes", 1000)),
        ({"by": "bytes"}, "cpu", False, 4, ("bytes", 2**20)),
        ({"by": "bytes"}, "cuda:0", False, 4, ("bytes", 2**27)),
        ({"by": "bytes"}, "cpu", True, 1, ("bytes", 512 * 16)),
    ],
)
def test_batch_sizes(
    batching: dict[str, Any], device: str, *, ragged: bool, row_bytes: int, expected: tuple[str, int]
) -> None:
    """A batch is counted in tokens where rows vary in length, unless the job says a number of rows; of
    rows of one size there are as many as the device likes best."""
    found = batch_size(
        job_with(batching=batching), device, ragged=ragged, row_bytes=row_bytes, token_bytes=16
    )
    assert found == expected


@pytest.mark.parametrize(
    ("batching", "told"),
    [
        ({"size": "8MiB", "by": "rows"}, "size '8MiB' counts bytes, and by says rows"),
        ({"buckets": 33}, "must be 1 to 32 lengths, got 33"),
        ({"buckets": [8, 4]}, "must be lengths in ascending order, got [8, 4]"),
        ({"buckets": []}, "must be 1 to 32 lengths, got 0"),
    ],
)
def test_batching_that_makes_no_sense(batching: dict[str, Any], told: str) -> None:
    """What contradicts itself is refused with what was written."""
    with pytest.raises(JobFileError) as caught:
        job_with(batching=batching)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("batching", "by", "size", "rows"),
    [
        ({}, "tokens", 512, 4096),
        ({}, "tokens", 4096, 16_384),
        ({}, "tokens", 16_384, 32_768),
        ({}, "rows", 32, 8192),
        ({"window_rows": 77}, "rows", 32, 77),
        ({}, "bytes", 2**16, 16_384),
    ],
)
def test_windows(batching: dict[str, Any], by: By, size: int, rows: int) -> None:
    """A window has some hundred batches, or as many rows as the job says."""
    assert window_rows(job_with(batching=batching), by, size, token_bytes=16) == rows


@pytest.mark.parametrize(("text", "size"), [(123, 123), ("512MiB", 2**29), ("1.5GB", 1_500_000_000)])
def test_sizes_in_bytes(text: int | str, size: int) -> None:
    """Memory is a number of bytes, or a text with its unit."""
    assert resolve(job_with(compute={"host_memory": text}), Machine(1)).compute.host_memory == size


def test_usable_cores() -> None:
    """There is always a core, and never more than the machine has."""
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 0.5),
        ("0::/a\n", {}, None),
        ("0::/a\n", {"a/cpu.max": "rubbish\n"}, None),
        (
            "4:cpu,cpuacct:/a\n3:memory:/a\n",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "200000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
            2.0,
        ),
        ("4:cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_container_quotas(
    tmp_path: Path, membership: str, files: dict[str, str], quota: float | None
) -> None:
    """A container's quota counts, its own or that of a group above it, in both versions of cgroups."""
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text)
    (tmp_path / "membership").write_text(membership)
    assert _quota(tmp_path / "fs", tmp_path / "membership") == quota
