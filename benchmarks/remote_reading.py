"""How well is a far store read? `python benchmarks/remote_reading.py`

Twelve Parquet files lie on a server that answers after 50 ms and sends 25 MB/s over a connection: 41 columns
of numbers, of which a job needs three that lie apart. Rounds take turns:

- `batchinfer`: a run over them whose model takes no time;
- `pyarrow`: one loop with `pre_buffer`, which asks for a row group's columns at once, and decodes no other;
- `limit`: the bytes alone that are needed, by as many connections as batchinfer has, known beforehand.

Compared are seconds from the first request for rows to the last answer; and requests, and bytes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from obstore.store import S3Store

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from tests.faults.server import FaultServer  # noqa: E402 - the repository's root must be known first

LATENCY_S, BYTES_PER_S = 0.05, 25e6
CONNECTIONS, PIECE_BYTES = 8, 4 * 1024 * 1024
FOOTER_BYTES = 100_000
COLUMNS = ["id", "x", "y"]


def file_of(number: int, rows: int) -> bytes:
    """Return a file of four row groups."""
    rng = np.random.default_rng(number)
    first = number * rows
    unused = {f"w{at}": rng.integers(0, 2**62, rows) for at in range(19)}
    columns = {
        "id": np.arange(first, first + rows),
        **unused,
        "x": rng.random(rows),
        **{f"v{at}": column for at, column in enumerate(unused.values())},
        "y": rng.random(rows),
    }
    out = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), out, row_group_size=rows // 4, compression="none", use_dictionary=False)
    return bytes(out.getvalue().to_pybytes())


def ours(server: FaultServer, folder: Path, rows: int) -> None:
    """Run a job over the files."""
    storage = {"endpoint_url": server.endpoint, "key": "k", "secret": "${env:SECRET}"}
    job = {
        "job": "far",
        "input": {"path": "s3://bucket/in/", "storage_options": storage},
        "model": {
            "backend": "simulated",
            "seconds_per_batch": 0,
            "signature": {
                "inputs": {"x": "float64[?]", "y": "float64[?]"},
                "outputs": {"z": "float64[?]"},
            },
        },
        "output": {"path": str(folder / "out"), "carry": ["id"]},
    }
    (folder / "job.json").write_text(json.dumps(job))
    shutil.rmtree(folder / "out", ignore_errors=True)
    subprocess.run(
        [sys.executable, "-m", "batchinfer", "run", str(folder / "job.json")],
        check=True,
        capture_output=True,
        env={**os.environ, "SECRET": "s"},
    )
    ids = ds.dataset(folder / "out").to_table(columns=["id"])["id"].to_numpy()
    if not (np.sort(ids) == np.arange(rows)).all():
        raise SystemExit(f"{rows} rows went in, others came out")


def store_of(server: FaultServer) -> S3Store:
    """Return a bare client."""
    options: Any = {"allow_http": True}
    return S3Store(
        "bucket",
        endpoint=server.endpoint,
        region="us-east-1",
        access_key_id="k",
        secret_access_key="s",  # noqa: S106 - the server asks for none
        client_options=options,
    )


def by_pyarrow(server: FaultServer, rows: int) -> None:
    """Read with pyarrow's own file system."""
    from pyarrow import fs

    far = fs.S3FileSystem(
        endpoint_override=server.endpoint.removeprefix("http://"),
        scheme="http",
        access_key="k",
        secret_key="s",  # noqa: S106 - see above
        region="us-east-1",
    )
    seen = 0
    for name in sorted(key for key in server.objects if key.endswith(".parquet")):
        file = pq.ParquetFile(far.open_input_file(name), pre_buffer=True)
        for group in range(file.num_row_groups):
            for batch in file.iter_batches(row_groups=[group], columns=COLUMNS):
                seen += batch.num_rows
    if seen != rows:
        raise SystemExit(f"{rows} rows went in, {seen} came out")


def bare(server: FaultServer) -> None:
    """Fetch the needed bytes, and nothing else."""
    store, wanted = store_of(server), []
    for key, one in server.objects.items():
        footer = pq.read_metadata(pa.BufferReader(one.body))
        for group in range(footer.num_row_groups):
            for at in range(footer.num_columns):
                chunk = footer.row_group(group).column(at)
                if chunk.path_in_schema in COLUMNS:
                    start, stop = chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size
                    edges = [*range(start, stop, PIECE_BYTES), stop]
                    wanted += [(key.partition("/")[2], *pair) for pair in itertools.pairwise(edges)]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(lambda piece: obstore.get_range(store, piece[0], start=piece[1], end=piece[2]), wanted))


def measured(server: FaultServer, work: Any) -> dict[str, float]:
    """Do some work, and say what it asked of the server."""
    server.ranges.clear()
    server.times.clear()
    work()
    asked = list(zip(server.ranges, server.times, strict=True))
    large = [times for (_, start, stop), times in asked if stop - start > FOOTER_BYTES]
    return {
        "seconds": max(end for _, end in large) - min(begin for begin, _ in large),
        "requests": len(asked),
        "megabytes": sum(stop - start for (_, start, stop), _ in asked) / 1e6,
    }


def main() -> None:
    """Run the rounds, print them, and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="a few seconds, and no result file")
    chosen = parser.parse_args()
    files, rows = (2, 100_000) if chosen.tiny else (12, 800_000)
    figures: dict[str, list[dict[str, float]]] = {}
    with (
        FaultServer(latency_s=LATENCY_S, bytes_per_s=BYTES_PER_S) as server,
        tempfile.TemporaryDirectory() as name,
    ):
        for number in range(files):
            server.put(f"bucket/in/{number:02d}.parquet", file_of(number, rows), {})
        for _ in range(chosen.rounds):
            for runner, work in (
                ("batchinfer", lambda: ours(server, Path(name), files * rows)),
                ("pyarrow", lambda: by_pyarrow(server, files * rows)),
                ("limit", lambda: bare(server)),
            ):
                figures.setdefault(runner, []).append(measured(server, work))
                time.sleep(0.2)
    report(figures, chosen, files, rows)


def report(
    figures: dict[str, list[dict[str, float]]], chosen: argparse.Namespace, files: int, rows: int
) -> None:
    """Print medians, and write them."""
    result: dict[str, Any] = {
        "command": "python " + " ".join(["benchmarks/remote_reading.py", *sys.argv[1:]]),
        "files": files,
        "rows_per_file": rows,
        "latency_s": LATENCY_S,
        "bytes_per_s_and_connection": BYTES_PER_S,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("batchinfer-pipeline", "pyarrow", "obstore")
        },
    }
    for runner, rounds in figures.items():
        result[runner] = {key: round(statistics.median(one[key] for one in rounds), 3) for key in rounds[0]}
        result[runner]["all_seconds"] = sorted(round(one["seconds"], 3) for one in rounds)
        print(f"{runner:<11} {result[runner]}")
    ratios = [
        limit["seconds"] / one["seconds"]
        for one, limit in zip(figures["batchinfer"], figures["limit"], strict=True)
    ]
    result["of_limit"] = {
        "median": round(statistics.median(ratios), 3),
        "all": sorted(round(one, 3) for one in ratios),
    }
    print(f"of limit    {result['of_limit']}")
    if not chosen.tiny:
        (HERE / "results" / "remote_reading.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
