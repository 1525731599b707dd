"""What moves: shards and units in a plan, and a batch in each of its forms on the way."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from batchinfer.errors import BatchinferError

    Column: TypeAlias = "np.ndarray[Any, Any] | pa.Array"
    """Values of one name for the rows of a batch: an ndarray of shape (rows, ...) for tensors,
    an Arrow array for strings, bytes, ragged lists and structs."""

    Tensors: TypeAlias = Mapping[str, Column]
    """Columns by name. On a CUDA device, the ndarrays are torch tensors on that device."""


STAGES = (
    "compute",
    "read",
    "decode",
    "pack",
    "transfer",
    "postprocess",
    "write",
    "commit",
    "launch",
)
"""What a device does at any moment: compute, or wait for one of these. Metrics have them as labels."""

QUEUES = ("read", "encode", "batch", "device")
"""The queues of a worker in which bytes wait, by the thread that fills them: rows, encoded rows, batches,
results. Metrics have them as labels."""


class ErrorCode(enum.StrEnum):
    """Why a row failed. Closed: dashboards and `_error.code` filters depend on the words."""

    DECODE = "decode"
    SCHEMA = "schema"
    MODEL = "model"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    CRASH = "crash"
    DEVICE = "device"
    ENDPOINT = "endpoint"
    USER = "user"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a model, a step or a column gives or takes under one name.

    `dtype` is a NumPy name ("float32", "int64", "bool"), or "string", "binary", or an Arrow type
    for what is no tensor ("list<string>"). `shape` begins with the batch axis, always None; any
    other None is an axis whose size varies from batch to batch.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        """Return the spec as a user would write it: `ids: int64[?, 128]`."""
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name}: {self.dtype}[{sizes}]"


@dataclass(frozen=True, slots=True)
class Packing:
    """How a model takes rows packed, one after the other without padding: the inputs that then are of shape
    (tokens,), and those that must be 1 for every token and are left out."""

    values: tuple[str, ...]
    ones: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One object in a store, as a listing gives it.

    `version` identifies the content without reading it: an ETag, a generation, or mtime and inode.
    `modified` is when it was written, in seconds of the store's own clock; 0 where that is unknown.
    """

    uri: str
    size_bytes: int
    version: str
    modified: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The smallest readable piece of a shard: a Parquet row group, an Arrow record batch, a run of
    lines. `offset` is its first byte where the format has no index of its own."""

    num_rows: int
    num_bytes: int
    offset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One input file, as the user knows it (for `format: files`, one folder listing).

    `key` is the path below the fixed part of `input.path`: stable when the dataset moves.
    `partition` holds the hive partition values, as text, None for the null partition.
    """

    index: int
    uri: str
    key: str
    size_bytes: int
    version: str
    blocks: tuple[Block, ...]
    partition: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """Rows in the whole shard."""
        return sum(block.num_rows for block in self.blocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """What a unit of a retry takes the place of: the files of an earlier unit, and which of its failed rows
    are done again (those with these values in their `_error`; all, where `where` is empty)."""

    parts: tuple[str, ...]
    sidecar: str
    where: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Rows [start, stop) of one shard: planned, assigned, published and restarted as one."""

    index: int
    shard: Shard
    start: int
    stop: int
    again: Again | None = None

    @property
    def num_rows(self) -> int:
        """Rows planned, before `where` and `sample`."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Span:
    """Rows [start, stop) of a unit's *selected* rows (after `where` and `sample`).

    Every batch carries one from read to write. `last` marks the end of the unit.
    """

    unit: Unit
    start: int
    stop: int
    last: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one row could not go on, as the step that refused it says."""

    code: ErrorCode
    message: str
    attempts: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RowError:
    """A failed row, as it is recorded in the output's `_error` column."""

    stage: str
    code: ErrorCode
    message: str
    attempts: int
    source: str
    row: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows as read: `rows` selected rows with their numbers in the shard, int64 of shape (rows,)."""

    unit: Unit
    rows: pa.RecordBatch
    numbers: np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class UnitEnd:
    """Follows the last chunk of a unit, also of one without a row."""

    unit: Unit


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a preprocessing step gives back: as many rows as it got, in the same order.

    `failed` maps positions of rows that cannot go on; what the batch holds there is ignored.
    """

    rows: pa.RecordBatch
    failed: Mapping[int, Failure] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trail:
    """When rows had passed each stage before the device, in seconds of `time.perf_counter`."""

    read: float = 0.0
    decoded: float = 0.0


@dataclass(frozen=True, slots=True)
class EncodedChunk:
    """A chunk on its way to a window: `carried` has all its rows, `tensors` only the good ones.

    `good` are their positions in the chunk, int64 of shape (good rows,), in source order.
    """

    unit: Unit
    carried: pa.RecordBatch
    tensors: pa.RecordBatch
    good: np.ndarray[Any, Any]
    failed: Mapping[int, RowError]
    trail: Trail = Trail()


@dataclass(frozen=True, slots=True)
class Window:
    """A span whose rows are encoded: the scope of length sorting and of restoring the order.

    `carried` has every row of the span; `good` the positions that the model will see, in source
    order; `failed` the others. `num_batches` come out of it. An empty span carries None. The trail is
    that of the rows that came last.
    """

    span: Span
    carried: pa.Table | None
    good: np.ndarray[Any, Any]
    failed: Mapping[int, RowError]
    num_batches: int
    trail: Trail = Trail()


@dataclass(frozen=True, slots=True)
class HostBatch:
    """Rows for one forward pass, padded (or packed), in host memory.

    `rows` are positions in the window. A window without a good row sends one empty batch, which
    the device never sees, so that it is written all the same.

    Where inputs are ragged, `lengths` are those of the rows, int64 of shape (rows,), and `width` is what they
    are padded to, 0 in a packed batch. The tensors have `filled` rows more, which give the batch its shape
    and whose results are dropped. `fixed`: its shape is one of few that the model is made for.
    """

    window: Window
    rows: np.ndarray[Any, Any]
    tensors: Tensors
    real_tokens: int = 0
    padded_tokens: int = 0
    lengths: np.ndarray[Any, Any] | None = None
    width: int = 0
    filled: int = 0
    fixed: bool = False

    @property
    def is_packed(self) -> bool:
        """Whether its rows stand one after the other, without padding."""
        return self.lengths is not None and not self.width


@dataclass(frozen=True, slots=True)
class OutputBatch:
    """Results of one batch, in host memory: model inputs and outputs, `rows` of its window.

    The device took `compute_s` seconds from `started` on, by `time.perf_counter`, and had the inputs at
    `uploaded` (0 where it reads them in place); `lane` names the one that computed, where several compute
    at once. `restored` are the finished columns of a batch that
    an earlier attempt has done, and that met no device now. A batch that failed has no tensors, but
    `pieces` that went well, in order, and `refused`: why each other row of the window did not.
    """

    batch: HostBatch
    tensors: Tensors
    compute_s: float
    restored: tuple[pa.Array, ...] | None = None
    started: float = 0.0
    uploaded: float = 0.0
    lane: int = 0
    pieces: tuple[OutputBatch, ...] = ()
    refused: Mapping[int, BatchinferError | Poison] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TypedBatch:
    """A batch's results as they will be written: one Arrow array of `rows` values per result column.

    `restored`: they were computed by an earlier attempt at the unit. `failed` are rows of the window
    that the model or a step after it refused; they are none of the batch's.
    """

    batch: HostBatch
    columns: tuple[pa.Array, ...]
    restored: bool = False
    failed: Mapping[int, RowError] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Suspect:
    """Rows that a worker had in hand when it died: positions [start, stop) of what `key` names in a unit."""

    stage: str
    key: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Poison:
    """A row that ends the process which touches it: its number in the file, and what is recorded of it."""

    row: int
    stage: str
    code: ErrorCode
    message: str
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFile:
    """One published file. `etag` is what a listing says of it, on stores where that means something."""

    name: str
    num_rows: int
    num_errors: int
    num_bytes: int
    sha256: str
    etag: str = ""

    @property
    def stamp(self) -> dict[str, str]:
        """Return what the object carries with it, so that a later run need not read it."""
        return {
            "sha256": self.sha256,
            "rows": str(self.num_rows),
            "errors": str(self.num_errors),
            "bytes": str(self.num_bytes),
        }

    @classmethod
    def from_stamp(cls, name: str, stamp: Mapping[str, str]) -> PartFile | None:
        """Describe a file by its stamp; None where the stamp does not say all of it."""
        try:
            return cls(
                name=name,
                num_rows=int(stamp["rows"]),
                num_errors=int(stamp["errors"]),
                num_bytes=int(stamp["bytes"]),
                sha256=stamp["sha256"],
            )
        except (KeyError, ValueError):
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Proof that a unit's output is published. `won` is false where another process was first;
    `diverged` says that what it wrote is not what this one would have written."""

    unit: int
    parts: tuple[PartFile, ...]
    rows_read: int
    rows_ok: int
    rows_error: int
    rows_filtered: int
    won: bool
    diverged: bool = False
    errors: tuple[RowError, ...] = ()
    """At most ten of the failed rows, as samples for the summary."""
    error_codes: Mapping[str, int] = field(default_factory=dict)
    """How many rows failed, by code."""
    sidecar: PartFile | None = None
    """The file with the failed rows, where they have one of their own."""
