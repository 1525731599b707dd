"""A torch DataLoader script: `workers` processes read and encode, the main process runs the model and writes.

Settings: `workers`, `rows` of an item that a worker sends, `threads` and `batch` of the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq
import torch
import works
from torch.utils.data import DataLoader, IterableDataset, get_worker_info


class Shards(IterableDataset[Any]):
    """Each worker takes every n-th row group."""

    def __init__(self, order: works.Order) -> None:
        self._order = order

    def __iter__(self) -> Iterator[Any]:
        """Yield ids and encoded rows."""
        model = self._order.open()
        me = get_worker_info()
        at, workers = (me.id, me.num_workers) if me else (0, 1)
        groups = [
            (path, group)
            for path in self._order.shards
            for group in range(pq.read_metadata(path).num_row_groups)
        ]
        for path, group in groups[at::workers]:
            batches = pq.ParquetFile(path).iter_batches(
                self._order.settings["rows"],
                row_groups=[group],
                columns=list(model.columns),
                use_threads=False,
            )
            for rows in batches:
                yield torch.tensor(rows["id"].to_numpy()), tensors(model.encode(rows))


def tensors(encoded: Any) -> Any:
    """Turn arrays into tensors, which travel through shared memory."""
    if isinstance(encoded, tuple):
        count, batches = encoded
        return count, [
            (torch.from_numpy(rows), {k: torch.from_numpy(v) for k, v in m.items()}) for rows, m in batches
        ]
    return torch.from_numpy(encoded if encoded.flags.writeable else encoded.copy())


def arrays(encoded: Any) -> Any:
    """Turn them back."""
    if isinstance(encoded, torch.Tensor):
        return encoded.numpy()
    count, batches = encoded
    return count, [(rows.numpy(), {k: v.numpy() for k, v in m.items()}) for rows, m in batches]


def main() -> None:
    """Run the work."""
    order = works.order()
    torch.set_num_threads(1)
    loader = DataLoader(Shards(order), batch_size=None, num_workers=order.settings["workers"])
    model, writer = order.open(), None
    for ids, encoded in loader:
        done = works.result(ids.numpy(), model.compute(arrays(encoded)))
        writer = writer or pq.ParquetWriter(f"{order.out}/0.parquet", done.schema, use_dictionary=False)
        writer.write_table(done)
    if writer is not None:
        writer.close()


if __name__ == "__main__":
    main()
