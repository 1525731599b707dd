"""How long a run still takes, and how sure that is."""

from __future__ import annotations

import random

import pytest

from batchinfer.telemetry.eta import eta, eta_range
from batchinfer.telemetry.rates import Meter

ROWS = 20_000


def ranges(seed: int, *, scatter: float, batch_s: float) -> list[tuple[float, float, float]]:
    """Return the least and the most seconds that are told at 10, 30, 50 and 80 % of a run whose batches scatter
    around a mean, and the seconds that it then took."""
    rng, meter, now, told = random.Random(seed), Meter(), 0.0, []
    meter.start(0.0)
    for done in range(100, ROWS + 1, 100):
        now += batch_s * max(0.05, rng.lognormvariate(0, scatter))
        meter.add(now, 100)
        if done * 10 // ROWS in {1, 3, 5, 8} and done * 10 % ROWS == 0:
            found = eta_range(ROWS - done, meter, now)
            if found is not None:
                told.append((*found, now))
    return [(least, most, now - at) for least, most, at in told]


@pytest.mark.parametrize(("scatter", "batch_s"), [(0.1, 0.2), (0.5, 0.2), (0.1, 10.0), (1.0, 3.0)])
def test_the_end_lies_in_the_range(scatter: float, batch_s: float) -> None:
    """Nine times in ten, a run takes no less and no longer than it was said to; steady ones are told closely."""
    told = [one for seed in range(50) for one in ranges(seed, scatter=scatter, batch_s=batch_s)]
    assert len(told) > 150
    inside = sum(least <= actual <= most for least, most, actual in told)
    assert inside >= 0.9 * len(told)
    if (scatter, batch_s) == (0.1, 0.2):
        assert all(most < 1.35 * least for least, most, _ in told)


def test_a_rate_that_fell_may_recover_or_go_on_falling() -> None:
    """Where the last seconds differ from the whole run, the range holds both."""
    meter = Meter()
    meter.start(0.0)
    for second in range(1, 101):
        meter.add(float(second), 100.0 if second <= 60 else 50.0)
    assert eta(8_000, meter.rate(100.0)) == pytest.approx(160)
    least, most = eta_range(8_000, meter, 100.0) or (0.0, 0.0)
    assert least < 8_000 / meter.overall(100.0) == pytest.approx(100)
    assert most > 250


def test_too_early_to_tell() -> None:
    """Before there are some batches there is no range; without a rate there is no end; at the end, nothing is
    left."""
    meter = Meter()
    assert (eta(10, meter.rate(0.0)), eta_range(10, meter, 0.0)) == (None, None)
    meter.start(0.0)
    meter.add(1.0, 100)
    meter.add(2.0, 100)
    assert eta_range(1000, meter, 2.0) is None
    meter.add(3.0, 100)
    assert eta_range(1000, meter, 3.0) is not None
    assert (eta(0, meter.rate(3.0)), eta_range(0, meter, 3.0)) == (0.0, None)
