"""The doors. Whoever adds a source, a step, a backend or a sink implements one of these.

A component is a class with an `Options` class (its part of the job file) and a constructor that
takes one `Options`. Constructing is cheap and imports nothing heavy: `validate` does it too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import pyarrow as pa

    from batchinfer.data import (
        Chunk,
        Column,
        Encoded,
        Entry,
        Shard,
        Tensors,
        TensorSpec,
        Unit,
    )
    from batchinfer.events import Event


class Selects(Protocol):
    """What a source does with `where` and `sample`."""

    @property
    def selects(self) -> bool:
        """Whether rows may be left out."""
        ...

    def check(self, schema: pa.Schema) -> None:
        """Raise ContractError where the condition does not fit the columns."""
        ...


class Source(Protocol):
    """Lists and reads an input.

    Deterministic: the same unit gives the same rows in the same order, however often and from
    whichever process. Safe to call from several threads at once.

    A source may have two things more: `ahead(unit, schema=..., columns=...)`, called for units that will be
    read soon, begins to open them, and returns at once; `close()` forgets what is open.
    """

    selection: Selects

    def list_entries(self) -> Sequence[Entry]:
        """List the input's files in order, by one listing, opening none. Raises NoInputError."""
        ...

    def inspect(self, entry: Entry, *, index: int) -> tuple[Shard, pa.Schema]:
        """Read a footer (or count lines): the shard and its schema, without partition columns.

        Raises DataError naming the file where it is truncated, empty or of another format.
        """
        ...

    def read(
        self, unit: Unit, *, schema: pa.Schema, columns: Sequence[str], batch_rows: int
    ) -> Iterator[Chunk]:
        """Read the selected rows of a unit, in order, at most `batch_rows` to a chunk.

        `schema` is the plan's, partition columns included: every chunk has exactly its types.
        `columns` may name partition columns, and may be empty to count rows. Raises DataError when
        the file is not the one that was planned.
        """
        ...


class Preprocessor(Protocol):
    """One step between the columns that were read and the tensors that the model takes.

    Pure: the result depends on the rows alone. Called from several threads at once; or in a loader
    process, which makes its own instance and knows neither source nor model.

    A step may have one thing more: `place(device, alone=..., in_loader=...)`, called first of all, says where
    the model is, whether only the model reads what the step adds, and whether it runs in a loader process.
    """

    def input_columns(self) -> frozenset[str] | None:
        """Columns that this step reads; None for all there are."""
        ...

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        """Return the schema after this step, without data. Raises ContractError."""
        ...

    def encode(self, rows: pa.RecordBatch) -> Encoded:
        """Encode some rows: as many out as in, in the same order. A row that cannot be encoded is
        named in `Encoded.failed`; an exception fails the whole batch."""
        ...


class Backend(Protocol):
    """Runs the model. One instance per process, called from one thread.

    `load` first; then `inputs` and `outputs` are known and `forward` may be called.

    Once loaded, a backend may have two things more. `few_shapes`, true where it is made ready for each shape
    of batches, has them come in few. `packing()` returns a `Packing` where rows may come packed, and None
    where they may not; called once, before the first batch.

    A backend whose device is its own may have `peak_memory()`: the share of that device's memory, from 0
    to 1, which was taken at most since it was asked last; None where it does not know.

    A class may name in `libraries` what `load` imports; on a CPU it is imported while the run is planned.
    """

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]

    def load(self, device: str, *, threads: int) -> None:
        """Load the model on "cpu" or "cuda:N" with so many intra-op threads. Raises DeviceError
        where the device or the provider is missing, DataError where the model file is unusable."""
        ...

    def forward(self, tensors: Tensors) -> Tensors:
        """Run one batch. On the CPU: NumPy arrays in, NumPy (or Arrow) out, never aliasing memory
        that the next call overwrites. On CUDA: torch tensors on the device in and out, queued on
        the current stream, no synchronization; inputs are read only, and only by what is queued
        before this returns; results may lie in memory that the next call overwrites."""
        ...

    def close(self) -> None:
        """Free the model. Called once, also after a failed load."""
        ...


class Postprocessor(Protocol):
    """One step between the model's outputs and the columns that are written.

    Row-wise: row i of the result depends on row i alone, so batches may be cut anywhere.
    """

    def output_specs(self, specs: Mapping[str, TensorSpec]) -> Mapping[str, TensorSpec]:
        """Say what `apply` returns, given what it gets. Raises ContractError."""
        ...

    def apply(self, results: Mapping[str, Column], inputs: Tensors) -> Mapping[str, Column]:
        """Turn results into results. `inputs` are the tensors that the model got (masks, ids)."""
        ...


class PartEncoder(Protocol):
    """Encodes the rows of one part as they come. Not used by two threads at once."""

    @property
    def num_bytes(self) -> int:
        """Bytes that it holds. May be asked by any thread."""
        ...

    def write(self, rows: pa.Table) -> None:
        """Add rows. Raises ContractError for a type it cannot hold."""
        ...

    def finish(self, metadata: Mapping[str, str]) -> pa.Buffer:
        """Return the part, whole, with what is known of it only now."""
        ...


class Sink(Protocol):
    """An output format. What it encodes is a pure function of the rows: no time, host or run in it.

    Naming, partitioning and the commit are the engine's: a format never touches a store.

    A sink may have two things more, and only then can failed rows of its parts be done again.
    `reread(data)` returns the rows of a part in a form in which `PartEncoder.write` writes them again, every
    value as it was, with the column `_error` where the part has it; `as_reread(rows)` returns other rows in
    that form.
    """

    suffix: str

    def begin(self, schema: pa.Schema, metadata: Mapping[str, str]) -> PartEncoder:
        """Begin a part of rows of a schema. Raises ContractError for a type it cannot hold."""
        ...

    def count(self, data: bytes) -> tuple[int, int]:
        """Return the rows and the failed rows in an encoded part. Raises DataError if it is damaged."""
        ...

    def footer(self, file: Any) -> Mapping[str, str]:
        """Return what an encoded part, open for random access, says of itself: its metadata, `rows`,
        and `schema` where the format has one. Raises DataError if it is damaged."""
        ...

    def failed_rows(self, file: Any) -> tuple[int, pa.StructArray]:
        """Return how many rows a part has, open for random access, and the `_error` of each failed one.
        Raises DataError if it is damaged."""
        ...

    def row_numbers(self, data: bytes) -> Sequence[int] | None:
        """Decode a whole part, and return column `_row` if it has one. Raises DataError if anything in
        it is damaged."""
        ...


class Observer(Protocol):
    """Listens to a run. Called from one thread, in order; must return at once and never raise."""

    def on_event(self, event: Event) -> None:
        """Take one event."""
        ...

    def close(self) -> None:
        """Finish: write the last line, push the last metrics."""
        ...
