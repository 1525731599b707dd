"""One schema for all shards: order may differ and columns may be added; what is used must agree.

A column that some files lack, or whose types cannot be brought together, is left out, and the schema's
metadata says why: only who needs the column has to know.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from batchinfer.errors import DataError
from batchinfer.sources.column_types import plain, plain_schema, wider
from batchinfer.sources.hive import partition_fields, same_names

if TYPE_CHECKING:
    from batchinfer.data import Shard

INFERRED = b"batchinfer.inferred"
"""Metadata of a schema whose types were guessed from text (its value: from which format)."""

_ABSENT = b"batchinfer.absent"


def unify(inspected: Sequence[tuple[Shard, pa.Schema]]) -> pa.Schema:
    """Return the schema of all shards with the partition columns: the columns that every shard has,
    in the first one's order, each as the widest of its types.

    `why_absent` says why another column is not in it. Raises DataError for files that mix partition
    layouts, and for a column that is both in a file and in the folders' names.
    """
    shards = [shard for shard, _ in inspected]
    _check_layout(shards)
    partitions = partition_fields(shards)
    _check_twice(inspected, {field.name for field in partitions})
    fields, absent = _common_fields(inspected)
    metadata = {_ABSENT: json.dumps(absent, sort_keys=True)} if absent else None
    return pa.schema([*fields, *partitions], metadata=metadata)


def why_absent(schema: pa.Schema, name: str) -> str | None:
    """Say why a column that some files have is not in the unified schema: a DataError's message."""
    absent = json.loads((schema.metadata or {}).get(_ABSENT, b"{}"))
    reason: str | None = absent.get(name)
    return reason


def _check_layout(shards: Sequence[Shard]) -> None:
    layouts = list(same_names(shards).values())
    if len(layouts) > 1:
        raise DataError(
            f"the files mix partition layouts: {layouts[0].key} and {layouts[1].key}",
            hint="name one layout in input.path, or set input.partitioning: none",
        )


def _check_twice(inspected: Sequence[tuple[Shard, pa.Schema]], partitions: set[str]) -> None:
    seen = None
    for shard, schema in inspected:
        # Most files have the schema of the one before.
        if seen is not None and schema.equals(seen):
            continue
        seen = schema
        for name in sorted(partitions.intersection(schema.names)):
            raise DataError(
                f"column {name!r} is both in the file and in its folders' names",
                where=shard.uri,
                hint="set input.partitioning: none to use the file's column",
            )


def _common_fields(inspected: Sequence[tuple[Shard, pa.Schema]]) -> tuple[list[pa.Field], dict[str, str]]:
    """Return the fields that all shards agree on, and why the others are left out."""
    # JSON Lines have no header: a file without a line says nothing of its columns.
    inspected = [found for found in inspected if not _is_silent(*found)] or inspected
    first, schema = inspected[0]
    inferred = (schema.metadata or {}).get(INFERRED, b"").decode()
    widest = {field.name: (plain(field.type), first) for field in schema}
    absent: dict[str, str] = {}
    seen = schema
    for shard, found in inspected[1:]:
        if found.equals(seen):
            continue
        seen, other = found, plain_schema(found)
        for name in other:
            if name not in widest and name not in absent:
                absent[name] = f"column {name!r} is in {shard.uri}, and missing in {first.uri}"
        for name, (type_, origin) in list(widest.items()):
            wide = wider(type_, other[name], inferred=inferred) if name in other else None
            if name not in other:
                absent[name] = f"column {name!r} is in {origin.uri}, and missing in {shard.uri}"
            elif wide is None:
                absent[name] = f"column {name!r} is {type_} in {origin.uri} and {other[name]} in {shard.uri}"
            if wide is None:
                del widest[name]
            elif wide != type_:
                widest[name] = (wide, shard)
    fields = [pa.field(name, _settled(type_, inferred)) for name, (type_, _) in widest.items()]
    return fields, absent


def _is_silent(shard: Shard, schema: pa.Schema) -> bool:
    return not shard.num_rows and (schema.metadata or {}).get(INFERRED) == b"jsonl"


def _settled(type_: pa.DataType, inferred: str) -> pa.DataType:
    """Give a CSV column without any value the type that takes every value."""
    return pa.string() if inferred == "csv" and pa.types.is_null(type_) else type_
