"""What does being watched cost? `python benchmarks/telemetry.py`

The same job runs with everything on and with nothing, in turns: *on* is the display of a terminal, a log file
in JSON, a receipt and a report, and metrics that are pushed, scraped and written to a file, with the common
names too, all of it every five seconds, which is three to six times as often as by default; *off* has no
observer at all. The device is simulated and quick, with two hundred batches a second, so that there is much
to tell. *time* is the one over the other, from the first worker that is ready to the last commit; *cpu* is
the processor time that the parent took more, over that time. *attribution* is what workers take to note where
their time goes, which cannot be switched off: measured alone, for as many batches, over the time of these.
The program fails where *time* or *attribution* is above 1 %, by their medians: what the parent takes beside
that, another core has.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.config import Machine, load_job, usable_cores
from batchinfer.config.sections import ObserveOptions
from batchinfer.data import Trail
from batchinfer.engine.timeline import Timeline
from batchinfer.events import Event, UnitCommitted, WorkerReady
from batchinfer.protocols import Observer
from batchinfer.runner.job import run as run_whole
from batchinfer.telemetry import make_observers, recorders

BATCH = 32
SECONDS_PER_BATCH = 0.005
EVERY_S = 5.0
MOST = 0.01
FIGURES = ("time", "cpu", "attribution")
HERE = Path(__file__).parent


class Watch:
    """Notes when a worker was ready and when the last unit was committed."""

    def __init__(self) -> None:
        self.ready = self.last = 0.0

    def on_event(self, event: Event) -> None:
        """Take the time."""
        if isinstance(event, WorkerReady):
            self.ready = self.ready or time.perf_counter()
        elif isinstance(event, UnitCommitted):
            self.last = time.perf_counter()

    def close(self) -> None:
        """Do nothing."""


@contextlib.contextmanager
def gateway() -> Iterator[tuple[str, list[int]]]:
    """Take what is pushed, and count its bytes."""
    sizes: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            """Read it and say yes."""
            sizes.append(len(self.rfile.read(int(self.headers.get("Content-Length") or 0))))
            self.send_response(200)
            self.end_headers()

        do_POST = do_DELETE = do_PUT  # noqa: N815 - the library's names

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", sizes
    finally:
        server.shutdown()
        server.server_close()


class Scraper:
    """Asks a run for its metrics, as Prometheus does."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self.num_bytes: list[int] = []
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        while not self._stop.wait(EVERY_S):
            with contextlib.suppress(OSError), urllib.request.urlopen(self._url, timeout=5) as answer:  # noqa: S310 - our own
                self.num_bytes.append(len(answer.read()))

    def on_event(self, event: Event) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Ask no more."""
        self._stop.set()
        self._thread.join()


@contextlib.contextmanager
def terminal() -> Iterator[TextIO]:
    """Open a terminal that somebody reads."""
    master, slave = os.openpty()

    def read() -> None:
        """Read until it is closed."""
        with contextlib.suppress(OSError):
            while os.read(master, 1 << 16):
                pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with open(slave, "w", encoding="utf-8") as stream:  # noqa: PTH123 - a descriptor
        yield stream
    reader.join()
    os.close(master)


def attribution_s(num_batches: int = 20_000) -> float:
    """Return the seconds that a worker takes to book one batch: three stages before it, two behind."""
    timeline = Timeline(1)
    timeline.begin()
    window = SimpleNamespace(trail=Trail())
    batches = [SimpleNamespace(window=window) for _ in range(num_batches)]
    began = time.perf_counter()
    for batch in timeline.asking(batches):  # type: ignore[arg-type]
        now = time.perf_counter()
        window.trail = Trail(now - 3e-5, now - 2e-5)
        timeline.add(
            SimpleNamespace(batch=batch, uploaded=now, started=now, compute_s=1e-5, lane=0)  # type: ignore[arg-type]
        )
        with timeline.taking("postprocess"):
            pass
        with timeline.taking("write"):
            pass
    return (time.perf_counter() - began) / num_batches


def everything(folder: Path, url: str, log: TextIO) -> list[Observer]:
    """Return every observer that there is."""
    observe = ObserveOptions(
        interval=EVERY_S,
        log_file=str(folder / "log.jsonl"),
        pushgateway={"url": url, "every": EVERY_S},
        listen="127.0.0.1:0",
        textfile=str(folder / "run.prom"),
        compat_names=True,
    )
    watching = make_observers(observe, job="telemetry", interactive=True, log_format="text", stream=log)
    listener = next(observer for observer in watching if type(observer).__name__ == "Listener")
    return [*watching, Scraper(f"{listener.url}/metrics")]  # type: ignore[attr-defined]


def run(folder: Path, num_rows: int, observers: list[Observer]) -> tuple[float, float]:
    """Run the job into a new folder; return its steady seconds and the parent's processor seconds."""
    watch = Watch()
    before = resource.getrusage(resource.RUSAGE_SELF)
    job = load_job(
        {
            "job": "telemetry",
            "input": {"path": str(folder.parent / "in.parquet")},
            "model": {"backend": "simulated", "seconds_per_batch": SECONDS_PER_BATCH},
            "batching": {"size": BATCH},
            "checkpoint": {"unit_rows": max(num_rows // 16, BATCH)},
            "output": {"path": str(folder / "out"), "carry": ["id"]},
            "compute": {"devices": "cpu"},
        },
        params={},
        overrides=[],
    )
    everyone = [*recorders(job, observers), *observers] if observers else []
    report = run_whole(job, Machine(cores=usable_cores(), gpus=()), [*everyone, watch])
    after = resource.getrusage(resource.RUSAGE_SELF)
    if report.rows_ok != num_rows:
        sys.exit(f"{report.rows_ok} of {num_rows} rows came out")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return watch.last - watch.ready, cpu_s


def one_round(root: Path, number: int, num_rows: int, url: str) -> dict[str, float]:
    """Run both ways, every other time the other way round."""
    found: dict[str, tuple[float, float]] = {}
    for way in ("on", "off") if number % 2 else ("off", "on"):
        folder = root / f"{way}-{number}"
        folder.mkdir()
        with terminal() as log:
            found[way] = run(folder, num_rows, everything(folder, url, log) if way == "on" else [])
    (on_s, on_cpu), (off_s, off_cpu) = found["on"], found["off"]
    return {"time": on_s / off_s - 1, "cpu": (on_cpu - off_cpu) / on_s, "seconds": on_s}


def main() -> None:
    """Run the rounds, print them, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tiny", action="store_true", help="a small round that writes no result")
    arguments = parser.parse_args()
    num_rows = 6_400 if arguments.tiny else 128_000
    with tempfile.TemporaryDirectory() as temporary, gateway() as (url, pushed):
        root = Path(temporary)
        ids = np.arange(num_rows)
        pq.write_table(pa.table({"id": ids, "x": ids.astype(np.float32)}), root / "in.parquet")
        rounds = [one_round(root, number, num_rows, url) for number in range(arguments.rounds)]
    if not pushed:
        sys.exit("nothing was pushed")
    share = attribution_s() / SECONDS_PER_BATCH
    rounds = [{**each, "attribution": share} for each in rounds]
    summary: dict[str, Any] = {}
    for figure in FIGURES:
        values = sorted(each[figure] for each in rounds)
        summary[figure] = {
            "median": round(statistics.median(values), 4),
            "all": [round(v, 4) for v in values],
        }
        print(f"{figure:<12} median {summary[figure]['median']:+.2%}   {summary[figure]['all']}")
    print(f"{len(pushed)} pushes of at most {max(pushed):,} bytes")
    if arguments.tiny:
        return
    result = {
        "command": "python " + " ".join(["benchmarks/telemetry.py", *sys.argv[1:]]),
        "rows": num_rows,
        "batch": BATCH,
        "seconds_per_batch": SECONDS_PER_BATCH,
        "every_s": EVERY_S,
        "seconds": round(statistics.median(each["seconds"] for each in rounds), 2),
        "push_bytes": max(pushed),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {
            library: importlib.metadata.version(library)
            for library in ("batchinfer-pipeline", "pyarrow", "prometheus-client")
        },
        **summary,
    }
    (HERE / "results" / "telemetry.json").write_text(json.dumps(result, indent=1) + "\n")
    too_much = [figure for figure in ("time", "attribution") if summary[figure]["median"] > MOST]
    if too_much:
        sys.exit(f"more than {MOST:.0%}: {', '.join(too_much)}")


if __name__ == "__main__":
    main()
