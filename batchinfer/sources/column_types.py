"""Types of columns: the plain form of an encoded one, and the type that two fit without loss."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

_LARGER = {
    pa.string(): pa.large_string(),
    pa.binary(): pa.large_binary(),
}
_TIME_UNITS = ("s", "ms", "us", "ns")


def plain(type_: pa.DataType) -> pa.DataType:
    """Return the type of the values where a type only says how they are stored."""
    if pa.types.is_dictionary(type_) or pa.types.is_run_end_encoded(type_):
        return plain(type_.value_type)
    if pa.types.is_list(type_) and plain(type_.value_type) != type_.value_type:
        return pa.list_(plain(type_.value_type))
    if type_ == pa.string_view():
        return pa.string()
    return pa.binary() if type_ == pa.binary_view() else type_


def plain_schema(schema: pa.Schema) -> Mapping[str, pa.DataType]:
    """Return the plain types of a schema's columns by name."""
    return {field.name: plain(field.type) for field in schema}


def wider(one: pa.DataType, other: pa.DataType, *, inferred: str = "") -> pa.DataType | None:
    """Return the type that both fit without loss, or None.

    Where types were `inferred` from text, they are guesses, and the guess that takes all values wins:
    float64 for whole and other numbers, string for anything that is written as text.
    """
    one, other = plain(one), plain(other)
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    for kind in (pa.types.is_signed_integer, pa.types.is_unsigned_integer, pa.types.is_floating):
        if kind(one) and kind(other):
            return one if one.bit_width >= other.bit_width else other
    for small, large in _LARGER.items():
        if {one, other} == {small, large}:
            return large
    return _wider_times(one, other) or _wider_nested(one, other, inferred) or _guess(one, other, inferred)


def _wider_times(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Bring timestamps of one zone to the finer unit. Values that it cannot hold fail when read."""
    if not (pa.types.is_timestamp(one) and pa.types.is_timestamp(other)) or one.tz != other.tz:
        return None
    finer = max(one.unit, other.unit, key=_TIME_UNITS.index)
    return pa.timestamp(finer, tz=one.tz)


def _wider_nested(one: pa.DataType, other: pa.DataType, inferred: str) -> pa.DataType | None:
    if pa.types.is_list(one) and pa.types.is_list(other):
        inner = wider(one.value_type, other.value_type, inferred=inferred)
        return None if inner is None else pa.list_(inner)
    if pa.types.is_fixed_size_list(one) and pa.types.is_fixed_size_list(other):
        inner = wider(one.value_type, other.value_type, inferred=inferred)
        return None if inner is None or one.list_size != other.list_size else pa.list_(inner, one.list_size)
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        return _wider_structs(one, other, inferred)
    return None


def _wider_structs(one: pa.StructType, other: pa.StructType, inferred: str) -> pa.DataType | None:
    """Widen member by member. Members must be the same ones, but for JSON, where any may be left out."""
    ours, theirs = ({field.name: field.type for field in type_} for type_ in (one, other))
    if list(ours) != list(theirs) and not inferred:
        return None
    members = []
    for name in {**ours, **theirs}:
        type_ = wider(ours.get(name, pa.null()), theirs.get(name, pa.null()), inferred=inferred)
        if type_ is None:
            return None
        members.append(pa.field(name, type_))
    return pa.struct(members)


def _guess(one: pa.DataType, other: pa.DataType, inferred: str) -> pa.DataType | None:
    if not inferred:
        return None
    numbers = [pa.types.is_integer(type_) or pa.types.is_floating(type_) for type_ in (one, other)]
    if all(numbers):
        return pa.float64()
    # JSON writes numbers and truth values without quotes: a text is no way to read them.
    written = [pa.types.is_temporal(type_) or pa.types.is_string(type_) for type_ in (one, other)]
    return pa.string() if inferred == "csv" or all(written) else None
