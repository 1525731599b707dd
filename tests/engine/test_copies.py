"""How often rows are copied on the host, by the addresses of the buffers that real components hand on.

Whole runs in this process. What the decoder gives, and what the doors give and take (`Preprocessor.encode`,
`Backend.forward`, `PartEncoder.write`), is kept until the end, so that no address is used twice.
"""

from __future__ import annotations

import io
import itertools
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
from PIL import Image as Picture
from tokenizers import models, pre_tokenizers

import batchinfer
from batchinfer import tensors
from batchinfer.backends.simulated import SimulatedBackend
from batchinfer.preprocess.columns import Columns
from batchinfer.preprocess.image import Image
from batchinfer.preprocess.tokenize_text import Tokenize
from batchinfer.sinks.parquet import ParquetPart
from batchinfer.storage import open_store

Array = np.ndarray[Any, Any]

_spaces = itertools.count()


@dataclass
class Seen:
    """What the decoder gave, and what went through the doors of a run, in order."""

    decoded: list[pa.RecordBatch] = field(default_factory=list)
    encoded: list[pa.RecordBatch] = field(default_factory=list)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    written: list[pa.Table] = field(default_factory=list)

    def of_input(self, name: str) -> list[Array]:
        """Return what the model got under a name, batch after batch."""
        return [np.asarray(batch[name]) for batch in self.inputs]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Watch the doors."""
    found = Seen()

    def watch(cls: type, method: str, note: Callable[[Any, Any], None]) -> None:
        real = getattr(cls, method)

        def call(self: Any, taken: Any, *rest: Any) -> Any:
            given = real(self, taken, *rest)
            note(taken, given)
            return given

        monkeypatch.setattr(cls, method, call)

    def decode(self: pq.ParquetFile, *arguments: Any, **named: Any) -> Iterator[pa.RecordBatch]:
        for rows in decoding(self, *arguments, **named):
            found.decoded.append(rows)
            yield rows

    decoding = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", decode)
    for step in (Columns, Tokenize, Image):
        watch(step, "encode", lambda _, given: found.encoded.append(given.rows))
    watch(SimulatedBackend, "forward", lambda taken, _: found.inputs.append(taken))
    watch(SimulatedBackend, "forward", lambda _, given: found.results.append(given))
    watch(ParquetPart, "write", lambda taken, _: found.written.append(taken))
    return found


def run(
    rows: pa.Table, *, inputs: dict[str, str], outputs: dict[str, str] | None = None, **sections: Any
) -> None:
    """Run rows, all in one row group, through the simulated model."""
    root = f"memory://copies-{next(_spaces)}"
    out = pa.BufferOutputStream()
    pq.write_table(rows, out, row_group_size=len(rows))
    open_store(root, {}).put(f"{root}/in/rows.parquet", out.getvalue())
    signature = {"inputs": inputs, "outputs": outputs or {"y": "float32[?]"}}
    report = batchinfer.run_job(
        {
            "job": "t",
            "input": {"path": f"{root}/in/"},
            "model": {"backend": "simulated", "seconds_per_batch": 0, "signature": signature},
            "compute": {"concurrency": 1, "readers": 1},
            "output": {"path": f"{root}/out/", "carry": ["id"]},
            **sections,
        }
    )
    assert report.rows_ok == len(rows)


def vectors(num_rows: int, width: int) -> pa.Table:
    """Return rows of an id and a vector."""
    flat = pa.array(np.arange(num_rows * width, dtype=np.float32))
    return pa.table({"id": np.arange(num_rows), "x": pa.FixedSizeListArray.from_arrays(flat, width)})


def memory(columns: Sequence[pa.Array | pa.ChunkedArray]) -> list[Array]:
    """Return the values of fixed-width columns, a view for each piece."""
    pieces: list[pa.Array] = []
    for column in columns:
        pieces += column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return [tensors.to_numpy(piece) for piece in pieces if len(piece)]


def num_inside(arrays: Sequence[Array], sources: Sequence[Array]) -> int:
    """Count the rows of the arrays that lie inside the memory of a source."""
    spans = [(source.ctypes.data, source.ctypes.data + source.nbytes) for source in sources]
    return sum(
        len(array)
        for array in arrays
        if any(low <= array.ctypes.data and array.ctypes.data + array.nbytes <= high for low, high in spans)
    )


@pytest.mark.parametrize(("width", "num_rows"), [(8, 70_000), (384, 20_000)])
def test_fixed_width_columns(seen: Seen, width: int, num_rows: int) -> None:
    """What the model gets of a column without nulls lies in the buffer that the decoder filled; at the usual
    size of a batch, for every row."""
    run(vectors(num_rows, width), inputs={"x": f"float32[?, {width}]"})
    inputs = seen.of_input("x")
    assert len(inputs) >= len(seen.decoded) > 1
    assert num_inside(inputs, memory([rows["x"] for rows in seen.decoded])) == num_rows


def test_a_batch_across_a_seam(seen: Seen) -> None:
    """Where a batch begins in one piece of a file and ends in the next, it alone is copied."""
    run(vectors(20_000, 8), inputs={"x": "float32[?, 8]"}, batching={"size": 3_000})
    inputs = seen.of_input("x")
    assert [len(batch) for batch in inputs] == [3_000] * 6 + [2_000]
    assert num_inside(inputs, memory([rows["x"] for rows in seen.decoded])) >= 20_000 - 3 * 3_000


def test_raw_bytes(seen: Seen) -> None:
    """Raw bytes of one length are the model's tensor as they were decoded."""
    rows = pa.table({"id": range(64), "x": pa.array([bytes([at]) * 12 for at in range(64)], pa.binary(12))})
    run(rows, inputs={"x": "uint8[?, 3, 4]"}, batching={"size": 16})
    inputs = seen.of_input("x")
    assert [batch.shape for batch in inputs] == [(16, 3, 4)] * 4
    assert [batch.dtype for batch in inputs] == [np.uint8] * 4
    assert num_inside(inputs, memory([rows["x"] for rows in seen.decoded])) == 64


