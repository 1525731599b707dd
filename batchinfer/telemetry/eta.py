"""When a run will end, and how sure that is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchinfer.telemetry.rates import Meter

_LEAST = 0.03
_SIGMAS, _SIGMAS_OF_FEW = 2.0, 6.0


def eta(rows_left: int, rows_per_second: float) -> float | None:
    """Return the seconds that are left at this rate; None where nobody can tell."""
    if rows_left <= 0:
        return 0.0
    return rows_left / rows_per_second if rows_per_second > 0 else None


def eta_range(rows_left: int, meter: Meter, now: float) -> tuple[float, float] | None:
    """Return the least and the most seconds that are likely left; None where it is too early to tell.

    Two things make an estimate wrong: that the rate scatters from one moment to the next, which evens out
    the longer the rest takes, and that it drifts, which shows where the last seconds differ from the
    whole run: it may go back to what it was, or go on so.
    """
    estimate, scatter = eta(rows_left, meter.rate(now)), meter.scatter()
    if rows_left <= 0 or estimate is None or scatter is None:
        return None
    slices_left = max(estimate / scatter.slice_s, 1.0)
    sigmas = _SIGMAS + _SIGMAS_OF_FEW / scatter.count
    share = max(_LEAST, sigmas * scatter.ratio * math.sqrt(1 / scatter.count + 1 / slices_left))
    rate, overall = meter.rate(now), meter.overall(now)
    rates = [rate]
    if overall > 0:
        trend = (rate - overall) * min(1.0, estimate / meter.seconds(now))
        rates += [overall, max(rate + trend, rate / 2)]
    least, most = rows_left / max(rates), rows_left / min(rates)
    return least / (1 + share), most * (1 + share)
