"""Numbers between Arrow and NumPy, in the same memory.

pyarrow's own ways do the same, but look for pandas first and import it where it is installed: a third of
a second, and tens of megabytes, in every worker.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

_NAMES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_FLOATS = ("float16", "float32", "float64")
_DTYPES = {pa.from_numpy_dtype(np.dtype(name)): np.dtype(name) for name in (*_NAMES, *_FLOATS)}
_TYPES = {dtype: type_ for type_, dtype in _DTYPES.items()}
_NOTHING = np.empty(0)


def values_of(array: pa.Array | pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """View a column of numbers without nulls, of shape (rows,); others are copied, those in several chunks
    too, nulls as NaN or objects."""
    if isinstance(array, pa.ChunkedArray):
        chunks = [values_of(chunk) for chunk in array.chunks] or [_NOTHING]
        return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
    dtype = _DTYPES.get(array.type)
    if dtype is None or array.null_count:
        return np.asarray(array.to_numpy(zero_copy_only=False))
    data = array.buffers()[1]
    if data is None or not len(array):
        return np.empty(0, dtype)
    return np.frombuffer(data, dtype, count=len(array), offset=array.offset * dtype.itemsize)


def column_of(values: np.ndarray[Any, Any]) -> pa.Array:
    """Return a column of some numbers, of shape (rows,): in the same memory where they lie side by side."""
    type_ = _TYPES.get(values.dtype)
    if type_ is None:
        return pa.array(values)
    data = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(type_, len(values), [None, data], null_count=0)


def repeated(text: str | None, num_rows: int) -> pa.Array:
    """Return a column of one text."""
    if text is None:
        return pa.nulls(num_rows, pa.string())
    data = text.encode()
    ends = np.arange(num_rows + 1, dtype=np.int32) * np.int32(len(data))
    return pa.Array.from_buffers(
        pa.string(), num_rows, [None, pa.py_buffer(ends), pa.py_buffer(data * num_rows)], null_count=0
    )
