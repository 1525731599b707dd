"""What the tests share: the command as a user runs it, and small jobs with an answer that is known."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings

from batchinfer.protocols import Sink

settings.register_profile(
    "default", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("default")

Run = Callable[..., "subprocess.CompletedProcess[str]"]

CANARY = "canary-secret-4be1d2c7"  # a secret of every job below: no run may write it down anywhere
os.environ["BATCHINFER_TEST_SECRET"] = CANARY


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test learn from another what fits into memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def environment() -> dict[str, str]:
    """Return an environment without colour, terminal width or interpreter noise."""
    kept = {key: value for key, value in os.environ.items() if key not in {"FORCE_COLOR", "CLICOLOR_FORCE"}}
    return {**kept, "NO_COLOR": "1", "COLUMNS": "120", "PYTHONWARNINGS": "ignore"}


@pytest.fixture
def batchinfer(tmp_path: Path) -> Iterator[Run]:
    """Run the command line as a user does, in a process of its own. What it prints, and every file that
    the test leaves, is searched for the secret of the jobs."""
    said: list[str] = []

    def run(
        *arguments: str, stdin: str | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "batchinfer", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=environment(),
        )
        said.extend((done.stdout, done.stderr))
        return done

    yield run
    assert not any(CANARY in text for text in said), "the secret was printed"
    told = [path for path in tmp_path.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    assert told == [], "the secret was written down"


def numbers(start: int, stop: int) -> pa.Table:
    """Return rows with an id, a float to double, a text and a key to partition by."""
    ids = np.arange(start, stop)
    return pa.table(
        {
            "id": pa.array(ids, pa.int64()),
            "x": pa.array(ids * 0.5, pa.float32()),
            "text": pa.array([f"row {row}" for row in ids], pa.string()),
            "kind": pa.array([("even", "odd")[row % 2] for row in ids], pa.string()),
        }
    )


def write_shards(folder: Path, sizes: list[int], *, row_group: int = 100) -> None:
    """Write numbered rows as Parquet shards of the given sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for index, size in enumerate(sizes):
        pq.write_table(
            numbers(start, start + size), folder / f"shard-{index}.parquet", row_group_size=row_group
        )
        start += size


def doubling_job(folder: Path, **sections: Any) -> Path:
    """Write a job that doubles `x` with the simulated backend; `sections` are merged into it."""
    document: dict[str, Any] = {
        "job": "doubling",
        "input": {"path": "in/"},
        "model": {"backend": "simulated", "seconds_per_batch": 0},
        "batching": {"size": 32},
        "output": {
            "path": "out/",
            "carry": ["id"],
            "storage_options": {"password": "${env:BATCHINFER_TEST_SECRET}"},
        },
        "checkpoint": {"unit_rows": 100},
    }
    for name, section in sections.items():
        merged = {**document.get(name, {}), **section} if isinstance(section, Mapping) else section
        document[name] = merged
    path = folder / "job.yaml"
    path.write_text(json.dumps(document))
    return path


def encoded(
    sink: Sink, rows: pa.Table, metadata: Mapping[str, str], *, cuts: Sequence[int] = ()
) -> pa.Buffer:
    """Encode a part, its rows at once or cut before some of them."""
    part = sink.begin(rows.schema, {})
    bounds = [0, *cuts, rows.num_rows]
    for start, stop in itertools.pairwise(bounds):
        part.write(rows.slice(start, stop - start))
    return part.finish(metadata)


def parts_of(folder: Path) -> dict[str, bytes]:
    """Return every visible file of an output, by relative name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(("_", ".")) for part in path.relative_to(folder).parts)
    }
