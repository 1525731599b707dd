"""Arrow columns to tensors and back, without a Python object per row; and types as users write them.

Copies: fixed-width columns without nulls go to NumPy and back as views of the same memory; booleans
are unpacked, and ragged lists are padded, once.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchinfer.arrow_views import column_of, values_of
from batchinfer.data import TensorSpec

if TYPE_CHECKING:
    from batchinfer.data import Column

_PRIMITIVES: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "uint8": pa.uint8(),
    "uint16": pa.uint16(),
    "uint32": pa.uint32(),
    "uint64": pa.uint64(),
    "float16": pa.float16(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
    "binary": pa.binary(),
    "date32": pa.date32(),
}
_TEMPORAL = {f"timestamp[{unit}]": pa.timestamp(unit) for unit in ("s", "ms", "us", "ns")}
_BY_NAME = _PRIMITIVES | _TEMPORAL
_NAME_OF = {type_: name for name, type_ in _BY_NAME.items()}
NUMERIC = frozenset(name for name in _PRIMITIVES if name.startswith(("bool", "int", "uint", "float")))
"""Dtype names that a tensor can have."""

_RAW = re.compile(r"^fixed_size_binary\[\s*(\d+)\s*\]$")
_FIXED = re.compile(r"^(.*)\[\s*([\d,\s]+)\]$")


def parse_type(text: str) -> pa.DataType:
    """Parse a type such as `float32[384]`, `list<string>` or `struct<label: string, score: float32>`.

    Raises ValueError that says what can be written.
    """
    text = text.strip()
    if text in _BY_NAME:
        return _BY_NAME[text]
    if raw := _RAW.match(text):
        return pa.binary(int(raw.group(1)))
    if fixed := _FIXED.match(text):
        inner = parse_type(fixed.group(1))
        for size in reversed(fixed.group(2).split(",")):
            inner = pa.list_(inner, int(size))
        return inner
    if text.startswith("list<") and text.endswith(">"):
        return pa.list_(parse_type(text[5:-1]))
    if text.startswith("struct<") and text.endswith(">"):
        fields = [part.split(":", 1) for part in _split(text[7:-1])]
        if all(len(field) == 2 for field in fields):  # noqa: PLR2004 - name and type
            return pa.struct([(name.strip(), parse_type(kind)) for name, kind in fields])
    raise ValueError(
        f"no such type: {text!r} (write float32, float32[384], int64, bool, string, list<string>, "
        "struct<label: string, score: float32>, timestamp[us], fixed_size_binary[150528])"
    )


def format_type(type_: pa.DataType) -> str:
    """Write a type the way `parse_type` reads it; other Arrow types by Arrow's own name."""
    if type_ in _NAME_OF:
        return _NAME_OF[type_]
    if pa.types.is_fixed_size_list(type_):
        sizes = []
        while pa.types.is_fixed_size_list(type_):
            sizes.append(str(type_.list_size))
            type_ = type_.value_type
        return f"{format_type(type_)}[{', '.join(sizes)}]"
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return f"list<{format_type(type_.value_type)}>"
    if pa.types.is_struct(type_):
        inside = ", ".join(f"{field.name}: {format_type(field.type)}" for field in type_)
        return f"struct<{inside}>"
    return str(type_)


def spec_of(name: str, type_: pa.DataType) -> TensorSpec:
    """Say which tensor a column becomes. Ragged lists have an axis of unknown size (None); raw bytes of one
    length are uint8."""
    if pa.types.is_fixed_size_binary(type_):
        return TensorSpec(name, "uint8", (None, type_.byte_width))
    if isinstance(type_, pa.FixedShapeTensorType):
        return TensorSpec(name, format_type(type_.value_type), (None, *type_.shape))
    sizes: list[int | None] = [None]
    inner = type_
    while pa.types.is_fixed_size_list(inner):
        sizes.append(inner.list_size)
        inner = inner.value_type
    if _is_ragged(inner):
        return TensorSpec(name, format_type(inner.value_type), (None, None))
    return TensorSpec(name, format_type(inner), tuple(sizes))


def arrow_type(spec: TensorSpec) -> pa.DataType:
    """Say which column a tensor becomes. A size that varies makes it a list of the rest."""
    inner = parse_type("float32" if spec.dtype == "bfloat16" else spec.dtype)
    for size in reversed(spec.shape[1:]):
        inner = pa.list_(inner) if size is None else pa.list_(inner, size)
    return inner


def is_ragged(type_: pa.DataType) -> bool:
    """Tell whether a column holds lists of numbers of varying length, which are padded in a batch."""
    return _is_ragged(type_)


