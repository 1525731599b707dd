"""One schema for many files: order may differ and columns may be added; what is used must agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from batchinfer.errors import DataError
from batchinfer.sources.hive import partition_fields, same_names

if TYPE_CHECKING:
    from batchinfer.data import Shard

_SHOWN = 10


def unify(inspected: Sequence[tuple[Shard, pa.Schema]]) -> pa.Schema:
    """Return the schema of all shards with the partition columns: the columns that every shard has,
    in the first one's order, each as the widest of its types.

    Raises DataError that names the files whose types cannot be brought together, or that mix
    partition layouts.
    """
    shards = [shard for shard, _ in inspected]
    layouts = same_names(shards)
    if len(layouts) > 1:
        one, other = list(layouts.values())[:2]
        raise DataError(
            f"the files mix partition layouts: {one.key} and {other.key}",
            hint="name one layout in input.path, or set input.partitioning: none",
        )
    fields = _common_fields(inspected)
    partitions = partition_fields(shards)
    for field in partitions:
        if field.name in {known.name for known in fields}:
            raise DataError(
                f"column {field.name!r} is both in the files and in their folders' names",
                where=inspected[0][0].uri,
                hint="set input.partitioning: none to use the files' column",
            )
    return pa.schema([*fields, *partitions])


def missing_from(inspected: Sequence[tuple[Shard, pa.Schema]], name: str) -> list[str]:
    """Return the files that lack a column which others have."""
    return [shard.uri for shard, schema in inspected if name not in schema.names]


def _common_fields(inspected: Sequence[tuple[Shard, pa.Schema]]) -> list[pa.Field]:
    first, schema = inspected[0]
    widest = {field.name: (field.type, first) for field in schema}
    problems = []
    for shard, other in inspected[1:]:
        for field in other:
            if field.name not in widest:
                continue
            type_, origin = widest[field.name]
            wide = _wider(type_, field.type)
            if wide is None:
                problems.append(
                    f"  {field.name!r} is {type_} in {origin.uri} and {field.type} in {shard.uri}"
                )
            elif wide != type_:
                widest[field.name] = (wide, shard)
        for name in list(widest):
            if name not in other.names:
                del widest[name]
    if problems:
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise DataError(
            "the files do not have one schema:\n" + "\n".join(problems[:_SHOWN]) + more,
            hint="convert the files, or read them by separate jobs",
        )
    return [pa.field(field.name, widest[field.name][0]) for field in schema if field.name in widest]


def _wider(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return the type that both fit without loss, or None."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_dictionary(one) or pa.types.is_dictionary(other):
        plain = [type_.value_type if pa.types.is_dictionary(type_) else type_ for type_ in (one, other)]
        return _wider(plain[0], plain[1])
    for kind in (pa.types.is_signed_integer, pa.types.is_unsigned_integer, pa.types.is_floating):
        if kind(one) and kind(other):
            return one if one.bit_width >= other.bit_width else other
    large = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}
    for small, big in large.items():
        if {one, other} == {small, big}:
            return big
    return None
