"""The traps that lie in the whole way of a row, from a file through the rings to a file."""

from __future__ import annotations

import ctypes
import itertools
import random
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batchinfer
from batchinfer.backends.simulated import SimulatedBackend
from batchinfer.engine import gather, rings
from batchinfer.engine.ring_pipeline import RingPipeline
from batchinfer.engine.rings import RingSizes, Slot
from batchinfer.errors import JobFileError
from batchinfer.runner import assemble
from batchinfer.sinks.jsonl import JsonlOptions, JsonlSink
from batchinfer.sinks.parquet import ParquetOptions, ParquetPart, ParquetSink
from batchinfer.storage import open_store
from batchinfer.testing import LazyDevice
from batchinfer.testing.lazy_device import POISON
from tests.conftest import encoded
from tests.engine.bugs import Aliasing

_spaces = itertools.count()


def on_device(monkeypatch: pytest.MonkeyPatch, device: LazyDevice, rng: random.Random) -> None:
    """Let workers of this process compute on a lazy device, through rings of random sizes."""
    sizes = RingSizes(
        pinned_in=rng.randint(3, 6),
        device_in=rng.randint(1, 4),
        device_out=rng.randint(1, 4),
        pinned_out=rng.randint(3, 6),
    )

    def open_pipeline(backend: Any, name: str, *, host_bytes: int) -> RingPipeline:
        return RingPipeline(backend, device, sizes)

    monkeypatch.setattr(assemble, "open_pipeline", open_pipeline)


class Prompt(LazyDevice):
    """Computes at once."""

    def forward(self, backend: Any, tensors: Mapping[str, Any], stream: Any) -> Mapping[str, Any]:
        """Queue, and wait."""
        results = super().forward(backend, tensors, stream)
        stream.record().synchronize()
        return results


class Strict(LazyDevice):
    """A model that looks at its inputs before it queues anything, and may refuse them."""

    def forward(self, backend: Any, tensors: Mapping[str, Any], stream: Any) -> Mapping[str, Any]:
        """Look, and queue."""
        stream.record().synchronize()
        backend.forward(tensors)
        return super().forward(backend, tensors, stream)


def run_rows(rng: random.Random, num_rows: int = 400, **model: Any) -> pa.Table:
    """Run rows of random lengths, of which the first number is the row's own, and return the output.

    The model adds a row's numbers up and doubles them: y = 2 id, in whichever batch a row was.
    """
    root = f"memory://rings-{next(_spaces)}"
    lengths = [rng.choice([1, 2, 3, 8, 40]) for _ in range(num_rows)]
    rows = pa.table(
        {
            "id": pa.array(range(num_rows), pa.int64()),
            "ids": pa.array(
                [[at] + [0] * (size - 1) for at, size in enumerate(lengths)], pa.list_(pa.int64())
            ),
        }
    )
    out = pa.BufferOutputStream()
    pq.write_table(rows, out, row_group_size=90)
    store = open_store(root, {})
    store.put(f"{root}/in/rows.parquet", out.getvalue())
    signature = {"inputs": {"ids": "int64[?, ?]"}, "outputs": {"y": "float64[?]", "z": "int32[?, 3]"}}
    report = batchinfer.run_job(
        {
            "job": "t",
            "input": {"path": f"{root}/in/"},
            "model": {"backend": "simulated", "seconds_per_batch": 0, "signature": signature, **model},
            "errors": {"max": "100%"},
            "batching": {"size": rng.choice([3, 16]), "window_rows": rng.choice([50, 120])},
            "compute": {"concurrency": 1},
            "checkpoint": {"unit_rows": rng.choice([60, 150])},
            "output": {"path": f"{root}/out/", "carry": ["id"]},
        }
    )
    assert report.rows_ok == num_rows - len(model.get("faults", ()))
    parts = sorted(store.glob(f"{root}/out/**/*.parquet"), key=lambda entry: entry.uri.rpartition("/")[2])
    return pa.concat_tables([pq.read_table(pa.BufferReader(store.read(part.uri))) for part in parts])


def is_right(table: pa.Table) -> bool:
    """Tell whether every row is there once, in order, with the result of its own number."""
    ids = table["id"].to_pylist()
    expected = {
        "id": sorted(set(ids)),
        "y": [2.0 * at for at in ids],
        "z": [[2 * at] * 3 for at in ids],
    }
    return all(table[name].to_pylist() == values for name, values in expected.items())


