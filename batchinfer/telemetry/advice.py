"""What limits a run, and what to do about it: one or two sentences with figures and the setting to change.

A device that is not computing waits for one stage (`engine/timeline.py`). The stage that it waited for
longest is the bottleneck. What a change would gain is reckoned by that stage alone: of the whole time T,
w was spent waiting for it. A stage with m hands in place of n needs n/m of the time that it takes; no change
gains more than all of w.

The stages begin with the first unit. Where planning and loading the model took half of the run or more, that
is said first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchinfer.telemetry.snapshot import Snapshot

BUSY = 0.95
"""From here on a device is busy, and there is nothing to say."""

_LEAST_S = 0.5
_LEAST_RATIO = 0.03
_LEAST_START_S = 1.0
_LONG_START = 0.5
_MOST_READERS = 64
_FOR = {
    "read": "reading",
    "decode": "decoding",
    "pack": "batches to be packed",
    "transfer": "inputs to be transferred",
    "postprocess": "postprocessing",
    "write": "parts to be encoded",
    "commit": "the store to take parts",
    "launch": "batches to be launched",
}


@dataclass(frozen=True, slots=True)
class _Wait:
    """A wait: `ratio` of the whole time, for a stage of a run with these settings."""

    ratio: float
    settings: Mapping[str, Any]
    cores: int
    devices: int
    on_gpu: bool

    def number(self, name: str, default: int) -> int:
        """Return a setting that is a number."""
        value = self.settings.get(name, default)
        return int(value) if str(value).isdecimal() else default

    def gain(self, hands: float) -> str:
        """Say what so many times the hands for this stage would gain at most."""
        left = max(1 - self.ratio, 1 / hands)
        return f"expected gain about {(1 / left - 1) * 100:.0f} %"


def bottleneck(snapshot: Snapshot) -> str | None:
    """Return the stage that the devices spent most of their time on: `compute`, or what they waited for
    where they computed for less than 95 % of it. None where nothing was computed."""
    seconds = snapshot.stage_seconds
    whole = sum(seconds.values())
    if not whole:
        return None
    if seconds.get("compute", 0.0) >= BUSY * whole:
        return "compute"
    waits = {stage: value for stage, value in seconds.items() if stage != "compute"}
    worst = max(waits, key=lambda stage: waits[stage])
    return worst if waits[worst] >= _LEAST_RATIO * whole else "compute"


def advise(snapshot: Snapshot) -> tuple[str, ...]:
    """Say what to change, in at most two sentences; nothing where the devices were busy, or the wait so
    short that it tells nothing."""
    return (*_start(snapshot), *_waits(snapshot))[:2]


def _start(snapshot: Snapshot) -> Iterator[str]:
    """Say where a run that went well was over soon after its workers had their model."""
    start_s, whole_s, finished = snapshot.start_s or 0.0, snapshot.elapsed_s, snapshot.finished
    went_well = finished is None or finished.exit_code == 0
    if went_well and snapshot.stage_seconds and start_s >= max(_LEAST_START_S, _LONG_START * whole_s):
        yield (
            f"{start_s:.1f} of {whole_s:.1f} s were planning and loading the model: more rows per run, "
            "or fewer processes that share them, spread that"
        )


def _waits(snapshot: Snapshot) -> tuple[str, ...]:
    stage, whole = bottleneck(snapshot), sum(snapshot.stage_seconds.values())
    if stage is None or stage == "compute":
        return ()
    lanes = max(sum(worker.lanes for worker in snapshot.workers), 1)
    waited_s = snapshot.stage_seconds[stage]
    if waited_s / lanes < _LEAST_S:
        return ()
    names = {worker.device for worker in snapshot.workers if worker.device}
    wait = _Wait(
        ratio=waited_s / whole,
        settings=snapshot.settings,
        cores=snapshot.cores,
        devices=max(len(names), 1),
        on_gpu=any(name.startswith("cuda") for name in names),
    )
    who = "the device" if len(names) <= 1 else "the devices"
    what, *more = _SAYS[stage](wait)
    return (f"{who} waited {wait.ratio * 100:.0f} % of the time for {_FOR[stage]}: {what}", *more)


def _read(wait: _Wait) -> list[str]:
    return [
        _another_worker(wait, "so that two read at once"),
        "fewer columns (output.carry), fewer and larger files and a nearer store help as well",
    ]


def _decode(wait: _Wait) -> list[str]:
    readers = wait.number("compute.readers", 1)
    workers = wait.devices * wait.number("compute.workers_per_device", 1)
    # Threads that compute beside them want their cores; loaders of a GPU's worker have the machine.
    most = min(_MOST_READERS, max(wait.cores // workers, 1))
    enough = math.ceil(readers / max(1 - wait.ratio, 1 / _MOST_READERS))
    better = min(enough, most)
    if better > readers:
        return [f"set compute.readers to {better} (now {readers}); {wait.gain(better / readers)}"]
    busy = f"compute.readers is {readers} on {wait.cores} cores: a machine with more cores, or a lighter step"
    return [
        f"{busy}, is what helps; {wait.gain(math.inf)} at most",
        "a python step may take whole columns, and image.draft: true decodes a fraction of a JPEG",
    ]


def _pack(wait: _Wait) -> list[str]:
    return [_larger_batches(wait, 4)]


def _transfer(wait: _Wait) -> list[str]:
    smaller = "send smaller types (pixels as uint8, columns as float16 or less)"
    return [f"{smaller}; {wait.gain(2)}"]


def _postprocess(wait: _Wait) -> list[str]:
    return [_another_worker(wait, "so that two postprocess at once")]


def _write(wait: _Wait) -> list[str]:
    if wait.settings.get("output.compression", "none") != "none":
        codec = wait.settings["output.compression"]
        return [f"set output.compression to none (now {codec}), for an output of its own; {wait.gain(4)}"]
    return [_another_worker(wait, "so that two encode at once")]


def _commit(wait: _Wait) -> list[str]:
    rows = wait.settings.get("checkpoint.unit_rows", "auto")
    if str(rows).isdecimal():
        return [f"set checkpoint.unit_rows to {4 * int(rows)} (now {rows}): fewer parts; {wait.gain(4)}"]
    mib = wait.number("compute.host_memory", 2**29) // 2**20
    room = f"set compute.host_memory to {2 * mib}MiB (now {mib}MiB), so that more parts are under way"
    return [f"{room}; {wait.gain(2)} at most"]


def _launch(wait: _Wait) -> list[str]:
    if wait.on_gpu:
        return [_another_worker(wait, "so that one computes while the other launches")]
    return [_larger_batches(wait, 2)]


def _larger_batches(wait: _Wait, times: int) -> str:
    size = wait.settings.get("batching.size", "auto")
    by = wait.settings.get("batching.by", "rows")
    if not str(size).isdecimal():
        return f"set a larger batching.size (now {size}); {wait.gain(times)}"
    return f"set batching.size to {times * int(size)} (now {size} {by}); {wait.gain(times)}"


def _another_worker(wait: _Wait, why: str) -> str:
    each = wait.number("compute.workers_per_device", 1)
    return f"set compute.workers_per_device to {each + 1} (now {each}), {why}; {wait.gain((each + 1) / each)}"


_SAYS: Mapping[str, Callable[[_Wait], list[str]]] = {
    "read": _read,
    "decode": _decode,
    "pack": _pack,
    "transfer": _transfer,
    "postprocess": _postprocess,
    "write": _write,
    "commit": _commit,
    "launch": _launch,
}
