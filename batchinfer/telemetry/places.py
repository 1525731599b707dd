"""What each worker and each GPU does, as lines of the live display; many of them are folded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from batchinfer.telemetry import figures
from batchinfer.telemetry.fitting import Part, labelled, whole_percent

if TYPE_CHECKING:
    from batchinfer.telemetry.devices import Reading
    from batchinfer.telemetry.snapshot import Snapshot, WorkerState

_MAX_LINES = 8
_SHOWN_WAIT = 0.01
_LONG_WAIT = 0.2
_WARNING = "not dim yellow"
_NAME = 30


def place_lines(snapshot: Snapshot, readings: Sequence[Reading], *, width: int, room: int) -> list[Text]:
    """Return a line for each worker and each GPU, at most eight of each; in `room` for fewer lines, the
    GPUs share one, and then the workers too."""
    num_workers = min(len(snapshot.workers), _MAX_LINES)
    folded = len(readings) > _MAX_LINES or (len(readings) > 1 and num_workers + len(readings) > room)
    gpus = [_gpus(readings, width)] if folded else [_gpu(reading, width) for reading in readings]
    most = max(1, min(_MAX_LINES, room - len(gpus)))
    if len(snapshot.workers) > most:
        # The line that says how many more there are needs room too.
        most = max(1, min(most, room - len(gpus) - 1))
    shown, others = snapshot.workers[:most], snapshot.workers[most:]
    lines = [_worker(worker, snapshot.elapsed_s, width) for worker in shown]
    return [*lines, *([_others(others, width)] if others else []), *gpus]


def _worker(worker: WorkerState, elapsed_s: float, width: int) -> Text:
    label = f"worker {worker.index}"
    if worker.state == "starting":
        waited = figures.duration(elapsed_s)
        return labelled(label, [Text(f"starting: loading the model   {waited}", style=_WARNING)])
    if worker.state != "running":
        style = _WARNING if worker.state == "restarting" else ""
        return labelled(label, [worker.device, Text(worker.state, style=style), _died(worker)])
    parts: list[str | Text | Part] = [
        worker.device,
        f"busy {whole_percent(worker.busy_ratio)}",
        (2, figures.rate(worker.samples_per_second)),
        (3, f"batch {figures.count(worker.batch_rows)}" if worker.batch_rows else ""),
        (6, f"{figures.gib(worker.peak_bytes)} GiB" if worker.peak_bytes else ""),
        *_waits(worker),
        (1, _died(worker)),
    ]
    return labelled(label, parts, width=width)


def _died(worker: WorkerState) -> Text:
    return Text(f"died {worker.deaths}x" if worker.deaths else "", style=_WARNING)


def _waits(worker: WorkerState) -> list[Part]:
    """Say what a device waits for, the longest first; the rest where there is room."""
    longest = sorted(worker.waits.items(), key=lambda item: -item[1])
    shown = [(stage, share) for stage, share in longest if share >= _SHOWN_WAIT]
    if not shown:
        return []
    style = _WARNING if shown[0][1] >= _LONG_WAIT else "not dim"
    parts: list[Part] = [(1, Text(f"waits: {_share(*shown[0])}", style=style))]
    return parts + [(5, Text(_share(stage, share), style="not dim")) for stage, share in shown[1:3]]


def _share(stage: str, share: float) -> str:
    return f"{stage} {share * 100:.0f} %"


def _others(workers: Sequence[WorkerState], width: int) -> Text:
    running = [worker for worker in workers if worker.state == "running"]
    parts: list[str | Text | Part] = [f"and {len(workers)} more workers"]
    if running:
        parts.append((2, figures.rate(sum(worker.samples_per_second for worker in running))))
        parts.append((1, f"busy {_from_to([worker.busy_ratio * 100 for worker in running])} %"))
    if len(running) < len(workers):
        parts.append((1, Text(f"{len(workers) - len(running)} not running", style=_WARNING)))
    return labelled("", parts, width=width)


def _gpu(reading: Reading, width: int) -> Text:
    """Say what a GPU tells about itself."""
    sample = reading.sample
    parts: list[str | Text | Part] = []
    if sample.utilization_ratio is not None:
        parts.append(f"util {whole_percent(sample.utilization_ratio)}")
    parts.append(_memory(sample.memory_used_bytes, reading.gpu.memory_total_bytes))
    if sample.power_watts is not None:
        parts.append((2, f"{sample.power_watts:.0f} W"))
    if sample.temperature_celsius is not None:
        parts.append((2, f"{sample.temperature_celsius:.0f} °C"))
    parts += [(1, trouble) for trouble in _troubles(reading)]
    if sample.sm_clock_hertz is not None:
        parts.append((4, f"{sample.sm_clock_hertz / 1e6:.0f} MHz"))
    if sample.pcie_receive_bytes_per_second is not None and sample.pcie_send_bytes_per_second is not None:
        moved = sample.pcie_receive_bytes_per_second + sample.pcie_send_bytes_per_second
        parts.append((5, f"PCIe {figures.short(moved)}B/s"))
    parts.append((3, Text(figures.plain(reading.gpu.name, longest=_NAME), style="dim")))
    return labelled(f"gpu {reading.gpu.index}", parts, width=width)


def _memory(used: int | None, total: int | None) -> str:
    return f"{figures.gib(used)} / {figures.gib(total)} GiB" if used is not None and total else ""


def _troubles(reading: Reading) -> list[Text]:
    sample, found = reading.sample, []
    if sample.throttled_by:
        found.append(Text(f"slowed: {', '.join(sample.throttled_by).replace('_', ' ')}", style=_WARNING))
    if sample.ecc_errors:
        found.append(Text(f"ECC {sample.ecc_errors}", style="not dim red"))
    if sample.num_xids:
        found.append(Text(f"Xid {sample.last_xid} ({sample.num_xids}x)", style="not dim red"))
    return found


def _gpus(readings: Sequence[Reading], width: int) -> Text:
    """Say the same of many GPUs together."""
    samples = [reading.sample for reading in readings]
    used = [sample.utilization_ratio * 100 for sample in samples if sample.utilization_ratio is not None]
    watts = [sample.power_watts for sample in samples if sample.power_watts is not None]
    degrees = [sample.temperature_celsius for sample in samples if sample.temperature_celsius is not None]
    fullest = max(readings, key=lambda reading: reading.sample.memory_used_bytes or 0)
    memory = _memory(fullest.sample.memory_used_bytes, fullest.gpu.memory_total_bytes)
    troubled = [reading for reading in readings if _troubles(reading)]
    parts: list[str | Text | Part] = [f"util {_from_to(used)} %" if used else ""]
    parts.append((2, f"at most {memory}" if memory else ""))
    parts.append((3, f"{sum(watts):.0f} W" if watts else ""))
    parts.append((3, f"at most {max(degrees):.0f} °C" if degrees else ""))
    for reading in troubled[:1]:
        more = f", and {len(troubled) - 1} more" if len(troubled) > 1 else ""
        trouble = _troubles(reading)[0]
        parts.append((1, Text(f"gpu {reading.gpu.index} {trouble.plain}{more}", style=trouble.style)))
    return labelled(f"{len(readings)} gpus", parts, width=width)


def _from_to(values: Sequence[float]) -> str:
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return low if low == high else f"{low} to {high}"
