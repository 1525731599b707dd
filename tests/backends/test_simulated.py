"""The simulated model takes the time it is told to, and its results tell whose they are."""

import fcntl
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batchinfer.backends.simulated import SimulatedBackend, SimulatedOptions
from batchinfer.backends.type_text import Signature
from batchinfer.errors import ContractError


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Note how long the backend would sleep, and do not."""
    seconds: list[float] = []
    monkeypatch.setattr("time.sleep", seconds.append)
    return seconds


def loaded(**options: Any) -> SimulatedBackend:
    """Return a loaded backend."""
    backend = SimulatedBackend(SimulatedOptions(**options))
    backend.load("cpu", threads=1)
    return backend


def test_y_is_twice_x(slept: list[float]) -> None:
    """Without options it takes x and gives y = 2 x, after 20 ms."""
    backend = loaded()
    assert [str(spec) for spec in (*backend.inputs, *backend.outputs)] == ["x: float32[?]", "y: float32[?]"]
    assert backend.forward({"x": np.array([1, 2.5], np.float32)})["y"].tolist() == [2, 5]
    assert slept == [0, 0.02]


def test_time_is_by_batch_and_by_row(slept: list[float]) -> None:
    """Loading, batches and rows take what the options say."""
    backend = loaded(seconds_per_batch=1.0, seconds_per_row=0.5, load_seconds=7.0)
    backend.forward({"x": np.zeros(4, np.float32)})
    assert slept == [7, 3]


def test_every_row_is_told_by_its_result(slept: list[float]) -> None:
    """Results have the declared types, depend on every input of their row, and not on padding."""
    del slept
    signature = Signature(
        inputs={"ids": "int64[?, ?]", "name": "string"},
        outputs={"v": "float64[?, 2]", "n": "int64[?]", "t": "string"},
    )
    backend = loaded(signature=signature)
    ids, names = np.array([[1, 2], [3, 4]]), pa.array(["a", "b"])
    results = backend.forward({"ids": ids, "name": names})
    assert results["v"].shape == (2, 2)
    assert results["n"].dtype == np.int64
    assert results["t"].to_pylist() == [str(value) for value in results["v"][:, 0]]
    padded = backend.forward({"ids": np.pad(ids, ((0, 0), (0, 3))), "name": names})
    np.testing.assert_array_equal(padded["v"], results["v"])
    swapped = backend.forward({"ids": ids, "name": names.take(pa.array([1, 0]))})
    assert not np.isin(swapped["v"], results["v"]).any()


def test_outputs_it_cannot_make_up_are_refused() -> None:
    """An axis of unknown size has no value to give."""
    with pytest.raises(ContractError, match="cannot make up"):
        loaded(signature=Signature(inputs={"x": "float32[?]"}, outputs={"y": "float32[?, ?]"}))


def test_exclusive_batches_hold_the_machines_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a batch is computed nobody else gets the lock; before and after, anybody does."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    backend = loaded(exclusive=True)
    (lock,) = tmp_path.iterdir()
    descriptor = os.open(lock, os.O_RDWR)

    def is_free() -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        return True

    free_inside: list[bool] = []
    monkeypatch.setattr("time.sleep", lambda _: free_inside.append(is_free()))
    assert is_free()
    backend.forward({"x": np.zeros(1, np.float32)})
    assert is_free()
    assert free_inside == [False]
    backend.close()
    os.close(descriptor)


def test_lengths_of_time_are_not_negative() -> None:
    """A negative time is refused when the job is read."""
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        SimulatedOptions(seconds_per_batch=-1.0)
