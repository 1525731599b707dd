"""Hugging Face datasets: load Parquet, map in `workers` processes, write Parquet.

Settings: `workers`, `rows` of a batch, `threads` and `batch` of the model. Its cache is a fresh folder.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import datasets
import pyarrow as pa
import works


def run(rows: pa.Table, order: works.Order) -> pa.Table:
    """Compute a batch."""
    if order.work not in works.opened:
        works.opened[order.work] = order.open()
    return works.opened[order.work](rows)


def main() -> None:
    """Run the work."""
    order = works.order()
    with tempfile.TemporaryDirectory(dir=Path(order.out).parent) as cache:
        rows = datasets.Dataset.from_parquet(
            order.shards, cache_dir=cache, columns=list(works.columns_of(order.work))
        )
        done = rows.with_format("arrow").map(
            run,
            batched=True,
            batch_size=order.settings["rows"],
            num_proc=order.settings["workers"],
            remove_columns=rows.column_names,
            fn_kwargs={"order": order},
            features=features(order.work),
        )
        done.to_parquet(f"{order.out}/0.parquet")


def features(work: str) -> datasets.Features:
    """Return the type of the results."""
    width = works.width_of(work)
    number = datasets.Value("float32")
    y = number if width is None else datasets.List(number, length=width)
    return datasets.Features({"id": datasets.Value("int64"), "y": y})


if __name__ == "__main__":
    main()
