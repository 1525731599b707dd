"""Ray Data: `workers` actors, each with the model, between read_parquet and write_parquet.

Settings: `workers`; `cpus` that Ray believes in (reading and writing need some besides the actors);
`rows` of an actor's batch; `threads` and `batch` of the model.
"""

from __future__ import annotations

import logging
import os

import pyarrow as pa
import ray
import works

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


class Actor:
    """Holds the model."""

    def __init__(self, order: works.Order) -> None:
        self._model = order.open()

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Compute a batch."""
        return self._model(rows)


def main() -> None:
    """Run the work."""
    order = works.order()
    given = order.settings
    ray.init(
        num_cpus=given["cpus"],
        include_dashboard=False,
        object_store_memory=given.get("store_mb", 600) << 20,
        logging_level=logging.ERROR,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    columns = list(works.columns_of(order.work))
    rows = ray.data.read_parquet(order.shards).select_columns(columns)
    done = rows.map_batches(
        Actor,
        fn_constructor_args=(order,),
        batch_size=given["rows"],
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=given["workers"]),
        num_cpus=1,
        zero_copy_batch=True,
    )
    done.write_parquet(order.out, use_dictionary=False)


if __name__ == "__main__":
    main()
