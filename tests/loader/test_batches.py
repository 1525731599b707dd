"""Any rows, any chunking: every row is in exactly one batch, padded to its neighbours, nothing else."""

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from batchinfer import tensors
from batchinfer.data import Block, EncodedChunk, ErrorCode, HostBatch, RowError, Shard, Unit, UnitEnd
from batchinfer.loader.batches import BatchPolicy, Binding
from batchinfer.loader.windows import WindowPolicy, batches_of

LENGTHS = st.lists(st.integers(0, 40), max_size=60)


def make_unit(index: int, num_rows: int) -> Unit:
    """Return a unit of its own shard."""
    block = Block(num_rows=num_rows, num_bytes=num_rows)
    shard = Shard(index=index, uri=f"s{index}", key=f"s{index}", size_bytes=0, version="", blocks=(block,))
    return Unit(index=index, shard=shard, start=0, stop=num_rows)


def make_chunks(unit: Unit, lengths: list[int], *, size: int, bad: set[int]) -> list[EncodedChunk | UnitEnd]:
    """Cut rows into chunks; row i holds `lengths[i]` times the number i, bad rows are left out."""
    chunks: list[EncodedChunk | UnitEnd] = []
    for start in range(0, len(lengths), size):
        stop = min(start + size, len(lengths))
        good = [row for row in range(start, stop) if row not in bad]
        ids = pa.array([[row + 1] * lengths[row] for row in good], pa.list_(pa.int64()))
        failed = {
            row - start: RowError(
                stage="t", code=ErrorCode.USER, message="", attempts=1, source=unit.shard.key, row=row
            )
            for row in range(start, stop)
            if row in bad
        }
        chunks.append(
            EncodedChunk(
                unit=unit,
                carried=pa.RecordBatch.from_pydict({"#row": pa.array(range(start, stop), pa.int64())}),
                tensors=pa.RecordBatch.from_pydict({"ids": ids}),
                good=np.array([row - start for row in good], dtype=np.int64),
                failed=failed,
            )
        )
    return [*chunks, UnitEnd(unit)]


def rows_seen(batches: list[HostBatch]) -> list[tuple[int, int]]:
    """Return (unit, row of the unit) for every row that the device saw, checking its content."""
    seen = []
    for batch in batches:
        span = batch.window.span
        for at, position in enumerate(batch.rows):
            row = span.start + int(position)
            ids: Any = batch.tensors["ids"]
            values = ids[at][ids[at] != 0]
            assert set(values.tolist()) <= {row + 1}
            seen.append((span.unit.index, row))
    return seen


@given(
    units=st.lists(st.tuples(LENGTHS, st.sets(st.integers(0, 59), max_size=8)), min_size=1, max_size=4),
    chunk=st.integers(1, 25),
    window=st.integers(1, 40),
    num_bytes=st.integers(1, 5000),
    size=st.integers(1, 100),
    by_tokens=st.booleans(),
)
def test_every_row_once(
    units: list[tuple[list[int], set[int]]],
    chunk: int,
    window: int,
    num_bytes: int,
    size: int,
    by_tokens: bool,
) -> None:
    """Every good row of every unit is in one batch; windows tile each unit; the last one says so."""
    stream = [
        item
        for index, (lengths, bad) in enumerate(units)
        for item in make_chunks(make_unit(index, len(lengths)), lengths, size=chunk, bad=bad)
    ]
    policy = BatchPolicy(size=size, by_tokens=by_tokens, bindings=(Binding("ids", "ids", "int64"),))
    batches = list(batches_of(stream, WindowPolicy(window, num_bytes), policy))

    expected = [
        (index, row)
        for index, (lengths, bad) in enumerate(units)
        for row in range(len(lengths))
        if row not in bad
    ]
    assert sorted(rows_seen(batches)) == expected
    for index, (lengths, bad) in enumerate(units):
        windows = list(
            {id(b.window): b.window for b in batches if b.window.span.unit.index == index}.values()
        )
        assert [w.span.last for w in windows] == [False] * (len(windows) - 1) + [True]
        edges = [(w.span.start, w.span.stop) for w in windows]
        assert edges[0][0] == 0
        assert edges[-1][1] == len(lengths)
        assert all(left[1] == right[0] for left, right in itertools.pairwise(edges))
        for w in windows:
            assert w.num_batches == sum(b.window is w for b in batches)
            assert {w.span.start + row for row in w.failed} == {
                row for row in bad if w.span.start <= row < w.span.stop
            }


@given(lengths=st.lists(st.integers(1, 64), min_size=1, max_size=200), size=st.integers(64, 1024))
def test_token_budget_holds(lengths: list[int], size: int) -> None:
    """No batch pads to more tokens than the budget, and the padding is counted as it is."""
    unit = make_unit(0, len(lengths))
    stream = make_chunks(unit, lengths, size=50, bad=set())
    policy = BatchPolicy(size=size, by_tokens=True, bindings=(Binding("ids", "ids", "int64"),))
    for batch in batches_of(stream, WindowPolicy(1000, 1 << 30), policy):
        ids: Any = batch.tensors["ids"]
        assert ids.size <= size
        assert batch.padded_tokens == ids.size
        assert batch.real_tokens == int((ids != 0).sum())


@given(st.lists(st.integers(0, 30), min_size=2, max_size=80), st.integers(1, 80), st.integers(1, 80))
def test_batches_do_not_depend_on_chunks(lengths: list[int], first: int, second: int) -> None:
    """The same unit gives the same batches however it was chunked, as long as it fits one window."""
    policy = BatchPolicy(size=64, by_tokens=True, bindings=(Binding("ids", "ids", "int64"),))
    runs = [
        [
            batch.rows.tolist()
            for batch in batches_of(
                make_chunks(make_unit(0, len(lengths)), lengths, size=size, bad=set()),
                WindowPolicy(1000, 1 << 30),
                policy,
            )
        ]
        for size in (first, second)
    ]
    assert runs[0] == runs[1]


@given(st.lists(st.lists(st.integers(-5, 5), max_size=9), min_size=1, max_size=20), st.integers(0, 5))
def test_padding_is_plain(rows: list[list[int]], skip: int) -> None:
    """A padded column holds each row's numbers and then the padding value, for slices of arrays too."""
    array = pa.array(rows, pa.list_(pa.int32())).slice(min(skip, len(rows) - 1))
    expected = rows[min(skip, len(rows) - 1) :]
    padded = tensors.pad(array, value=-9)
    width = max([1, *(len(row) for row in expected)])
    assert padded.tolist() == [row + [-9] * (width - len(row)) for row in expected]
