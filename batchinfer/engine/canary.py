"""A golden batch: rows whose results are known, computed on every device before it gets work.

The file holds what the model gets and gives: columns `in.NAME` for its inputs, `out.NAME` for its outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchinfer import tensors
from batchinfer.arrow_views import column_of
from batchinfer.data import EncodedChunk, HostBatch, Shard, Unit, UnitEnd
from batchinfer.device_faults import CANARY
from batchinfer.errors import ContractError, DataError, DeviceError
from batchinfer.loader.windows import batches_of
from batchinfer.storage import ObjectMissing, open_store

if TYPE_CHECKING:
    from batchinfer.config.nested import CanaryOptions
    from batchinfer.engine.contract import Contract
    from batchinfer.engine.unit import Way

_NOWHERE = Shard(index=0, uri="", key="", size_bytes=0, version="", blocks=())
_MAKE = "`batchinfer preview JOB --save-canary FILE` makes one, on a device that you trust"


def save_canary(path: str, contract: Contract, way: Way) -> None:
    """Compute the first rows that are read, and write them with their results.

    Raises DataError where the input has no row for it; or where the file cannot be written.
    """
    import pyarrow.parquet as pq

    encoded = way.encode(next(way.chunks).rows)
    rows = encoded.tensors if isinstance(encoded, EncodedChunk) else None
    if rows is None or not rows.num_rows:
        raise DataError("no row of the input reaches the model, so that there is nothing to keep")
    given = {f"in.{bind.input}": rows[bind.column] for bind in contract.bindings}
    results = {f"out.{name}": column for name, column in _computed(rows, way).items()}
    try:
        pq.write_table(pa.table({**given, **results}), path)
    except OSError as error:
        raise DataError(f"the canary cannot be written: {error.strerror}", where=path) from error


def check_canary(options: CanaryOptions, contract: Contract, way: Way, device: str) -> None:
    """Compute the golden batch, and compare. Raises DeviceError with the fault `canary` where the device
    gives other results, ContractError where the file does not fit the model."""
    import pyarrow.parquet as pq

    path = options.path
    try:
        table = pq.read_table(pa.BufferReader(open_store(path, {}).read(path)))
    except (ObjectMissing, pa.ArrowException) as error:
        raise DataError("model.canary is no Parquet file", where=path, hint=_MAKE) from error
    columns = {
        bind.column: _column(
            table, f"in.{bind.input}", contract.encoded.field(bind.column).type, options.path
        )
        for bind in contract.bindings
    }
    try:
        found = _computed(pa.RecordBatch.from_pydict(columns), way)
    except DataError as error:
        raise _refused(device, options, f"it does not compute ({error.message})") from error
    for name, column in found.items():
        wanted = _column(table, f"out.{name}", column.type, options.path)
        told = _difference(wanted, column, options)
        if told:
            raise _refused(device, options, f"{name!r} {told}")


def _refused(device: str, options: CanaryOptions, what: str) -> DeviceError:
    error = DeviceError(
        f"{device} gives other results than {options.path} says: {what}. Where every device does so, "
        "the file is of another model or precision",
        hint=_MAKE,
    )
    error.fault = CANARY
    return error


def _column(table: pa.Table, name: str, type_: pa.DataType, path: str) -> pa.Array:
    """Return a column of the file, with the type that it must have."""
    if name not in table.column_names:
        raise ContractError(f"model.canary: {path} has no column {name!r}", hint=_MAKE)
    try:
        return table[name].combine_chunks().cast(type_)
    except pa.ArrowException as error:
        raise ContractError(
            f"model.canary: column {name!r} of {path} is {table[name].type}, and not {type_}", hint=_MAKE
        ) from error


def _computed(rows: pa.RecordBatch, way: Way) -> dict[str, pa.Array]:
    """Run encoded rows through the model. Returns its outputs by name, in the order of the rows."""
    unit = Unit(index=0, shard=_NOWHERE, start=0, stop=rows.num_rows)
    positions = np.arange(rows.num_rows)
    carried = pa.RecordBatch.from_pydict({"#row": column_of(positions)})
    chunk = EncodedChunk(unit=unit, carried=carried, tensors=rows, good=positions, failed={})
    batches = list(batches_of(iter((chunk, UnitEnd(unit))), way.windows, way.batches))
    done = [(batch, way.pipeline.collect(way.pipeline.submit(batch)).tensors) for batch in batches]
    order = pa.array(np.argsort(np.concatenate([batch.rows for batch, _ in done])))
    return {
        spec.name: pa.concat_arrays(
            [_typed(results[spec.name], batch, tensors.arrow_type(spec)) for batch, results in done]
        ).take(order)
        for spec in way.outputs
    }


def _typed(column: Any, batch: HostBatch, type_: pa.DataType) -> pa.Array:
    try:
        return tensors.to_arrow(column[: len(batch.rows)], type_)
    except (ValueError, pa.ArrowException) as error:
        raise DataError(f"the model's results do not convert to {type_}") from error


def _difference(wanted: pa.Array, found: pa.Array, options: CanaryOptions) -> str:
    """Say how results differ from what they should be; nothing where they do not."""
    rows, size = len(wanted), len(wanted) or 1
    while not pa.types.is_primitive(wanted.type) and hasattr(wanted, "flatten"):
        wanted, found = wanted.flatten(), found.flatten()
    if len(wanted) != len(found):
        return f"has {len(found)} values, not {len(wanted)}"
    if not pa.types.is_floating(wanted.type):
        num_wrong = sum(one != other for one, other in zip(wanted, found, strict=True))
        return f"differs in {num_wrong} of {len(wanted)} values" if num_wrong else ""
    should, is_ = (np.asarray(values, np.float64) for values in (wanted, found))
    wrong = ~np.isclose(is_, should, rtol=options.rtol, atol=options.atol, equal_nan=True)
    if not wrong.any():
        return ""
    per_row = max(len(should) // size, 1)
    num_rows = len(np.unique(np.flatnonzero(wrong) // per_row))
    largest = float(np.nanmax(np.abs(is_ - should), initial=0.0))
    return f"differs in {num_rows} of {rows} rows, by {largest:.3g} at most"