def test_columns_in_their_place(seen: Seen) -> None:
    """A column that a step leaves as it is stays where it was decoded."""
    step = {"columns": {"columns": ["x"], "dtype": "float32"}}
    run(vectors(512, 8), inputs={"x": "float32[?, 8]"}, preprocess=[step])
    assert num_inside(seen.of_input("x"), memory([rows["x"] for rows in seen.decoded])) == 512


def test_stacked_columns(seen: Seen) -> None:
    """Columns are stacked into one new buffer, and the model reads that one."""
    rows = pa.table({"id": range(512), **{name: np.arange(512, dtype=np.float32) for name in "abcd"}})
    step = {"columns": {"columns": [*"abcd"], "to": "features"}}
    run(rows, inputs={"features": "float32[?, 4]"}, preprocess=[step], batching={"size": 128})
    inputs = seen.of_input("features")
    assert len(inputs) == 4
    assert num_inside(inputs, memory([encoded["features"] for encoded in seen.encoded])) == 512
    decoded = memory([rows[name] for rows in seen.decoded for name in "abcd"])
    assert not any(np.shares_memory(stacked, column) for stacked in inputs for column in decoded)


def test_stacking_takes_one_buffer() -> None:
    """Stacking takes the memory of the stacked column, and no other of its size."""
    rows = pa.RecordBatch.from_pydict({name: np.arange(65_536, dtype=np.float32) for name in "abcd"})
    step = Columns(Columns.Options.model_validate({"columns": (*"abcd",), "to": "features"}))
    stacked, taken = allocated(lambda: step.encode(rows).rows["features"])
    assert taken == pytest.approx(stacked.nbytes, rel=0.01)


