"""Spark: mapInArrow in `workers` local Python workers, between read.parquet and write.parquet.

Settings: `workers`; `rows` of an Arrow batch; `threads` and `batch` of the model.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pyarrow as pa
import works
from pyspark.sql import SparkSession


def main() -> None:
    """Run the work."""
    order = works.order()
    given = order.settings
    os.environ["PYSPARK_PYTHON"] = sys.executable
    spark = (
        SparkSession.builder.master(f"local[{given['workers']}]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.memory", "3g")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", given["rows"])
        .config("spark.sql.files.maxPartitionBytes", given.get("partition_mb", 32) << 20)
        .config("spark.hadoop.parquet.enable.dictionary", "false")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Compute a partition's batches."""
        model = _model(order)
        for rows in batches:
            y = model.compute(model.encode(rows))
            column = works.as_arrow(y)
            column = column if y.ndim == 1 else column.cast(pa.list_(pa.float32()))
            yield pa.record_batch({"id": rows["id"], "y": column})

    kind = "float" if works.width_of(order.work) is None else "array<float>"
    rows = spark.read.parquet(*order.shards).select(*works.columns_of(order.work))
    rows.mapInArrow(run, f"id long, y {kind}").write.mode("overwrite").parquet(order.out)
    spark.stop()


def _model(order: works.Order) -> works.Work:
    """Return this Python worker's model: Spark uses workers again for the next partition."""
    if order.work not in works.opened:
        works.opened[order.work] = order.open()
    return works.opened[order.work]


if __name__ == "__main__":
    main()
