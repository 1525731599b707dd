"""The advisor names the stage that was made slow, with its figure and the setting to change."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batchinfer
from batchinfer.engine import unit
from batchinfer.engine.device import CpuPipeline
from batchinfer.engine.ring_pipeline import RingPipeline
from batchinfer.engine.rings import RingSizes
from batchinfer.events import RunFinished
from batchinfer.runner import assemble
from batchinfer.sinks.parquet import ParquetPart
from batchinfer.sources.parquet import ParquetSource
from batchinfer.storage import open_store
from batchinfer.storage.objects import ObjectStore
from batchinfer.telemetry.advice import advise, bottleneck
from batchinfer.telemetry.snapshot import Snapshot, WorkerState
from batchinfer.telemetry.tally import Tally
from batchinfer.testing import LazyDevice
from tests.conftest import numbers

_spaces = itertools.count()
Patch = pytest.MonkeyPatch
Sections = dict[str, Any]

STEPS = """
import time

def slow_step(rows):
    time.sleep(0.0016 * rows.num_rows)
    return {"x": rows["x"]}

def slow_post(results):
    time.sleep(0.05 if len(results["y"]) else 0)
    return results
"""


def slowly(function: Callable[..., Any], seconds: float, *, only: str = "") -> Callable[..., Any]:
    """Return a function that waits first, where `only` stands in its second argument."""

    def call(*arguments: Any, **more: Any) -> Any:
        if not only or only in arguments[1]:
            time.sleep(seconds)
        return function(*arguments, **more)

    return call


def run(root: str = "", **sections: Any) -> Snapshot:
    """Run 640 rows in batches of 32, a batch in 2 ms, in this process; return what was counted."""
    root = f"memory://advice-{next(_spaces)}"
    out = pa.BufferOutputStream()
    pq.write_table(numbers(0, 640), out, row_group_size=64)
    open_store(root, {}).put(f"{root}/in/rows.parquet", out.getvalue())
    document: dict[str, Any] = {
        "job": "slow",
        "input": {"path": f"{root}/in/"},
        "model": {"backend": "simulated", "seconds_per_batch": 0.002},
        "batching": {"size": 32},
        "checkpoint": {"unit_rows": 64},
        "compute": {"devices": "cpu", "loaders": "threads", "readers": 1},
        "output": {"path": f"{root}/out/"},
    }
    for name, section in sections.items():
        document[name] = {**document[name], **section} if isinstance(section, dict) else section
    tally = Tally()
    batchinfer.run_job(document, observers=[tally])
    return tally.snapshot()


def slow_read(patch: Patch) -> Sections:
    """Reading a chunk of 64 rows takes 0.1 s."""
    read = ParquetSource.read

    def slow(self: ParquetSource, *rest: Any, **more: Any) -> Iterator[Any]:
        for chunk in read(self, *rest, **more):
            time.sleep(0.1)
            yield chunk

    patch.setattr(ParquetSource, "read", slow)
    return {}


def slow_decode(patch: Patch) -> Sections:
    """A step takes 1.6 ms for a row."""
    step = {"function": "slow_steps_of_advice:slow_step", "columns": ["x"], "output": {"x": "float32"}}
    return {"preprocess": [{"python": step}]}


def slow_pack(patch: Patch) -> Sections:
    """Putting a batch together takes 50 ms."""
    from batchinfer.loader.windows import batches_of

    def slow(*arguments: Any) -> Iterator[Any]:
        for batch in batches_of(*arguments):
            time.sleep(0.05)
            yield batch

    patch.setattr(unit, "batches_of", slow)
    return {}


def slow_transfer(patch: Patch) -> Sections:
    """Each batch takes 50 ms to the device."""

    class Far(LazyDevice):
        """Copies slowly, and does everything as soon as it may."""

        def upload(self, into: Any, source: Any, num_bytes: int, stream: Any) -> None:
            """Queue a slow copy, and do it."""
            stream.enqueue(lambda: time.sleep(0.05))
            super().upload(into, source, num_bytes, stream)

    def open_pipeline(backend: Any, name: str, *, host_bytes: int) -> RingPipeline:
        return RingPipeline(backend, Far(), RingSizes(host_bytes=host_bytes))

    patch.setattr(assemble, "open_pipeline", open_pipeline)
    return {"compute": {"concurrency": 1}}


def slow_compute(patch: Patch) -> Sections:
    """The model takes 50 ms for a batch."""
    return {"model": {"seconds_per_batch": 0.05}}


def slow_postprocess(patch: Patch) -> Sections:
    """A step takes 50 ms for a batch of results."""
    return {"postprocess": [{"python": {"function": "slow_steps_of_advice:slow_post"}}]}


def slow_write(patch: Patch) -> Sections:
    """Encoding 64 rows takes 0.4 s, on four threads."""
    patch.setattr(ParquetPart, "write", slowly(ParquetPart.write, 0.4))
    return {"output": {"compression": "zstd"}}


def slow_launch(patch: Patch) -> Sections:
    """A batch that is there waits 50 ms until the model is called."""
    patch.setattr(CpuPipeline, "submit", slowly(CpuPipeline.submit, 0.05))
    return {"compute": {"concurrency": 1}}


def slow_commit(patch: Patch) -> Sections:
    """The store takes 0.4 s for a part, and four at once."""
    patch.setattr(ObjectStore, "create", slowly(ObjectStore.create, 0.4, only="/part-"))
    return {}


@pytest.mark.parametrize(
    ("stage", "plant", "words"),
    [
        ("read", slow_read, "for reading: set compute.workers_per_device to 2"),
        ("decode", slow_decode, "for decoding: set compute.readers to 4 (now 1); expected gain about"),
        ("pack", slow_pack, "for batches to be packed: set batching.size to 128 (now 32 rows)"),
        ("transfer", slow_transfer, "for inputs to be transferred: send smaller types"),
        ("postprocess", slow_postprocess, "for postprocessing: set compute.workers_per_device to 2"),
        ("write", slow_write, "for parts to be encoded: set output.compression to none (now zstd)"),
        ("commit", slow_commit, "for the store to take parts: set checkpoint.unit_rows to 256 (now 64)"),
        ("launch", slow_launch, "for batches to be launched: set batching.size to 64 (now 32 rows)"),
        ("compute", slow_compute, ""),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_the_slow_stage_is_named(
    tmp_path: Path, monkeypatch: Patch, stage: str, plant: Callable[[Patch], Sections], words: str
) -> None:
    """Whichever stage takes longer than the model, it is the one that is named, with its share of the time
    and what to change; where the model itself takes all of it, nothing is said."""
    (tmp_path / "slow_steps_of_advice.py").write_text(STEPS)
    monkeypatch.chdir(tmp_path)
    sections = plant(monkeypatch)
    monkeypatch.setattr("batchinfer.runner.facts.usable_cores", lambda: 4)
    seen = run(**sections)
    assert bottleneck(seen) == stage, seen.stage_seconds
    if not words:
        assert advise(seen) == ()
        return
    first = advise(seen)[0]
    share = 100 * seen.stage_seconds[stage] / sum(seen.stage_seconds.values())
    assert f"the device waited {share:.0f} % of the time {words}" in first
    assert re.search(r"gain about \d+ %", first)


def test_a_slow_start_is_named() -> None:
    """Where loading the model takes most of the run, that is said, with the seconds, although the device computed
    all the time after it; the stages and what limits them stay what they are."""
    seen = run(model={"seconds_per_batch": 0.05, "load_seconds": 2.5})
    assert bottleneck(seen) == "compute"
    assert seen.start_s is not None
    assert 2.5 <= seen.start_s < seen.elapsed_s
    assert sum(seen.stage_seconds.values()) <= seen.elapsed_s - 2.5
    (said,) = advise(seen)
    assert said == (
        f"{seen.start_s:.1f} of {seen.elapsed_s:.1f} s were planning and loading the model: more rows per run, "
        "or fewer processes that share them, spread that"
    )


@pytest.mark.parametrize(
    ("start_s", "elapsed_s", "exit_code", "is_said"),
    [
        (6.1, 8.9, 0, True),
        (4.4, 8.9, 0, False),
        (0.9, 1.0, 0, False),
        (6.1, 8.9, 75, False),
        (None, 8.9, 0, False),
    ],
)
def test_when_a_start_is_slow(start_s: float | None, elapsed_s: float, exit_code: int, is_said: bool) -> None:
    """Half of the run and a second at least, of a run that was not ended early; before what the device waited for,
    and two sentences at most."""
    finished = RunFinished(exit_code=exit_code, seconds=elapsed_s, complete=not exit_code)
    half = snapshot(compute=4.0, read=4.0)
    waits = advise(half)
    told = advise(replace(half, start_s=start_s, elapsed_s=elapsed_s, finished=finished))
    if is_said:
        assert told[0].startswith("6.1 of 8.9 s were planning and loading the model: ")
        assert told[1:] == waits[:1]
    else:
        assert told == waits


def snapshot(settings: dict[str, Any] | None = None, device: str = "cpu", **seconds: float) -> Snapshot:
    """Return a run whose device spent its time so."""
    worker = WorkerState(index=0, device=device, state="gone")
    return Snapshot(stage_seconds=seconds, workers=(worker,), settings=settings or {}, cores=16)


def test_who_is_busy_needs_no_advice() -> None:
    """At 95 % and more nothing is said, nor where the waits are too short to matter."""
    assert advise(snapshot(compute=95.0, read=5.0)) == ()
    assert advise(snapshot(compute=0.4, read=0.4)) == ()
    assert advise(snapshot()) == ()
    assert bottleneck(snapshot()) is None
    assert len(advise(snapshot(compute=50.0, read=50.0))) == 2


@pytest.mark.parametrize(
    ("settings", "waited", "said"),
    [
        ({"compute.readers": 3}, 41, "waited 41 % of the time for decoding: set compute.readers to 6"),
        ({"compute.readers": 3}, 41, "expected gain about 69 %"),
        ({"compute.readers": 4}, 90, "set compute.readers to 16 (now 4); expected gain about 300 %"),
        ({"compute.readers": 16}, 41, "compute.readers is 16 on 16 cores: a machine with more cores"),
    ],
)
def test_the_gain_is_reckoned(settings: dict[str, Any], waited: float, said: str) -> None:
    """As many readers as the wait is long, within the cores; what they gain is bounded by both."""
    assert said in advise(snapshot(settings, compute=100 - waited, decode=waited))[0]