@pytest.mark.parametrize("seed", range(6))
def test_what_comes_out_is_what_went_in(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 12: rows of random lengths, sorted and cut, stand in their order again with their own results,
    also when every copy and every forward pass is as late as it may be."""
    rng = random.Random(seed)
    on_device(monkeypatch, LazyDevice(is_racing=seed % 2 == 0), rng)
    assert is_right(run_rows(rng))


@pytest.mark.parametrize("seed", range(3))
def test_batches_that_do_not_fit(
    seed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Batches that are known not to fit were staged whole: their slots are given back, and their pieces go
    through the rings beside those of other batches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for is_known in (False, True):
        rng = random.Random(seed)
        on_device(monkeypatch, Strict(), rng)
        assert is_right(run_rows(rng, num_rows=900, memory_rows=2))
        assert ("do not fit" in capfd.readouterr().err) != is_known


def test_the_wrong_permutation_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 12: taking the rows by where they went, instead of by where they came from, is not the same."""
    monkeypatch.setattr(gather, "_source_order", lambda positions, _: pa.array(positions))
    assert not is_right(run_rows(random.Random(1)))


def test_a_result_that_aliases_a_slot_is_seen_in_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 7: results that are views of a slot are wrong in the output."""
    rng = random.Random(2)
    on_device(monkeypatch, LazyDevice(), rng)
    monkeypatch.setattr(rings, "Slot", Aliasing)
    assert not is_right(run_rows(rng))
    monkeypatch.setattr(rings, "Slot", Slot)
    assert is_right(run_rows(rng))


def test_one_thread_runs_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 10: a session and its graph are used by the launching thread alone."""
    names = set()

    def forward(self: SimulatedBackend, tensors: Any) -> Any:
        names.add(threading.current_thread().name)
        return real(self, tensors)

    real = SimulatedBackend.forward
    monkeypatch.setattr(SimulatedBackend, "forward", forward)
    rng = random.Random(3)
    on_device(monkeypatch, Prompt(), rng)
    assert is_right(run_rows(rng))
    assert names == {"launch"}


def threads_beside(before: set[threading.Thread]) -> list[str]:
    """Return the names of the threads that are new, without those of a store, which ends with the process."""
    return [one.name for one in threading.enumerate() if one not in before and "fetch" not in one.name]


@pytest.mark.parametrize("seed", range(6))
def test_a_model_that_fails_ends_the_run(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that surfaces late, in whichever thread waits first, ends the run as what it is, and no stage
    waits for a slot that nobody will free."""
    calls = itertools.count()

    def forward(self: SimulatedBackend, tensors: Any) -> Any:
        if next(calls) > 8 + 2 * seed:
            raise JobFileError("the model refuses its work")
        return real(self, tensors)

    real = SimulatedBackend.forward
    monkeypatch.setattr(SimulatedBackend, "forward", forward)
    rng = random.Random(seed)
    if seed % 3:  # else on the CPU itself
        on_device(monkeypatch, LazyDevice(is_racing=seed % 3 == 1), rng)
    before = set(threading.enumerate())
    with pytest.raises(JobFileError, match="refuses its work"):
        run_rows(rng)
    deadline = time.monotonic() + 10
    while (left := threads_beside(before)) and time.monotonic() < deadline:
        time.sleep(0.01)  # those that were told to end are ending
    assert not left


@pytest.mark.parametrize("fault", ["error", "memory"])
@pytest.mark.parametrize("seed", range(4))
def test_rows_that_fail_on_a_device(seed: int, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that a model on a device refuses while it is called cost their neighbours nothing: the pieces of
    their batches go through the same rings."""
    rng = random.Random(seed)
    on_device(monkeypatch, Strict(is_racing=seed % 2 == 1), rng)
    bad = sorted({1, 2, 399, *rng.sample(range(1, 400), 12)})
    table = run_rows(rng, faults={str(float(row)): fault for row in bad})
    assert [row for row, error in enumerate(table["_error"].to_pylist()) if error] == bad
    assert is_right(table.filter(table["_error"].is_null()))


def poison(column: pa.ChunkedArray) -> None:
    """Overwrite the values of a column, wherever they are."""
    for chunk in column.chunks:
        ctypes.memset(chunk.buffers()[1].address, POISON, chunk.buffers()[1].size)


def test_a_part_is_done_with_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 13: when the encoder has returned, results may be overwritten; the published part stays."""
    real_write, real_finish = ParquetPart.write, ParquetPart.finish
    written: dict[int, list[pa.Table]] = {}

    def write(self: ParquetPart, rows: pa.Table) -> None:
        real_write(self, rows)
        written.setdefault(id(self), []).append(rows)

    def finish(self: ParquetPart, metadata: Mapping[str, str]) -> pa.Buffer:
        data = real_finish(self, metadata)
        for rows in written.pop(id(self)):
            poison(rows["y"])
        return data

    monkeypatch.setattr(ParquetPart, "write", write)
    monkeypatch.setattr(ParquetPart, "finish", finish)
    assert is_right(run_rows(random.Random(4)))


def survives(encode: Callable[[pa.Table], Any]) -> bool:
    """Tell whether encoded rows are the same bytes after the rows are overwritten."""
    values = np.arange(5000, dtype=np.float64)
    rows = pa.table({"y": pa.array(values)})
    data = encode(rows)
    before = bytes(data)
    values.fill(np.nan)
    return bytes(data) == before


def test_formats_keep_no_view() -> None:
    """Trap 13: neither format refers to the rows that it has encoded; one that does is found out."""
    assert survives(lambda rows: encoded(ParquetSink(ParquetOptions(path="out/")), rows, {}))
    assert survives(lambda rows: encoded(JsonlSink(JsonlOptions(path="out/", format="jsonl")), rows, {}))
    assert not survives(lambda rows: rows["y"].chunk(0).buffers()[1])
