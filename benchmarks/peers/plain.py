"""A plain script: threads that each take whole row groups, from Parquet to Parquet.

Settings: `workers` threads, each with a model of its own; `threads` and `batch` of the model.
"""

from __future__ import annotations

import queue
import threading

import pyarrow.parquet as pq
import works


def main() -> None:
    """Run the work."""
    order = works.order()
    todo: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
    for path in order.shards:
        for group in range(pq.read_metadata(path).num_row_groups):
            todo.put((path, group))
    workers = [
        threading.Thread(target=work, args=(order, todo, f"{order.out}/{at}.parquet"))
        for at in range(order.settings["workers"])
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def work(order: works.Order, todo: queue.SimpleQueue[tuple[str, int]], path: str) -> None:
    """Do row groups until there are no more."""
    model, writer = order.open(), None
    while True:
        try:
            source, group = todo.get_nowait()
        except queue.Empty:
            break
        file = pq.ParquetFile(source)
        rows = file.read_row_group(group, columns=list(model.columns), use_threads=False)
        done = model(rows)
        writer = writer or pq.ParquetWriter(path, done.schema, use_dictionary=False)
        writer.write_table(done)
    if writer is not None:
        writer.close()


if __name__ == "__main__":
    main()
