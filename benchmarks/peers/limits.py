"""What no pipeline can beat, measured alone: `compute` for text, `sum` for images and the table.

compute: the bare ONNX sessions, on padded batches that are already in memory. With {"search": true} it
tries sessions, threads and token budgets on a part of the texts, and prints the best.
sum: the CPU seconds of each stage, one after the other, on one thread.
Both print one line of JSON.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import works

BUDGETS = (256, 512, 1_024, 2_048)
SUM_ROWS = {"images": 400, "table": 1_000_000}


def main() -> None:
    """Measure what the first argument asks for."""
    which = sys.argv.pop(1)
    order = works.order()
    if which == "sum":
        print(json.dumps({"stages": stages(order)}))
        return
    rows = pa.concat_tables(pq.read_table(path) for path in order.shards)
    if order.settings.get("search"):
        print(json.dumps(search(order, rows, order.settings["cores"])))
        return
    given = order.settings
    print(json.dumps({"rows_per_s": rate(order, rows, given["workers"], given["threads"], given["batch"])}))


def search(order: works.Order, rows: pa.Table, cores: int) -> dict[str, Any]:
    """Return the fastest of one session for all cores and one session per core, at each budget."""
    part = rows.take(list(range(0, len(rows), max(1, len(rows) // 256))))
    tried = [
        {"workers": workers, "threads": cores // workers, "batch": budget}
        for workers in {1, cores}
        for budget in BUDGETS
    ]
    for one in tried:
        one["rows_per_s"] = max(
            rate(order, part, one["workers"], one["threads"], one["batch"]) for _ in range(2)
        )
    best = max(tried, key=lambda one: one["rows_per_s"])
    return {"best": {key: best[key] for key in ("workers", "threads", "batch")}, "tried": tried}


def rate(order: works.Order, rows: pa.Table, workers: int, threads: int, budget: int) -> float:
    """Return rows per second of so many sessions, from the first batch to the last."""
    models = [works.Text(order.folder, threads=threads, batch=budget) for _ in range(workers)]
    count, batches = models[0].encode(rows)
    todo: queue.SimpleQueue[dict[str, works.Array]] = queue.SimpleQueue()
    # The largest first, so that all end at the same time.
    for _, given in sorted(batches, key=lambda batch: -batch[1]["input_ids"].size):
        todo.put(given)
    for model in models:
        model.forward(batches[0][1])

    def work(model: works.Text) -> None:
        """Run batches until there are no more."""
        while True:
            try:
                model.forward(todo.get_nowait())
            except queue.Empty:
                return

    running = [threading.Thread(target=work, args=(model,)) for model in models]
    begin = time.perf_counter()
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return count / (time.perf_counter() - begin)


def stages(order: works.Order) -> dict[str, float]:
    """Return CPU seconds per row of reading, encoding, the model and writing."""
    model = works.open_work(order.work, order.folder, threads=1)
    spent = dict.fromkeys(("read", "encode", "model", "write"), 0.0)
    count = 0

    def timed(stage: str, function: Any, *given: Any) -> Any:
        """Add a call's CPU time to its stage."""
        begin = time.process_time()
        done = function(*given)
        spent[stage] += time.process_time() - begin
        return done

    for path in order.shards:
        for group in range(pq.read_metadata(path).num_row_groups):
            rows = timed("read", _read, path, group, list(model.columns))
            encoded = timed("encode", model.encode, rows)
            y = timed("model", model.compute, encoded)
            timed("write", _write, works.result(rows["id"], y), f"{order.out}/{count}.parquet")
            count += len(rows)
            if count >= SUM_ROWS[order.work]:
                break
    return {stage: seconds / count for stage, seconds in spent.items()}


def _read(path: str, group: int, columns: list[str]) -> pa.Table:
    return pq.ParquetFile(path).read_row_group(group, columns=columns, use_threads=False)


def _write(rows: pa.Table, path: str) -> None:
    pq.write_table(rows, path, use_dictionary=False)


if __name__ == "__main__":
    main()
