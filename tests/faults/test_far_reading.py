"""How a far store is read: few requests for each row group, of the columns that are needed, and ahead."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinfer.storage.ranges import BUDGET_BYTES, PIECE_BYTES, Ranges
from tests.conftest import Run
from tests.faults.server import FaultServer

ROWS, GROUP = 60_000, 10_000
SHARDS = 3
OPTIONS = {"key": "k", "secret": "${env:BATCHINFER_TEST_SECRET}"}


def shard(number: int) -> bytes:
    """Return a file of six row groups: two narrow columns that are used, among wide ones that are not."""
    rng = np.random.default_rng(number)
    first = number * ROWS
    noise = {f"wide{at}": rng.integers(0, 2**62, ROWS) for at in range(40)}
    columns = {
        "id": np.arange(first, first + ROWS),
        **noise,
        "x": np.arange(first, first + ROWS, dtype=np.float32),
    }
    out = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), out, row_group_size=GROUP, compression="none", use_dictionary=False)
    return bytes(out.getvalue().to_pybytes())


def test_requests_and_bytes(tmp_path: Path, batchinfer: Run) -> None:
    """Each file costs its footer and, for each row group, a request for each of the two columns, which lie
    far apart: no more bytes are read than that, and the output is right."""
    with FaultServer(latency_s=0.02) as server:
        for number in range(SHARDS):
            server.put(f"bucket/in/{number}.parquet", shard(number), {})
        whole = sum(len(one.body) for one in server.objects.values())
        job = {
            "job": "far",
            "input": {
                "path": "s3://bucket/in/",
                "storage_options": OPTIONS | {"endpoint_url": server.endpoint},
            },
            "model": {
                "backend": "simulated",
                "seconds_per_batch": 0,
                "signature": {"inputs": {"x": "float32[?]"}, "outputs": {"y": "float32[?]"}},
            },
            "output": {"path": str(tmp_path / "out"), "carry": ["id"]},
        }
        (tmp_path / "job.json").write_text(json.dumps(job))
        done = batchinfer("run", str(tmp_path / "job.json"))
        assert done.returncode == 0, done.stderr
        asked = [(start, stop) for _, start, stop in server.ranges]
    rows = pq.read_table(tmp_path / "out").sort_by("id")
    assert rows["id"].to_pylist() == list(range(SHARDS * ROWS))
    assert (rows["y"].to_numpy() == 2 * np.arange(SHARDS * ROWS, dtype=np.float32)).all()
    # Two footers of each file: to plan, and to read.
    assert len(asked) <= SHARDS * (2 * 2 + 2 * (ROWS // GROUP)), asked
    needed = SHARDS * ROWS * (8 + 4)
    assert sum(stop - start for start, stop in asked) < 2 * needed
    assert 2 * needed < whole / 5


def test_a_row_group_that_is_larger_than_memory_allows(tmp_path: Path, batchinfer: Run) -> None:
    """A far row group of 400 MB is read in pieces, ahead, and is never in memory as a whole."""
    rows, width = 100_000, 1024
    with FaultServer() as server:
        values = np.random.default_rng(1).integers(0, 255, rows * width, np.uint8).view(np.float32)
        values = np.nan_to_num(values)
        table = pa.table(
            {
                "id": np.arange(rows),
                "x": pa.FixedSizeListArray.from_arrays(pa.array(values), width // 4),
                "z": pa.FixedSizeListArray.from_arrays(pa.array(values), width // 4),
            }
        )
        out = pa.BufferOutputStream()
        pq.write_table(table, out, row_group_size=rows, compression="none", use_dictionary=False)
        server.put("bucket/in/0.parquet", out.getvalue().to_pybytes(), {})
        del out, table
        signature = {
            "inputs": dict.fromkeys("xz", f"float32[?, {width // 4}]"),
            "outputs": {"y": "float32[?]"},
        }
        job = {
            "job": "far",
            "input": {
                "path": "s3://bucket/in/",
                "storage_options": OPTIONS | {"endpoint_url": server.endpoint},
            },
            "model": {"backend": "simulated", "seconds_per_batch": 0, "signature": signature},
            "compute": {"host_memory": "256MiB", "concurrency": 1},
            "output": {"path": str(tmp_path / "out"), "carry": ["id"]},
        }
        (tmp_path / "job.json").write_text(json.dumps(job))
        done = batchinfer("run", str(tmp_path / "job.json"), "--log-format", "json")
        assert done.returncode == 0, done.stderr
        asked = [(start, stop) for _, start, stop in server.ranges]
    end = json.loads([line for line in done.stderr.splitlines() if line.startswith("{")][-1])
    assert end["rows_ok"] == rows
    assert end["peak_bytes"] < 480 * 2**20
    assert len(asked) < 20 + 2 * rows * width / PIECE_BYTES * 1.5


@given(
    st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 900)), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 700)), max_size=12),
)
def test_whatever_is_expected(expected: list[tuple[int, int]], reads: list[tuple[int, int]]) -> None:
    """What is read is what lies there, whether it was expected or not, twice or never."""
    content = np.random.default_rng(5).integers(0, 255, 6000, np.uint8).tobytes()
    with ThreadPoolExecutor(3) as pool, pytest.MonkeyPatch.context() as patch:
        patch.setattr("batchinfer.storage.ranges.PIECE_BYTES", 300)
        patch.setattr("batchinfer.storage.ranges.GAP_BYTES", 50)
        patch.setattr("batchinfer.storage.ranges.BUDGET_BYTES", 1000)
        ranges = Ranges(lambda start, stop: content[start:stop], pool)
        for start, length in expected:
            ranges.expect([(start, start + length)])
        for start, length in reads:
            found = ranges.read(start, start + length)
            assert found is None or found == content[start : start + length]
        ranges.close()


def test_it_is_ahead_but_not_without_bounds() -> None:
    """Pieces are asked for before they are read, several at once, up to a number of bytes; what was read makes
    room for the next."""
    began: list[int] = []
    at_once = threading.Semaphore(0)

    def get(start: int, stop: int) -> bytes:
        began.append(start)
        at_once.release()
        return bytes(stop - start)

    with ThreadPoolExecutor(8) as pool:
        ranges = Ranges(get, pool)
        ranges.expect([(0, 3 * BUDGET_BYTES)])
        most = BUDGET_BYTES // PIECE_BYTES
        for _ in range(most):
            assert at_once.acquire(timeout=10)
        time.sleep(0.05)
        assert sorted(began) == [at * PIECE_BYTES for at in range(most)]
        for at in range(3 * most):
            assert len(ranges.read(at * PIECE_BYTES, (at + 1) * PIECE_BYTES) or b"") == PIECE_BYTES
        assert len(began) == 3 * most
        assert ranges.read(0, 10) is None
