"""`auto` to numbers and names, once, with the reason for each; nothing downstream knows the word."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from batchinfer.config.fields import is_marked, values_by_key
from batchinfer.config.job import Job
from batchinfer.errors import DeviceError, JobFileError
from batchinfer.options import Code, num_bytes

By = Literal["rows", "tokens", "bytes"]
"""What the size of a batch counts."""

_MAX_READERS = 4
CONCURRENT = frozenset({"onnx"})
"""Backends whose model may be called by several threads at once, on a CPU."""

TUNED = ("workers_per_device", "concurrency", "threads")
"""Keys of `compute` that are tuned together: each depends on the others."""

_TOKENS = {"cpu": 512, "cuda": 16_384}
_BATCH_BYTES = {"cpu": 2**20, "cuda": 2**27}
_FEWEST_ROWS, _MOST_ROWS = 8, {"cpu": 8192, "cuda": 65_536}
_WINDOW_BATCHES, _FEWEST_IN_WINDOW, _MOST_IN_WINDOW = 256, 4096, 32_768
_MEAN_TOKENS = 64
_HOST_MEMORY = {"cpu": 2**29, "cuda": 2**30}
_RAGGED_ROWS = {"cpu": 32, "cuda": 256}
"""On CPUs small batches are the fastest: what a layer leaves is still in the cache for the next one."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What this process may use: CPU cores, and the GPUs by name in the order of their numbers."""

    cores: int
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What `tune` chose for a model on a device, `on` a day: keys of `batching` and of `compute`."""

    on: str
    batching: Mapping[str, int | str]
    compute: Mapping[str, int]

    @property
    def why(self) -> str:
        """The reason that is shown beside a value."""
        return f"tuned {self.on}"


def resolve(job: Job, machine: Machine, *, tuned: Tuned | None = None) -> Job:
    """Return the job with every `auto` of `compute` replaced, and why, in `resolved`; by what was `tuned`
    where the job leaves all of it open.

    Batch sizes wait for the tensors, unit sizes for the listing. Raises DeviceError where the job
    asks for a device that the machine lacks.
    """
    resolved: dict[str, tuple[Any, str]] = {}
    for name, path in (("input.format", ("input", "format")), ("model.backend", ("model", "backend"))):
        if (job.document.get(path[0]) or {}).get(path[1]) is None:
            section = job.input if path[0] == "input" else job.model
            resolved[name] = (getattr(section, path[1]), "from the path")
    devices, why = _devices(job, machine)
    resolved["compute.devices"] = (devices, why)
    compute = job.compute
    if any(_number(getattr(compute, name)) for name in TUNED):
        tuned = None
    per_device = _number(compute.workers_per_device)
    if tuned:
        per_device = tuned.compute["workers_per_device"]
    resolved["compute.workers_per_device"] = (
        per_device or 1,
        tuned.why if tuned else "as asked" if per_device else "one each",
    )
    workers = len(devices) * (per_device or 1)
    share = f"{machine.cores} cores / {workers} worker{'s' if workers > 1 else ''}"
    cores = max(1, machine.cores // workers)
    concurrency, why = _concurrency(job, devices, cores)
    threads = _number(compute.threads)
    resolved["compute.concurrency"] = (concurrency, why)
    resolved["compute.threads"] = (
        threads or max(1, cores // concurrency),
        "as asked" if threads else f"{share} / {concurrency} batches at once" if concurrency > 1 else share,
    )
    if tuned:
        for name in ("concurrency", "threads"):
            resolved[f"compute.{name}"] = (tuned.compute[name], tuned.why)
    readers = _number(compute.readers)
    usual = min(_MAX_READERS, cores)
    why = "as asked" if readers else f"{share}, at most {_MAX_READERS}"
    resolved["compute.readers"] = (readers or usual, why)
    memory = _number(compute.host_memory)
    each = _HOST_MEMORY["cuda" if all(map(_is_gpu, devices)) else "cpu"]
    why = "as asked" if memory else f"{each // 2**20} MiB a worker"
    resolved["compute.host_memory"] = (memory or workers * each, why)
    resolved["compute.loaders"] = _loaders(job)
    return apply_resolved(job, resolved)


def apply_resolved(job: Job, resolved: Mapping[str, tuple[Any, str]]) -> Job:
    """Return the job with resolved values of `compute` and `batching` put in."""
    values: dict[str, dict[str, Any]] = {"compute": {}, "batching": {}}
    for name, (value, _) in resolved.items():
        section, _, key = name.partition(".")
        if section in values:
            values[section][key] = tuple(value) if isinstance(value, list) else value
    return dataclasses.replace(
        job,
        compute=job.compute.model_copy(update=values["compute"]),
        batching=job.batching.model_copy(update=values["batching"]),
        resolved=dict(resolved),
    )


def settled(job: Job, tuned: Tuned) -> Job:
    """Return the job with the batches that were tuned put in, where it leaves their size open."""
    if job.batching.size != "auto":
        return job
    batching = {f"batching.{name}": (value, tuned.why) for name, value in tuned.batching.items()}
    return apply_resolved(job, {**job.resolved, **batching})


def _concurrency(job: Job, devices: tuple[str, ...], cores: int) -> tuple[int, str]:
    """Return how many batches a worker computes at once. Raises JobFileError for more than one on a GPU."""
    asked = _number(job.compute.concurrency)
    on_cpu = not any(map(_is_gpu, devices))
    if asked and asked > 1 and not on_cpu:
        raise JobFileError(
            f"compute.concurrency is {asked}, and a GPU computes one batch after the other",
            where=job.place(("compute", "concurrency")),
            hint="compute.workers_per_device: 2 has two workers share a GPU",
        )
    if asked:
        return asked, "as asked"
    if not on_cpu or job.model.backend not in CONCURRENT:
        return 1, "one after the other"
    threads = _number(job.compute.threads)
    return max(1, cores // (threads or 1)), "every core a batch of its own"


def _loaders(job: Job) -> tuple[str, str]:
    """Return where the preprocessing steps run, and why there."""
    if job.compute.loaders != "auto":
        return job.compute.loaders, "as asked"
    for step in job.preprocess:
        if any(value and is_marked(field, Code) for _, field, value in values_by_key(step.options)):
            return "processes", f"{step.name} runs code of yours"
    return "threads", "no step runs code of yours"


def _is_gpu(device: str) -> bool:
    return device.startswith("cuda")


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _devices(job: Job, machine: Machine) -> tuple[tuple[str, ...], str]:
    """Return the devices of a run, and why these."""
    asked, num_gpus = job.compute.devices, len(machine.gpus)
    everything = tuple(f"cuda:{index}" for index in range(num_gpus))
    if asked == "auto":
        if not num_gpus:
            return ("cpu",), "no GPU found"
        return everything, f"every GPU ({', '.join(dict.fromkeys(machine.gpus))})"
    if asked == "cpu":
        return ("cpu",), "as asked"
    wanted = everything[:asked] if isinstance(asked, int) else tuple(asked)
    made_up = [name for name in wanted if name.startswith("simulated")]
    if made_up and job.model.backend != "simulated":
        raise JobFileError(
            f"compute.devices names {made_up[0]}, a device that only the simulated backend has",
            where=job.place(("compute", "devices")),
            hint="compute.devices: auto takes every GPU, or else the CPU",
        )
    missing = [name for name in wanted if _is_gpu(name) and name not in everything]
    if missing or (isinstance(asked, int) and asked > num_gpus):
        named = ", ".join(missing) if missing else f"{asked} GPUs"
        raise DeviceError(
            f"compute.devices asks for {named}, but this machine has {num_gpus or 'no'} usable GPU"
            f"{'s' if num_gpus > 1 else ''}",
            where=job.place(("compute", "devices")),
            hint="`batchinfer doctor` says what was found; `--set compute.devices=cpu` runs without",
        )
    return wanted, "as asked"


def batch_size(
    job: Job, device: str, *, ragged: bool, row_bytes: int, token_bytes: int = 0
) -> tuple[By, int]:
    """Return what a batch is counted in ("rows", "tokens" or "bytes") and how many, on a device.

    `ragged` says whether any input of the model varies in length from row to row; `row_bytes` is what
    its inputs of one row take, `token_bytes` what the ragged ones take for each token.
    """
    by, size = job.batching.by, job.batching.size
    if size != "auto":
        # A number without a unit means rows, whatever the tensors are.
        if isinstance(size, int):
            return "rows" if by == "auto" else by, size
        return "bytes", num_bytes(size)
    if by == "auto":
        by = "tokens" if ragged else "rows"
    kind = "cuda" if _is_gpu(device) else "cpu"
    if by == "tokens":
        return by, _TOKENS[kind]
    if by == "bytes":
        return by, _TOKENS[kind] * max(token_bytes, 1) if ragged else _BATCH_BYTES[kind]
    if ragged:
        return by, _RAGGED_ROWS[kind]
    fitting = 2 ** round(math.log2(max(_BATCH_BYTES[kind] / row_bytes, 1)))
    return by, max(_FEWEST_ROWS, min(_MOST_ROWS[kind], fitting))


def window_rows(job: Job, by: By, size: int, *, token_bytes: int = 0) -> int:
    """Return the rows within which ragged inputs are sorted, for batches of `size` rows, tokens or bytes.

    Two hundred batches waste little on padding, and more would only keep the device waiting at first.
    """
    asked = job.batching.window_rows
    if asked != "auto":
        return asked
    each = {"rows": 1, "tokens": _MEAN_TOKENS, "bytes": _MEAN_TOKENS * max(token_bytes, 1)}[by]
    return int(min(max(_WINDOW_BATCHES * size / each, _FEWEST_IN_WINDOW), _MOST_IN_WINDOW))


def usable_cores() -> int:
    """Return the CPU cores that this process may use: its affinity, and its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    return max(1, min(cores, math.floor(quota))) if quota else cores


def _quota(mount: Path, membership: Path) -> float | None:
    """Return the smallest CPU quota of the process's control group and those above it, in cores."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    found: list[float] = []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = mount / controllers if controllers else mount
        inner = PurePosixPath(name.lstrip("/"))
        for folder in (inner, *inner.parents):
            found += _folder_quota(base / folder)
    return min(found, default=None)


def _folder_quota(folder: Path) -> list[float]:
    """Return the quota that one folder sets, in cores: version 2 has one file, version 1 two."""
    try:
        limit, period = (folder / "cpu.max").read_text().split()
        return [] if limit == "max" else [int(limit) / int(period)]
    except (OSError, ValueError):
        pass
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period_us = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return []
    return [quota / period_us] if quota > 0 else []