def test_images(seen: Seen) -> None:
    """Pixels are written into the column that the model reads."""
    with io.BytesIO() as file:
        Picture.new("RGB", (9, 9), (10, 20, 30)).save(file, "png")
        picture = file.getvalue()
    rows = pa.table({"id": range(32), "image": [picture] * 32})
    step = {"image": {"column": "image", "size": 8, "dtype": "uint8"}}
    run(rows, inputs={"pixel_values": "uint8[?, 3, 8, 8]"}, preprocess=[step], batching={"size": 8})
    inputs = seen.of_input("pixel_values")
    assert len(inputs) == 4
    assert num_inside(inputs, memory([encoded["pixel_values"] for encoded in seen.encoded])) == 32


@pytest.fixture
def tokenizer_file(tmp_path: Any) -> str:
    """Write a tokenizer of a few words."""
    made = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "word": 1}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    return str(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("is_even", [True, False], ids=["of one length", "of many lengths"])
def test_tokens(seen: Seen, tokenizer_file: str, is_even: bool) -> None:
    """Ids are written once, and the model reads them there; but of rows of many lengths it reads the padded
    ones."""
    texts = ["word " * (3 if is_even else 1 + at % 5) for at in range(100)]
    rows = pa.table({"id": range(100), "text": texts})
    step = {"tokenize": {"column": "text", "tokenizer": tokenizer_file, "max_length": 8}}
    inputs = {"input_ids": "int64[?, ?]"}
    run(rows, inputs=inputs, preprocess=[step], batching={"size": 20, "by": "rows"})
    written = [encoded["input_ids"].values.to_numpy() for encoded in seen.encoded]
    assert num_inside(seen.of_input("input_ids"), written) == (100 if is_even else 0)


@pytest.mark.parametrize("is_even", [True, False], ids=["of one length", "of many lengths"])
def test_padding_takes_one_buffer(is_even: bool) -> None:
    """Padding takes the memory of the padded batch, and a flag per token; rows of one length take none."""
    sizes = np.full(4_096, 32) if is_even else 1 + np.arange(4_096) % 63
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    ids = pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.arange(offsets[-1])))
    padded, taken = allocated(lambda: tensors.pad(ids))
    assert padded.shape == (4_096, sizes.max())
    flags = padded.size
    assert taken <= (100_000 if is_even else padded.nbytes + 2 * flags + 100_000)


def test_results_in_order(seen: Seen) -> None:
    """What the model gave is the memory that the encoder of the output is given, several batches to a
    window or not; and so are the carried columns as they were decoded."""
    outputs = {"y": "float32[?, 384]", "score": "float32[?]"}
    run(vectors(20_000, 384), inputs={"x": "float32[?, 384]"}, outputs=outputs)
    assert len(seen.results) > 20
    for name in outputs:
        written = memory([part[name] for part in seen.written])
        assert num_inside(written, [batch[name] for batch in seen.results]) == 20_000
    carried = memory([part["id"] for part in seen.written])
    assert num_inside(carried, memory([rows["id"] for rows in seen.decoded])) == 20_000


def test_results_that_were_sorted(seen: Seen) -> None:
    """Rows that were sorted by length are taken into their order once: into one buffer for a window."""
    lists = [list(range(1 + at % 7)) for at in range(500)]
    rows = pa.table({"id": range(500), "x": pa.array(lists, pa.list_(pa.float32()))})
    batching = {"size": 50, "by": "rows", "window_rows": 250}
    run(rows, inputs={"x": "float32[?, ?]"}, outputs={"y": "float32[?, 16]"}, batching=batching)
    assert len(seen.results) == 10
    written = memory([part["y"] for part in seen.written])
    assert [len(piece) for piece in written] == [250, 250]
    assert num_inside(written, [batch["y"] for batch in seen.results]) == 0
    carried = memory([part["id"] for part in seen.written])
    assert num_inside(carried, memory([rows["id"] for rows in seen.decoded])) == 500


def allocated(work: Callable[[], Any]) -> tuple[Any, int]:
    """Return what some work gives, and the bytes that NumPy and Arrow allocated meanwhile, at most at one
    time in NumPy."""
    before = pa.default_memory_pool().total_bytes_allocated()
    tracemalloc.start()
    try:
        given = work()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return given, peak + pa.default_memory_pool().total_bytes_allocated() - before
