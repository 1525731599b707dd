"""What `tune` found out, kept for later runs: by the model, the device, and what else counts for speed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchinfer.config import Fingerprint, Job, Machine, Tuned, fingerprint
from batchinfer.config.machine import TUNED, resolve
from batchinfer.engine.remembered import Remembered
from batchinfer.errors import BatchinferError

_BATCHING = {"size": int, "by": str, "buckets": int}
_DIGITS = 32


def _is_sound(entry: Mapping[str, Any]) -> bool:
    """Tell whether an entry has all that a run needs, in its type."""
    batching, compute = entry["batching"], entry["compute"]
    return (
        isinstance(entry["on"], str)
        and batching["size"] > 0
        and {"size", "by"} <= batching.keys() <= _BATCHING.keys()
        and all(isinstance(value, _BATCHING[name]) for name, value in batching.items())
        and compute.keys() == set(TUNED)
        and all(isinstance(value, int) and value > 0 for value in compute.values())
    )


CHOICES = Remembered("tuned", days=180, is_sound=_is_sound)
"""What was tuned, by `key_of`."""


def model_hash(job: Job, mine: Fingerprint) -> str:
    """Name a model by its content, its options and the minor versions of the libraries that compute it.

    Not by its path, nor by your name for it.
    """
    written = {
        name: value
        for name, value in (job.document.get("model") or {}).items()
        if name not in {"path", "version", "sha256"}
    }
    content = {name: value for name, value in mine.parts["model"].items() if name != "version"}
    return _digest({"written": written, "content": content, "engine": mine.parts["engine"]})


def key_of(job: Job, mine: Fingerprint, device: str) -> str:
    """Name what a choice holds for: the model, the steps before it, how batches are cut, and the device."""
    parts = {name: mine.parts[name] for name in ("preprocess", "batching")}
    return _digest({"model": model_hash(job, mine), **parts, "device": device})


def find_tuned(job: Job, machine: Machine) -> Tuned | None:
    """Return what is remembered for a job on this machine; None where nothing is, or the job is unsound."""
    entries = CHOICES.entries()
    if not entries:
        return None
    try:
        found = entries.get(key_of(job, fingerprint(job), device_of(resolve(job, machine), machine)))
    except BatchinferError:
        return None  # whoever prepares the run will meet it as well
    if found is None:
        return None
    return Tuned(on=found["on"], batching=found["batching"], compute=found["compute"])


def only_batches(job: Job, tuned: Tuned | None) -> Tuned | None:
    """Return what a plan keeps of a choice: how batches are cut, where the job leaves that open."""
    if tuned is None or job.batching.size != "auto":
        return None
    return dataclasses.replace(tuned, compute={})


def told_settings(job: Job, settings: Mapping[str, str]) -> dict[str, str]:
    """Return what a worker says of its batches, and what it may use, each with the reason for it."""
    asked = {
        "batching.size": job.batching.size != "auto",
        "batching.by": job.batching.by != "auto",
    }
    found = {}
    for name, value in settings.items():
        why = job.resolved[name][1] if name in job.resolved else "as asked" if asked.get(name) else ""
        found[name] = f"{value} ({why})" if why else value
    for name in (*TUNED, "readers"):
        value, why = job.resolved[f"compute.{name}"]
        found[f"compute.{name}"] = f"{value} ({why})"
    return found


def device_of(job: Job, machine: Machine) -> str:
    """Name the kind of device that a resolved job runs on, and the cores that each of them has."""
    devices = job.compute.devices
    assert isinstance(devices, tuple)
    cores = max(1, machine.cores // len(devices))
    name = _cpu_name() if devices[0] == "cpu" else machine.gpus[int(devices[0].partition(":")[2])]
    return f"{name}, {cores} core{'s' if cores > 1 else ''}"


def _cpu_name() -> str:
    """Return the processor's name as Linux has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "CPU")


def _digest(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
