"""Values written in a condition, and how each is compared with a column of a given type."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa

from batchinfer.errors import ContractError


@dataclass(frozen=True, slots=True)
class Literal:
    """A value as written. `kind` is number, text, bool, date or timestamp; a number is kept exactly."""

    kind: str
    value: Any

    def __str__(self) -> str:
        """Return the literal without its content, for messages."""
        return f"a {self.kind}" if self.kind != "bool" else str(self.value).lower()

    @property
    def plain(self) -> Any:
        """The value as Arrow takes it by itself."""
        return float(self.value) if isinstance(self.value, Decimal) else self.value


def comparable(column: str, literal: Literal, type_: pa.DataType) -> tuple[pa.Scalar, pa.DataType | None]:
    """Return the literal as a scalar that compares with a column, and the type that the column must be
    cast to first, or None. Raises ContractError where the two do not compare."""
    value, kind = literal.value, literal.kind
    if kind == "number":
        return _number(column, literal, type_)
    if kind == "bool" and pa.types.is_boolean(type_):
        return pa.scalar(value, type_), None
    if kind == "text" and (pa.types.is_string(type_) or pa.types.is_large_string(type_)):
        return pa.scalar(value, type_), None
    if kind == "text" and (pa.types.is_binary(type_) or pa.types.is_large_binary(type_)):
        return pa.scalar(value.encode(), type_), None
    if pa.types.is_date(type_) or pa.types.is_timestamp(type_):
        return _moment(column, literal, type_)
    raise mismatch(column, literal, type_)


def listed(column: str, literals: Sequence[Literal], type_: pa.DataType) -> pa.Array:
    """Return the values of an `in` list as the column's type, without those that it cannot hold."""
    values = []
    for literal in literals:
        scalar, wide = comparable(column, literal, type_)
        if wide is None:
            values += _held(scalar, type_)
    return pa.array(values, type_)


def mismatch(column: str, literal: Literal, type_: pa.DataType) -> ContractError:
    """Say that a column does not compare with a literal."""
    hints = {
        "number": "write the value in single quotes",
        "text": "write a number without quotes, a date as date '2026-01-31'",
    }
    return ContractError(
        f"input.where: column {column!r} is {type_}, which does not compare with {literal}",
        hint=hints.get(literal.kind),
    )


def _held(scalar: pa.Scalar, type_: pa.DataType) -> list[Any]:
    """Return a value as a list of one, or of none where the column's type cannot hold it exactly."""
    try:
        return [scalar.cast(type_).as_py()]
    except pa.ArrowException:
        return []


def _number(column: str, literal: Literal, type_: pa.DataType) -> tuple[pa.Scalar, pa.DataType | None]:
    value: Decimal = literal.value
    if pa.types.is_floating(type_):
        return pa.scalar(float(value), type_), None
    if pa.types.is_decimal(type_):
        return pa.scalar(value), None
    if not pa.types.is_integer(type_):
        raise mismatch(column, literal, type_)
    bits = type_.bit_width
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if pa.types.is_signed_integer(type_) else (0, 2**bits)
    if value == value.to_integral_value() and low <= value < high:
        return pa.scalar(int(value), type_), None
    # No value of the column equals it: which side of it they are on is all that counts.
    return pa.scalar(float(value), pa.float64()), pa.float64()


def _moment(column: str, literal: Literal, type_: pa.DataType) -> tuple[pa.Scalar, pa.DataType | None]:
    """Compare dates and timestamps. What names no time zone is UTC."""
    value = _parsed(column, literal, type_) if literal.kind == "text" else literal.value
    if isinstance(value, dt.datetime):
        timed = pa.types.is_timestamp(type_)
        scalar = pa.scalar(value, pa.timestamp("us", tz=type_.tz if timed else None))
        return scalar, (None if timed else pa.timestamp("us"))
    if not isinstance(value, dt.date):
        raise mismatch(column, literal, type_)
    if pa.types.is_date(type_):
        return pa.scalar(value, type_), None
    midnight = dt.datetime(value.year, value.month, value.day, tzinfo=dt.UTC)
    return pa.scalar(midnight, pa.timestamp("us", tz=type_.tz)), None


def _parsed(column: str, literal: Literal, type_: pa.DataType) -> dt.date:
    """Read a text as the date or timestamp that its column holds."""
    try:
        if pa.types.is_date(type_) and len(literal.value) == len("2026-01-31"):
            return dt.date.fromisoformat(literal.value)
        return dt.datetime.fromisoformat(literal.value)
    except ValueError:
        raise ContractError(
            f"input.where: column {column!r} is {type_}, and {literal.value!r} is no such value",
            hint="write '2026-01-31' or '2026-01-31 12:00:00'",
        ) from None
