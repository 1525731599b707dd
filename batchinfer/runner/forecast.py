"""What a run will take, from a sample of its rows: a range, not a promise; and how it compares in the end."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from batchinfer.engine.remembered import Remembered

if TYPE_CHECKING:
    from batchinfer.config.limits import LimitsOptions
    from batchinfer.runner.prepare import Prepared
    from batchinfer.runner.report import RunReport
    from batchinfer.runner.sampling import Sampled

DEVICES = (1, 2, 4, 8)
_HOUR_S = 3600.0
_WINDOWS = 4
_LEAST_DOUBT = 0.15
"""Machines are as noisy as that, whatever a sample shows."""
_VAGUE_DOUBT = 0.5
"""And so, where the sample was short, or others were at work beside it."""
_BUSY = 1.5
_SHORT_S = 2.0
"""A sample that streams for less says little of the pace of a long run."""


@dataclass(frozen=True, slots=True)
class Range:
    """What is expected, and between what it will lie."""

    low: float
    expected: float
    high: float

    def times(self, factor: float) -> Range:
        """Return it in another unit."""
        return Range(self.low * factor, self.expected * factor, self.high * factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The forecast for a number of devices like those of the sample. Cost where the job says a price, energy
    where the devices tell."""

    devices: int
    seconds: Range
    device_hours: Range
    cost: Range | None
    energy_joules: Range | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What is left to do, what it will take, and which limits that will not keep."""

    rows: int
    input_bytes: int
    output_bytes: int
    sampled_rows: int
    sampled_devices: int
    on_cpu: bool
    here: Line
    lines: tuple[Line, ...]
    warnings: tuple[str, ...]
    hints: tuple[str, ...]


def forecast(prepared: Prepared, sampled: Sampled) -> Forecast:
    """Return what the units that are not committed will take."""
    rows = prepared.planned_rows(prepared.pending)
    plan, limits = prepared.plan, prepared.job.limits
    share = rows / max(plan.num_rows, 1)
    units = len(prepared.pending)
    here = _line(rows, units, sampled, sampled.devices, limits)
    counts = sorted({*DEVICES, sampled.devices})
    return Forecast(
        rows=rows,
        input_bytes=int(share * sum(size for _, size, _ in plan.inputs)),
        output_bytes=round(sampled.output_bytes / max(sampled.rows, 1) * rows),
        sampled_rows=sampled.rows,
        sampled_devices=sampled.devices,
        on_cpu=sampled.on_cpu,
        here=here,
        lines=tuple(_line(rows, units, sampled, count, limits) for count in counts),
        warnings=tuple(_warnings(here, limits)),
        hints=tuple(_hints(rows, sampled)),
    )


def _hints(rows: int, sampled: Sampled) -> Iterator[str]:
    """Say what makes the range as wide as it is."""
    if sampled.stream_s < _SHORT_S and sampled.rows < rows:
        yield f"the sample took {sampled.stream_s:.1f} s: a larger one narrows the range"
    if sampled.load > _BUSY:
        yield f"others are at work here ({sampled.load:.1f} processes to a core), which the range allows for"


def _line(rows: int, units: int, sampled: Sampled, devices: int, limits: LimitsOptions) -> Line:
    """Forecast for some devices: each does what one of the sample did, one unit at a time."""
    seconds = _seconds(rows, sampled, min(devices, units))
    hours = seconds.times(devices / _HOUR_S)
    price = limits.price_per_device_hour
    whole_s = sampled.start_s + sampled.stream_s + sampled.end_s
    watts = None if sampled.energy_joules is None else sampled.energy_joules / whole_s / sampled.devices
    return Line(
        devices=devices,
        seconds=seconds,
        device_hours=hours,
        cost=None if price is None else hours.times(price),
        energy_joules=None if watts is None else seconds.times(devices * watts),
    )


def _seconds(rows: int, sampled: Sampled, devices: int) -> Range:
    """Return the time from start to end.

    Expected is the pace at which the sample's units were committed, after the first. At best, devices wait
    less for rows; at worst, part of what it took to fill the pipeline returns with every unit.
    """
    scale = rows / sampled.rows * sampled.devices / devices
    computing_s = min(sampled.compute_s / max(sampled.lanes, 1), sampled.stream_s)
    pace_s = min(max(_pace_s(sampled), computing_s), sampled.stream_s)
    fill_s = sampled.stream_s - pace_s
    faster, again = (3.0, 0.5) if sampled.stream_s < _SHORT_S else (1.5, 0.25)
    fast_s, slow_s = max(computing_s, pace_s / faster), pace_s + again * fill_s
    is_vague = sampled.stream_s < _SHORT_S or sampled.load > _BUSY
    least = _VAGUE_DOUBT if is_vague else _LEAST_DOUBT
    doubt = max(least, _spread(sampled.commits))
    around_s = sampled.start_s + sampled.end_s
    # A worker's start overlaps with reading the job, where it is run for itself.
    least_s = min(sampled.load_s + sampled.end_s, around_s)
    return Range(
        least_s * (1 - least) + fast_s * scale * (1 - doubt),
        around_s + fill_s + pace_s * scale,
        (around_s + fill_s) * (1 + 2 * least) + slow_s * scale * (1 + doubt),
    )


def _pace_s(sampled: Sampled) -> float:
    """Return the seconds for all rows of the sample, at the pace between its first commit and its last."""
    (first, rows), (last, _) = sampled.commits[0], sampled.commits[-1]
    rest = sampled.rows - rows
    return (last - first) / rest * sampled.rows if rest > 0 else sampled.stream_s


def _spread(commits: Sequence[tuple[float, int]]) -> float:
    """Return by how much the paces of four parts of the sample differ: two standard errors of their mean."""
    size = len(commits) // _WINDOWS
    if size < 1:
        return 0.0
    ends = [commits[part * size - 1] for part in range(1, _WINDOWS + 1)]
    paces, before = [], 0.0
    for part, (at, _) in enumerate(ends):
        rows = sum(rows for _, rows in commits[part * size : (part + 1) * size])
        paces.append((at - before) / max(rows, 1))
        before = at
    mean = statistics.mean(paces)
    return min(2 * statistics.stdev(paces) / _WINDOWS**0.5 / mean, 0.5) if mean else 0.0


def _warnings(here: Line, limits: LimitsOptions) -> list[str]:
    """Say which limits the devices of the sample will not, or may not, keep."""
    found = []
    if limits.deadline is not None:
        found.append(_warning(here.seconds, _left_s(limits.deadline), f"limits.deadline {limits.deadline}"))
    if limits.max_device_hours is not None:
        most = limits.max_device_hours
        found.append(_warning(here.device_hours, most, f"limits.max_device_hours {most:g}"))
    if limits.max_cost is not None and here.cost is not None:
        found.append(_warning(here.cost, limits.max_cost, f"limits.max_cost {limits.max_cost:g}"))
    return [warning for warning in found if warning]


def _warning(takes: Range, most: float, name: str) -> str:
    if takes.high <= most:
        return ""
    return f"{name} {'will' if takes.low > most else 'may'} end the run before it is complete"


def _left_s(deadline: str | float) -> float:
    if not isinstance(deadline, str):
        return deadline
    return dt.datetime.fromisoformat(deadline).timestamp() - time.time()


def _is_sound(entry: Mapping[str, Any]) -> bool:
    return all(isinstance(entry[name], (int, float)) for name in ("rows", "low", "expected", "high"))


_FORECASTS = Remembered("forecasts", days=30, is_sound=_is_sound)


def remember(prepared: Prepared, made: Forecast) -> None:
    """Keep a forecast for the end of the run that it is about."""
    _FORECASTS.put(
        _key(prepared), {"rows": made.rows, "devices": made.here.devices, **asdict(made.here.seconds)}
    )


def against(prepared: Prepared, report: RunReport, *, devices: int) -> dict[str, float | bool] | None:
    """Compare a run with what was forecast for it on this machine: seconds `low`, `expected`, `high` and
    `actual`, and whether it was `inside`. None where nothing was, or of other rows or devices."""
    found = _FORECASTS.get(_key(prepared))
    if found.get("rows") != report.rows_in - report.rows_reused or found.get("devices") != devices:
        return None
    told = {name: float(found[name]) for name in ("low", "expected", "high")}
    return {**told, "actual": report.seconds, "inside": told["low"] <= report.seconds <= told["high"]}


def _key(prepared: Prepared) -> str:
    text = json.dumps([prepared.plan.fingerprint, prepared.job.output.path])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
