"""What fits is learnt, remembered for the model and the device, and tried again where there is room."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from batchinfer.data import HostBatch
from batchinfer.engine.ceiling import Ceiling


class Memory:
    """Memory that says what it is told to."""

    def __init__(self, share: float | None) -> None:
        self.taken = share

    def share(self) -> float | None:
        """Return what was told."""
        return self.taken

    def reset(self) -> None:
        """Do nothing."""


def batch(num_rows: int, *, width: int = 0) -> HostBatch:
    """Return so many rows, padded to a width."""
    window: Any = None
    return HostBatch(window=window, rows=np.arange(num_rows), tensors={}, width=width)


def ceiling(share: float | None, *, model: str = "model", device: str = "device") -> Ceiling:
    """Return what is known of a model on a device."""
    memory: Any = Memory(share)
    return Ceiling(model, device, memory)


def largest(known: Ceiling, rows: HostBatch) -> int:
    """Return the rows of the largest piece."""
    return max(stop - start for start, stop in known.cuts(rows))


def test_it_rises_while_there_is_room(capfd: pytest.CaptureFixture[str]) -> None:
    """After sixteen batches that left more than a fifth of the memory free, a quarter more is tried, and a
    step too far goes back to what went well, for good; a later run begins there."""
    known, whole = ceiling(0.5), batch(512)
    known.learn(whole, [(0, 64), (64, 128)])
    for _ in range(15):
        known.passed(whole)
    assert largest(known, whole) == 64
    known.passed(whole)
    assert largest(known, whole) == 80
    known.learn(batch(80), [(0, 40), (40, 80)])
    assert largest(known, whole) == 64
    for _ in range(64):
        known.passed(whole)
    assert largest(known, whole) == 64
    assert largest(ceiling(None), whole) == 64
    said = capfd.readouterr().err.splitlines()
    assert said[0] == "memory of device: 512 rows do not fit; from now on 64 at once"
    assert said[1] == "memory of device: 64 rows leave 50% free; from now on 80 at once"
    assert len(said) == 3


@pytest.mark.parametrize("share", [None, 0.8, 1.0])
def test_it_stays_where_nothing_shows_room(share: float | None) -> None:
    """Without a figure, or with less than a fifth free, nothing is tried."""
    known, whole = ceiling(share), batch(512)
    known.learn(whole, [(0, 64)])
    for _ in range(64):
        known.passed(whole)
    assert largest(known, whole) == 64


def test_it_is_known_for_each_model_device_and_length() -> None:
    """Other models, devices and lengths know nothing of it; rows of a like length do."""
    ceiling(None).learn(batch(512, width=100), [(0, 64)])
    assert largest(ceiling(None), batch(512, width=128)) == 64
    assert largest(ceiling(None), batch(512, width=129)) == 512
    assert largest(ceiling(None, model="other"), batch(512, width=100)) == 512
    assert largest(ceiling(None, device="other"), batch(512, width=100)) == 512