def to_numpy(array: pa.Array) -> np.ndarray[Any, Any]:
    """View a column without nulls as an ndarray of shape (rows, ...). Booleans are copied."""
    shape: list[int] = [len(array)]
    if pa.types.is_fixed_size_binary(array.type):
        return _raw_bytes(array)
    if isinstance(array.type, pa.FixedShapeTensorType):
        shape += array.type.shape
        array = array.storage.flatten()
    while pa.types.is_fixed_size_list(array.type):
        shape.append(array.type.list_size)
        array = array.flatten()
    values = values_of(array)
    return values.reshape(shape) if len(shape) > 1 else values


def null_rows(array: pa.Array) -> np.ndarray[Any, Any]:
    """Return the positions of rows that are null, or whose list holds a null: int64, ascending."""
    if not array.null_count and not pa.types.is_nested(array.type):
        return np.empty(0, np.int64)
    bad = np.zeros(len(array), dtype=bool)
    if array.null_count:
        bad |= values_of(array.is_null())
    if pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        inner = array.values.slice(array.offset * size, len(array) * size)
        if inner.null_count or pa.types.is_nested(inner.type):
            held = null_rows(inner)
            bad[held // max(size, 1)] = True
    elif _is_ragged(array.type):
        inner = array.values
        if inner.null_count:
            holes = np.concatenate([[0], np.cumsum(values_of(inner.is_null()))])
            offsets = values_of(array.offsets)
            bad |= holes[offsets[1:]] > holes[offsets[:-1]]
    return np.flatnonzero(bad)


def lengths(array: pa.Array) -> np.ndarray[Any, Any]:
    """Return the list lengths of a ragged column, int64 of shape (rows,)."""
    sizes: np.ndarray[Any, Any] = np.diff(values_of(array.offsets)).astype(np.int64)
    return sizes


def pad(array: pa.Array, *, value: float = 0, width: int | None = None) -> np.ndarray[Any, Any]:
    """Pad a ragged column on the right to its longest row (or `width`): shape (rows, width)."""
    sizes = lengths(array)
    width = max(int(sizes.max(initial=0)), 1) if width is None else width
    flat = values_of(array.flatten())
    if sizes.size and int(sizes.min()) == width:
        return np.ascontiguousarray(flat.reshape(len(sizes), width))
    padded = np.full((len(sizes), width), value, dtype=flat.dtype)
    padded[np.arange(width) < sizes[:, None]] = flat
    return padded


def to_arrow(column: Column, type_: pa.DataType) -> pa.Array:
    """Make a column of exactly this type. Raises ValueError or ArrowInvalid where values do not fit."""
    if isinstance(column, (pa.Array, pa.ChunkedArray)):
        whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        return whole if whole.type == type_ else whole.cast(type_)
    values = np.asarray(column)
    if pa.types.is_fixed_size_binary(type_):
        return _raw_column(np.ascontiguousarray(values), type_)
    if not (pa.types.is_list(type_) or pa.types.is_fixed_size_list(type_)):
        if values.ndim != 1:
            raise ValueError(f"has shape {values.shape}, which is no {format_type(type_)} per row")
        array = column_of(np.ascontiguousarray(values))
        return array if array.type == type_ else array.cast(type_)
    if values.ndim < 2:  # noqa: PLR2004 - rows and at least one more axis
        raise ValueError(f"has shape {values.shape}, which is no {format_type(type_)} per row")
    return _nested(values.reshape(-1), values.shape, type_)


def is_slow_bytes(type_: pa.DataType) -> bool:
    """Tell whether a column holds lists of bytes: in Parquet each takes four bytes and is decoded alone, and
    reading them takes about forty times as long as reading raw bytes."""
    is_list = pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
    return is_list and (type_.value_type == pa.uint8() or is_slow_bytes(type_.value_type))


def num_bytes(rows: pa.RecordBatch | pa.Table) -> int:
    """Return the bytes of some rows. Columns of one width are not asked for their buffers: that is far
    cheaper, and no other thread gets its turn meanwhile."""
    bits, others = _widths(rows.schema)
    fixed: int = bits * rows.num_rows // 8
    return fixed + sum(int(rows.column(at).nbytes) for at in others)


_known_widths: tuple[tuple[pa.Schema, int, tuple[int, ...]], ...] = ()
_MOST_KNOWN = 16


def _widths(schema: pa.Schema) -> tuple[int, tuple[int, ...]]:
    """Return the bits of a row in columns of one width, and the positions of the others. A run has few
    schemas, and asks for each of them all the time."""
    global _known_widths  # noqa: PLW0603 - replaced as a whole, so that threads need no lock
    for known, bits, others in _known_widths:
        if known.equals(schema):
            return bits, others
    widths = [_num_bits(type_) for type_ in schema.types]
    bits = sum(width or 0 for width in widths)
    others = tuple(at for at, width in enumerate(widths) if width is None)
    _known_widths = ((schema, bits, others), *_known_widths[: _MOST_KNOWN - 1])
    return bits, others


def least_bytes(schema: pa.Schema) -> int:
    """Return the bytes of a row, as far as its type tells: columns of varying width count as nothing."""
    return _widths(schema)[0] // 8


def _num_bits(type_: pa.DataType) -> int | None:
    """Return the bits of a value, None where they vary or where values are shared."""
    if isinstance(type_, pa.FixedSizeListType):
        inner = _num_bits(type_.value_type)
        return None if inner is None else inner * int(type_.list_size)
    return int(type_.bit_width) if pa.types.is_primitive(type_) else None


def nulls(type_: pa.DataType, num_rows: int) -> pa.Array:
    """Return a column of nulls that keeps its type."""
    return pa.nulls(num_rows, type_)


def _is_ragged(type_: pa.DataType) -> bool:
    if not (pa.types.is_list(type_) or pa.types.is_large_list(type_)):
        return False
    return _NAME_OF.get(type_.value_type) in NUMERIC


def _raw_bytes(array: pa.Array) -> np.ndarray[Any, Any]:
    """View raw bytes of one length as uint8, of shape (rows, bytes)."""
    width = array.type.byte_width
    _, data = array.buffers()
    flat = np.frombuffer(data or b"", np.uint8, count=(array.offset + len(array)) * width)
    return flat[array.offset * width :].reshape(len(array), width)


def _raw_column(values: np.ndarray[Any, Any], type_: pa.DataType) -> pa.Array:
    """Wrap the memory of a dense tensor as raw bytes of one length, without a copy."""
    if values.dtype.kind not in "biuf" or values.nbytes != len(values) * type_.byte_width:
        raise ValueError(f"has shape {values.shape} of {values.dtype}, which is no {type_} per row")
    return pa.Array.from_buffers(type_, len(values), [None, pa.py_buffer(values)])


def _nested(flat: np.ndarray[Any, Any], shape: tuple[int, ...], type_: pa.DataType) -> pa.Array:
    """Wrap flat values of a dense tensor in (fixed-size) lists, innermost first, without a copy."""
    levels = []
    inner = type_
    for _ in shape[1:]:
        levels.append(inner)
        if not (pa.types.is_list(inner) or pa.types.is_fixed_size_list(inner)):
            raise ValueError(f"has shape {shape}, which is no {format_type(type_)} per row")
        inner = inner.value_type
    array = column_of(np.ascontiguousarray(flat))
    array = array if array.type == inner else array.cast(inner)
    for axis in range(len(levels) - 1, -1, -1):
        size, level = shape[axis + 1], levels[axis]
        if pa.types.is_fixed_size_list(level):
            if level.list_size != size:
                raise ValueError(f"has shape {shape}, which is no {format_type(type_)} per row")
            array = pa.FixedSizeListArray.from_arrays(array, type=level)
        else:
            rows = int(np.prod(shape[: axis + 1]))
            offsets = column_of(np.arange(rows + 1, dtype=np.int32) * size)
            array = pa.ListArray.from_arrays(offsets, array, type=level)
    return array


def _split(text: str) -> list[str]:
    """Split at the commas that are not inside brackets."""
    parts, depth, start = [], 0, 0
    for at, char in enumerate(text):
        depth += (char in "<[") - (char in ">]")
        if char == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


def rows_not_finite(column: pa.Array) -> np.ndarray[Any, Any]:
    """Return the positions of rows that hold NaN or infinity, int64; none for a column without floats.

    The column holds no null.
    """
    inner = column.type
    while pa.types.is_list(inner) or pa.types.is_large_list(inner) or pa.types.is_fixed_size_list(inner):
        inner = inner.value_type
    if not pa.types.is_floating(inner):
        return np.empty(0, np.int64)
    if is_ragged(column.type):
        flat = values_of(column.flatten())
        owners = np.repeat(np.arange(len(column)), lengths(column))
        return np.unique(owners[~np.isfinite(flat)])
    values = to_numpy(column).reshape(len(column), -1)
    return np.flatnonzero(~np.isfinite(values).all(axis=1))
