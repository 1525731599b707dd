"""Daft: a class whose method maps batches of columns, between read_parquet and write_parquet.

Settings: `workers`; `process`: each in a process of its own, or threads of one; `rows` of a batch;
`threads` and `batch` of the model.
"""

from __future__ import annotations

import os

os.environ.setdefault("DAFT_PROGRESS_BAR", "0")
os.environ.setdefault("DO_NOT_TRACK", "true")

import daft
import pyarrow as pa
import works
from daft import DataType, Series


def main() -> None:
    """Run the work."""
    order = works.order()
    given = order.settings
    width = works.width_of(order.work)
    kind = DataType.float32() if width is None else DataType.fixed_size_list(DataType.float32(), width)
    names = [name for name in works.columns_of(order.work) if name != "id"]

    @daft.cls(max_concurrency=given["workers"], use_process=given["process"])
    class Model:
        """Holds the model."""

        def __init__(self) -> None:
            self._model = order.open()

        @daft.method.batch(return_dtype=kind, batch_size=given["rows"])
        def run(self, *columns: Series) -> pa.Array:
            """Compute a batch."""
            rows = {name: column.to_arrow() for name, column in zip(names, columns, strict=True)}
            return works.as_arrow(self._model.compute(self._model.encode(rows)))

    rows = daft.read_parquet(order.shards)
    y = Model().run(*(daft.col(name) for name in names))
    rows.select("id", y.alias("y")).write_parquet(order.out, compression="snappy")


if __name__ == "__main__":
    main()
