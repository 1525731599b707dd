"""`auto` to numbers and names, once, with the reason for each; nothing downstream knows the word."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from batchinfer.config.fields import is_marked, values_by_key
from batchinfer.config.job import Job
from batchinfer.errors import DeviceError
from batchinfer.options import Code

_MAX_READERS = 4
_BATCH_SIZES = {
    ("rows", "cpu"): 64,
    ("rows", "cuda"): 256,
    ("tokens", "cpu"): 4096,
    ("tokens", "cuda"): 16384,
}


@dataclass(frozen=True, slots=True)
class Machine:
    """What this process may use: CPU cores, and the GPUs by name in the order of their numbers."""

    cores: int
    gpus: tuple[str, ...] = ()


def resolve(job: Job, machine: Machine) -> Job:
    """Return the job with every `auto` of `compute` replaced, and why, in `resolved`.

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
    per_device = _number(compute.workers_per_device)
    resolved["compute.workers_per_device"] = (per_device or 1, "as asked" if per_device else "one each")
    workers = len(devices) * (per_device or 1)
    threads = _number(compute.threads)
    share = f"{machine.cores} cores / {workers} worker{'s' if workers > 1 else ''}"
    resolved["compute.threads"] = (
        threads or max(1, machine.cores // workers),
        "as asked" if threads else share,
    )
    readers = _number(compute.readers)
    usual = max(1, min(_MAX_READERS, machine.cores // workers))
    why = "as asked" if readers else f"{share}, at most {_MAX_READERS}"
    resolved["compute.readers"] = (readers or usual, why)
    resolved["compute.loaders"] = _loaders(job)
    return apply_resolved(job, resolved)


def apply_resolved(job: Job, resolved: Mapping[str, tuple[Any, str]]) -> Job:
    """Return the job with resolved values of `compute` put in."""
    values = {
        name.removeprefix("compute."): tuple(value) if isinstance(value, list) else value
        for name, (value, _) in resolved.items()
        if name.startswith("compute.")
    }
    return dataclasses.replace(job, compute=job.compute.model_copy(update=values), resolved=dict(resolved))


def _loaders(job: Job) -> tuple[str, str]:
    """Return where the preprocessing steps run, and why there."""
    if job.compute.loaders != "auto":
        return job.compute.loaders, "as asked"
    for step in job.preprocess:
        if any(value and is_marked(field, Code) for _, field, value in values_by_key(step.options)):
            return "processes", f"{step.name} runs code of yours"
    return "threads", "no step runs code of yours"


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
    missing = [name for name in wanted if name != "cpu" and name not in everything]
    if missing or (isinstance(asked, int) and asked > num_gpus):
        named = ", ".join(missing) if missing else f"{asked} GPUs"
        raise DeviceError(
            f"compute.devices asks for {named}, but this machine has {num_gpus or 'no'} usable GPU"
            f"{'s' if num_gpus > 1 else ''}",
            where=job.place(("compute", "devices")),
            hint="`batchinfer doctor` says what was found; `--set compute.devices=cpu` runs without",
        )
    return wanted, "as asked"


def batch_size(job: Job, device: str, *, ragged: bool) -> tuple[str, int]:
    """Return what a batch is counted in ("rows" or "tokens") and how many, on a device.

    `ragged` says whether any input of the model varies in length from row to row.
    """
    by = job.batching.by
    if by == "auto":
        by = "tokens" if ragged else "rows"
        # A number without a unit means rows, whatever the tensors are.
        if job.batching.size != "auto":
            by = "rows"
    size = job.batching.size
    if size == "auto":
        size = _BATCH_SIZES[by, device.partition(":")[0]]
    return by, size


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
