"""How many rows failed in each partition of the input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from batchinfer.engine.commit import NULL_PARTITION
from batchinfer.runner.finish import files_of
from batchinfer.runner.ledger import plan_of, unit_of

if TYPE_CHECKING:
    from batchinfer.data import Shard
    from batchinfer.runner.plan import Plan


def partition_of(shard: Shard) -> str:
    """Name the hive partition that a file is in; where there is none, its folder."""
    if shard.partition:
        values = {key: NULL_PARTITION if value is None else value for key, value in shard.partition.items()}
        return "/".join(f"{key}={value}" for key, value in values.items())
    return shard.key.rpartition("/")[0] or "."


def rows_planned(plan: Plan) -> dict[str, int]:
    """Return the rows of each partition, before `where` and `sample`."""
    rows: dict[str, int] = {}
    for shard, start, stop in plan.units:
        name = partition_of(plan.shards[shard])
        rows[name] = rows.get(name, 0) + stop - start
    return rows


def rows_written(manifest: Mapping[str, Any], plans: Mapping[str, Plan]) -> dict[str, tuple[int, int]]:
    """Return the rows of each partition, and those of them that failed, of a complete output."""
    rows: dict[str, tuple[int, int]] = {}
    for name, file in files_of(manifest).items():
        plan = plans[plan_of(name) or ""]
        partition = partition_of(plan.unit(unit_of(name)).shard)
        so_far, failed = rows.get(partition, (0, 0))
        rows[partition] = (so_far + file["num_rows"], failed + file["num_errors"])
    return rows
