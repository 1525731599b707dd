"""What a condition means: a tree of comparisons, bound to the columns' types as an Arrow expression.

A row is kept where the condition is true. `not` is pushed down to the comparisons, so that false and
null need not be told apart above them, and statistics can still rule out row groups.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyarrow as pa

from batchinfer.errors import ContractError
from batchinfer.sources.literals import Literal, comparable, listed

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the input."""

    name: str


@dataclass(frozen=True, slots=True)
class Compare:
    """`left op right`."""

    op: str
    left: Column | Literal
    right: Column | Literal


@dataclass(frozen=True, slots=True)
class In:
    """`column in (…)`."""

    column: Column
    values: tuple[Literal, ...]


@dataclass(frozen=True, slots=True)
class Like:
    """`column like 'pattern'`."""

    column: Column
    pattern: str


@dataclass(frozen=True, slots=True)
class IsNull:
    """`column is null`."""

    column: Column


@dataclass(frozen=True, slots=True)
class Not:
    """`not condition`."""

    inner: Node


@dataclass(frozen=True, slots=True)
class Every:
    """Conditions joined by `and`."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Some:
    """Conditions joined by `or`."""

    parts: tuple[Node, ...]


Node: TypeAlias = Column | Literal | Compare | In | Like | IsNull | Not | Every | Some


@dataclass(frozen=True, slots=True)
class Condition:
    """A parsed condition, and the columns that it names, in the order of their names' appearance."""

    root: Node
    columns: tuple[str, ...]
    quoted: frozenset[str] = frozenset()

    def bind(self, schema: pa.Schema) -> Any:
        """Return the Arrow expression that is true for the rows to keep.

        `schema` has every column named. Raises ContractError where types do not compare.
        """
        return _bind(self.root, schema, negated=False)

    def may_prune(self, schema: pa.Schema) -> bool:
        """Tell whether statistics may stand for the rows: they leave out NaN, which `not` can select."""
        floats = {field.name for field in schema if pa.types.is_floating(field.type)}
        return not (floats & set(self.columns) and _negates(self.root))


def _bind(node: Node, schema: pa.Schema, *, negated: bool) -> Any:
    """Return the expression for a condition, or for its opposite."""
    import pyarrow.compute as pc  # here and below: it takes a while, and few jobs have a condition

    match node:
        case Not(inner):
            return _bind(inner, schema, negated=not negated)
        case Every(parts) | Some(parts):
            joined = operator.and_ if isinstance(node, Every) is not negated else operator.or_
            return functools.reduce(joined, (_bind(part, schema, negated=negated) for part in parts))
        case IsNull(column):
            field = pc.field(column.name)
            return field.is_valid() if negated else field.is_null()
        case In(column, values):
            field, found = _in(column, values, schema)
            return field.is_valid() & ~found if negated else found
        case Literal("bool", value):
            return pc.scalar(value is not negated)
        case Column(name):
            plain = _flag(name, schema)
        case Literal():
            raise ContractError(f"input.where: {node} is no condition")
        case Like(column, pattern):
            plain = _like(column, pattern, schema)
        case Compare(op, left, right):
            plain = _compare(op, left, right, schema)
    return ~plain if negated else plain


def _flag(name: str, schema: pa.Schema) -> Any:
    import pyarrow.compute as pc

    type_ = schema.field(name).type
    if not pa.types.is_boolean(type_):
        raise ContractError(
            f"input.where: column {name!r} is {type_}, which is no condition by itself",
            hint=f"compare it: {name} > 0, or {name} is not null",
        )
    return pc.field(name)


def _like(column: Column, pattern: str, schema: pa.Schema) -> Any:
    import pyarrow.compute as pc

    type_ = schema.field(column.name).type
    if not (pa.types.is_string(type_) or pa.types.is_large_string(type_)):
        raise ContractError(f"input.where: column {column.name!r} is {type_}; `like` is for texts")
    return pc.match_like(pc.field(column.name), pattern)


def _in(column: Column, values: Sequence[Literal], schema: pa.Schema) -> tuple[Any, Any]:
    field, type_ = _as_compared(column, schema)
    return field, field.isin(listed(column.name, values, type_))


def _compare(op: str, left: Column | Literal, right: Column | Literal, schema: pa.Schema) -> Any:
    import pyarrow.compute as pc

    compare = _COMPARE[op]
    if isinstance(left, Column) and isinstance(right, Column):
        return compare(*_alike(left, right, schema))
    if isinstance(left, Column) and isinstance(right, Literal):
        field, value = _against(left, right, schema)
        return compare(field, value)
    if isinstance(right, Column) and isinstance(left, Literal):
        field, value = _against(right, left, schema)
        return compare(value, field)
    return compare(pc.scalar(left.plain), pc.scalar(right.plain))  # type: ignore[union-attr]


def _against(column: Column, literal: Literal, schema: pa.Schema) -> tuple[Any, Any]:
    """Return a column and a literal in types that compare."""
    field, type_ = _as_compared(column, schema)
    value, wide = comparable(column.name, literal, type_)
    return (field if wide is None else field.cast(wide, safe=False)), value


def _as_compared(column: Column, schema: pa.Schema) -> tuple[Any, pa.DataType]:
    """Return a column and the type that it is compared in: Arrow compares no half floats."""
    import pyarrow.compute as pc

    field, type_ = pc.field(column.name), schema.field(column.name).type
    if pa.types.is_float16(type_):
        return field.cast(pa.float32()), pa.float32()
    return field, type_


def _alike(left: Column, right: Column, schema: pa.Schema) -> tuple[Any, Any]:
    """Return two columns in types that compare: numbers of different kinds as float64."""
    (one, one_type), (other, other_type) = _as_compared(left, schema), _as_compared(right, schema)
    kinds = (pa.types.is_signed_integer, pa.types.is_unsigned_integer, pa.types.is_floating)
    of_one, of_other = ([kind(type_) for kind in kinds] for type_ in (one_type, other_type))
    if any(of_one) and any(of_other) and of_one != of_other:
        return one.cast(pa.float64(), safe=False), other.cast(pa.float64(), safe=False)
    return one, other


def _negates(node: Node) -> bool:
    """Tell whether a condition can be true because a comparison is not."""
    match node:
        case Every(parts) | Some(parts):
            return any(_negates(part) for part in parts)
        case Compare(op):
            return op in {"!=", "<>"}
    return isinstance(node, Not)
