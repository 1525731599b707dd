"""How fast an output grows, by the times at which its units were committed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchinfer.telemetry.eta import eta, eta_range
from batchinfer.telemetry.rates import Meter

if TYPE_CHECKING:
    from batchinfer.runner.lookout import Look

_WINDOW_S = 600.0
_PAUSE_S = 120.0
_PAUSE_RATIO = 10.0
_SLICES, _GRAIN_S = 8, 0.5
_WIDEST = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast it goes and how long it will take; None where nobody can tell, or nobody is at work."""

    rows_per_second: float | None = None
    eta_s: float | None = None
    eta_least_s: float | None = None
    eta_most_s: float | None = None
    last_commit_s: float | None = None
    """Seconds since the last commit, by the store's clock and ours."""


def pace_of(look: Look, *, now: float) -> Pace:
    """Return the pace of the last ten minutes, since the last pause; `now` counts seconds since 1970."""
    if not look.commits:
        return Pace()
    last_commit_s = max(now - look.commits[-1][0], 0.0)
    status = look.status
    if status.state == "complete" or all(process.is_silent for process in status.processes):
        return Pace(last_commit_s=last_commit_s)
    meter = _meter(look.commits)
    now = max(now, look.commits[-1][0])
    rate, left = meter.rate(now), status.rows_total - status.rows_done
    likely = eta_range(left, meter, now)
    # Of a few commits, all that can be said may be nothing.
    least, most = likely if likely and likely[1] < _WIDEST * likely[0] else (None, None)
    return Pace(
        rows_per_second=rate or None,
        eta_s=eta(left, rate),
        eta_least_s=least,
        eta_most_s=most,
        last_commit_s=last_commit_s,
    )


def _meter(commits: Sequence[tuple[float, int]]) -> Meter:
    """Measure since the last pause: a wait that is much longer than those before it. Workers often commit
    together, so that the time is cut into a few slices only."""
    start, waits = 0, 0.0
    for at in range(1, len(commits)):
        wait, num = commits[at][0] - commits[at - 1][0], at - 1 - start
        if num and wait > max(_PAUSE_S, _PAUSE_RATIO * waits / num):
            start, waits = at, 0.0
        else:
            waits += wait
    (began, _), *rest = commits[start:]
    span_s = min(commits[-1][0] - began, _WINDOW_S)
    meter = Meter(_WINDOW_S, grain_s=max(span_s / _SLICES, _GRAIN_S))
    meter.start(began)
    for moment, rows in rest:
        meter.add(moment, rows)
    return meter


def as_fields(pace: Pace) -> dict[str, Any]:
    """Return it with as many digits as make sense."""
    digits = {"rows_per_second": 3}
    told = {name: getattr(pace, name) for name in Pace.__dataclass_fields__}
    return {
        name: None if value is None else round(value, digits.get(name, 1)) for name, value in told.items()
    }
