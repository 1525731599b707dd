"""SIGKILL while kernels run, to the worker and to its parent: is the output that of an undisturbed run?"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from gpu_checks.bench import Bench
from gpu_checks.running import Ran, counted, finish, log_of, records, run, start, values, write_job

_BATCHES, _UNIT_BATCHES = 96, 4
_KILL_AT = 4
"""Parts that are there when something is killed, of 24."""

_LOOK_S = 0.005
_GONE_S = 15.0
_BAND = 1e-3


def kill(bench: Bench) -> None:
    """Run undisturbed, with a worker killed, and with the parent killed and the same command again."""
    rows = prepare(bench)
    calm = run(bench, "kill-none", job(bench))
    counted(bench, calm, rows)
    wanted = values(calm.output, "y")
    bench.note("undisturbed", {"seconds": round(calm.seconds, 2), "rows": rows})
    with bench.attempt("kills: worker"):
        ran = worker_killed(bench)
        counted(bench, ran, rows)
        same(bench, "worker", wanted, ran, {"worker_exits": len(ran.events("worker_exited"))})
    with bench.attempt("kills: parent"):
        ran, figures = parent_killed(bench)
        counted(bench, ran, rows)
        same(bench, "parent", wanted, ran, figures)


def sizes(bench: Bench) -> tuple[int, int, int]:
    """Return the rows of a batch, the width of a layer and how often it is computed: 10 to 30 ms a
    batch."""
    return (512, 4096, 80) if bench.on_gpu else (64, 256, 160)


def prepare(bench: Bench) -> int:
    """Write random vectors; return how many."""
    batch, width, _ = sizes(bench)
    rows = _BATCHES * batch
    values_ = np.random.default_rng(2).standard_normal(rows * width, np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values_), width)
    (bench.folder / "vectors").mkdir()
    for at in range(2):
        piece = pa.table({"x": column.slice(at * rows // 2, rows // 2)})
        path = bench.folder / "vectors" / f"{at}.parquet"
        pq.write_table(piece, path, row_group_size=batch, compression="none", use_dictionary=False)
    return rows


def job(bench: Bench) -> dict[str, Any]:
    """Return the sections of a job whose kernels last."""
    batch, width, repeats = sizes(bench)
    return {
        "input": {"path": "vectors/"},
        "model": {
            "backend": "torch",
            "entry": "networks:layers",
            "args": {"width": width, "repeats": repeats},
            "signature": {
                "inputs": {"x": f"float32[?, {width}]"},
                "outputs": {"y": f"float32[?, {width}]"},
            },
        },
        "output": {"compression": "none"},
        "batching": {"size": batch},
        "checkpoint": {"unit_rows": _UNIT_BATCHES * batch},
    }


def worker_killed(bench: Bench) -> Ran:
    """Kill the worker in the middle; the run goes on by itself."""
    path = write_job(bench, "kill-worker", job(bench))
    began = time.time()
    process = start(bench, path)
    os.kill(in_the_middle(bench, path), signal.SIGKILL)
    ran = finish(bench, process, path, began)
    if not any(record["restarts"] for record in ran.events("worker_exited")):
        bench.wrong("kills: no worker was replaced, so nothing was found out")
    return ran


def parent_killed(bench: Bench) -> tuple[Ran, dict[str, Any]]:
    """Kill the parent in the middle, see that its worker ends, and run the same command again."""
    path = write_job(bench, "kill-parent", job(bench))
    process = start(bench, path)
    worker = in_the_middle(bench, path)
    process.kill()
    process.wait()
    killed = time.monotonic()
    while is_running(worker) and time.monotonic() < killed + _GONE_S:
        time.sleep(_LOOK_S)
    gone_s = time.monotonic() - killed
    if is_running(worker):
        bench.wrong(f"kills: the worker of a killed parent still runs after {_GONE_S:.0f} s")
    log_of(path).rename(path.with_suffix(".first.log"))
    began = time.time()
    ran = finish(bench, start(bench, path), path, began)
    reused = ran.end["rows_reused"]
    if not 0 < reused < ran.end["rows_total"]:
        bench.wrong(f"kills: {reused} rows were done when the parent was killed, so nothing was found out")
    return ran, {"rows_reused": reused, "worker_gone_s": round(gone_s, 3)}


def in_the_middle(bench: Bench, path: Path) -> int:
    """Wait until a run has committed some of its units; return its worker's process."""
    output = bench.folder / f"out-{path.stem}"
    ready: list[Any] = []
    # A first unit can be there before its worker is announced.
    while not ready or len(list(output.rglob("part-*"))) < _KILL_AT:
        bench.left_s()
        time.sleep(_LOOK_S)
        ready = [record for record in records(path) if record["event"] == "worker_ready"]
    return int(ready[0]["pid"])


def is_running(pid: int) -> bool:
    """Tell whether a process runs; one that only waits to be collected does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def same(bench: Bench, what: str, wanted: Any, ran: Ran, figures: dict[str, Any]) -> None:
    """Compare with the undisturbed output: batches in which a worker died may be computed in pieces, and so
    differ in their last bits; more is wrong."""
    found = values(ran.output, "y")
    if found.shape != wanted.shape:
        bench.wrong(f"kills: {what}: the rows are not those of an undisturbed run")
        return
    equal = int((found == wanted).all(1).sum())
    worst = float(np.abs(found - wanted).max(initial=0.0))
    bench.note(what, {**figures, "rows": len(found), "equal_rows": equal, "largest_difference": worst})
    if not worst <= _BAND:
        bench.wrong(f"kills: {what}: rows differ from those of an undisturbed run, by {worst:.2g} at most")
