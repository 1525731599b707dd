"""Hive partitions: `dt=2026-10-01/country=DE/` are two columns of every row below."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pyarrow as pa

from batchinfer.storage import split_glob

if TYPE_CHECKING:
    from batchinfer.data import Shard

NULL = "__HIVE_DEFAULT_PARTITION__"
_WHOLE = re.compile(r"0|-?[1-9]\d{0,17}")


def key_of(uri: str, patterns: Iterable[str]) -> str:
    """Return a file's path below the fixed part of the pattern that found it.

    Partition folders belong to the key also where the pattern names them (`…/dt=2026-10-01/*`).
    """
    for pattern in patterns:
        fixed = split_glob(pattern)[0]
        fixed = fixed.rpartition("/")[0] if fixed == uri else fixed
        while "=" in fixed.rpartition("/")[2]:
            fixed = fixed.rpartition("/")[0]
        if uri.startswith(fixed.rstrip("/") + "/"):
            return uri[len(fixed.rstrip("/")) + 1 :]
    return uri.rpartition("/")[2]


def partition_values(key: str) -> dict[str, str | None]:
    """Return the `name=value` folders of a key, decoded, null where Hive says so."""
    values: dict[str, str | None] = {}
    for segment in key.split("/")[:-1]:
        name, equals, value = segment.partition("=")
        if equals and name:
            values[unquote(name)] = None if value == NULL else unquote(value)
    return values


def partition_fields(shards: Iterable[Shard]) -> list[pa.Field]:
    """Type the partition columns: int64 where every value of the input is a whole number, else string."""
    seen: dict[str, set[str | None]] = {}
    for shard in shards:
        for name, value in shard.partition.items():
            seen.setdefault(name, set()).add(value)
    return [pa.field(name, _type(values)) for name, values in seen.items()]


def partition_scalar(value: str | None, type_: pa.DataType) -> pa.Scalar:
    """Return a partition value in its column's type."""
    return pa.scalar(int(value) if value is not None and pa.types.is_integer(type_) else value, type_)


def partition_column(value: str | None, type_: pa.DataType, num_rows: int) -> pa.Array:
    """Repeat a partition value for the rows of a chunk."""
    return pa.repeat(partition_scalar(value, type_), num_rows)


def same_names(shards: Iterable[Shard]) -> Mapping[frozenset[str], Shard]:
    """Return one shard for each set of partition names; more than one means mixed layouts."""
    found: dict[frozenset[str], Shard] = {}
    for shard in shards:
        found.setdefault(frozenset(shard.partition), shard)
    return found


def _type(values: set[str | None]) -> pa.DataType:
    given = {value for value in values if value is not None}
    return pa.int64() if given and all(map(_WHOLE.fullmatch, given)) else pa.string()
