"""Any rows, any chunking: every row is in exactly one batch, padded to its neighbours, nothing else."""

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from batchinfer import tensors
from batchinfer.data import Block, EncodedChunk, ErrorCode, HostBatch, Packing, RowError, Shard, Unit, UnitEnd
from batchinfer.loader.batches import BatchPolicy, Binding, piece, with_stand_ins
from batchinfer.loader.shapes import MAX_SHAPES, bucket_lengths, rounded
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
    by=st.sampled_from(["rows", "tokens", "bytes"]),
)
def test_every_row_once(
    units: list[tuple[list[int], set[int]]],
    chunk: int,
    window: int,
    num_bytes: int,
    size: int,
    by: Any,
) -> None:
    """Every good row of every unit is in one batch; windows tile each unit; the last one says so."""
    stream = [
        item
        for index, (lengths, bad) in enumerate(units)
        for item in make_chunks(make_unit(index, len(lengths)), lengths, size=chunk, bad=bad)
    ]
    policy = BatchPolicy(size=size, by=by, bindings=(Binding("ids", "ids", "int64"),))
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
    policy = BatchPolicy(size=size, by="tokens", bindings=(Binding("ids", "ids", "int64"),))
    for batch in batches_of(stream, WindowPolicy(1000, 1 << 30), policy):
        ids: Any = batch.tensors["ids"]
        assert ids.size <= size
        assert batch.padded_tokens == ids.size
        assert batch.real_tokens == int((ids != 0).sum())


def full_batches(stream: list[EncodedChunk | UnitEnd], window: int, policy: BatchPolicy) -> list[HostBatch]:
    """Return the batches that have rows, of windows of so many rows."""
    return [batch for batch in batches_of(stream, WindowPolicy(window, 1 << 30), policy) if len(batch.rows)]


def text_chunk(texts: list[str], ids: list[list[int]]) -> list[EncodedChunk | UnitEnd]:
    """Return a unit of rows with a text, a ragged and a dense column."""
    unit = make_unit(0, len(texts))
    rows = pa.RecordBatch.from_pydict(
        {
            "text": pa.array(texts, pa.string()),
            "ids": pa.array(ids, pa.list_(pa.int64())),
            "pair": pa.array([[0.0, 0.0]] * len(texts), pa.list_(pa.float32(), 2)),
        }
    )
    carried = pa.RecordBatch.from_pydict({"#row": pa.array(range(len(texts)), pa.int64())})
    good = np.arange(len(texts), dtype=np.int64)
    return [EncodedChunk(unit=unit, carried=carried, tensors=rows, good=good, failed={}), UnitEnd(unit)]


@given(
    rows=st.lists(st.tuples(st.text(max_size=12), st.integers(0, 20)), min_size=1, max_size=80),
    size=st.integers(1, 600),
    lengths=st.sampled_from([(), (4, 9, 20)]),
)
def test_byte_budget_holds(rows: list[tuple[str, int]], size: int, lengths: tuple[int, ...]) -> None:
    """No batch of several rows has more bytes than its size, texts and padding included; and none ends
    where the next row would have fitted."""
    bindings = (
        Binding("text", "text", "string"),
        Binding("ids", "ids", "int64"),
        Binding("pair", "pair", "float32"),
    )
    policy = BatchPolicy(size=size, by="bytes", bindings=bindings, lengths=lengths)
    chunk = text_chunk([text for text, _ in rows], [[1] * count for _, count in rows])
    batches = full_batches(chunk, 1000, policy)
    assert sorted(row for batch in batches for row in batch.rows.tolist()) == list(range(len(rows)))
    for at, batch in enumerate(batches):
        ids: Any = batch.tensors["ids"]
        pair: Any = batch.tensors["pair"]
        texts = [len(rows[row][0].encode()) for row in batch.rows]
        used = ids.nbytes + pair.nbytes + sum(texts)
        assert used <= size or len(batch.rows) == 1
        if at + 1 < len(batches):
            following = len(rows[int(batches[at + 1].rows[0])][0].encode())
            assert used + following + 8 * batch.width + 8 > size


@given(
    sizes=st.lists(st.integers(0, 200), min_size=1, max_size=300),
    size=st.integers(1, 900),
    by=st.sampled_from(["rows", "tokens", "bytes"]),
    count=st.integers(1, MAX_SHAPES),
    window=st.integers(1, 120),
)
def test_few_shapes(sizes: list[int], size: int, by: Any, count: int, window: int) -> None:
    """With buckets there are at most as many shapes as buckets; what fills a batch up is a row of it."""
    policy = BatchPolicy(
        size=size,
        by=by,
        bindings=(Binding("ids", "ids", "int64"),),
        fixed=True,
        lengths=bucket_lengths(200, count),
    )
    stream = make_chunks(make_unit(0, len(sizes)), sizes, size=50, bad=set())
    batches = full_batches(stream, window, policy)
    assert sorted(rows_seen(batches)) == [(0, row) for row in range(len(sizes))]
    shapes = set()
    for batch in batches:
        ids: Any = batch.tensors["ids"]
        shapes.add(ids.shape)
        assert len(ids) == len(batch.rows) + batch.filled
        assert (ids[len(batch.rows) :] == ids[len(batch.rows) - 1]).all()
        assert batch.padded_tokens == ids.size
        assert batch.width == ids.shape[1] in policy.lengths
        assert batch.lengths is not None
        assert batch.real_tokens == batch.lengths.sum() == (ids[: len(batch.rows)] != 0).sum()
    assert len(shapes) <= count


@given(num_rows=st.integers(1, 200), size=st.integers(1, 90), window=st.integers(1, 300))
def test_dense_batches_of_one_shape(num_rows: int, size: int, window: int) -> None:
    """Rows that are all alike come in batches of one shape, with the missing ones made up."""
    policy = BatchPolicy(size=size, by="rows", bindings=(Binding("pair", "pair", "float32"),), fixed=True)
    batches = full_batches(text_chunk([""] * num_rows, [[]] * num_rows), window, policy)
    assert {batch.tensors["pair"].shape for batch in batches} == {(size, 2)}
    assert sum(len(batch.rows) for batch in batches) == num_rows


@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=200),
    size=st.integers(1, 400),
    by=st.sampled_from(["rows", "tokens", "bytes"]),
    fixed=st.booleans(),
    window=st.integers(1, 120),
)
def test_packed_rows(sizes: list[int], size: int, by: Any, *, fixed: bool, window: int) -> None:
    """Packed, every row's tokens stand once, in order, between its two places of `cu_seqlens`, at positions
    that begin at 0; a batch holds no more than its size, and with a fixed shape a multiple of it."""
    fixed = fixed and by != "rows"
    policy = BatchPolicy(
        size=size,
        by=by,
        bindings=(Binding("ids", "ids", "int64"),),
        fixed=fixed,
        packing=Packing(values=("ids",)),
    )
    stream = make_chunks(make_unit(0, len(sizes)), sizes, size=50, bad=set())
    batches = full_batches(stream, window, policy)
    assert [batch.window.span.start + row for batch in batches for row in batch.rows.tolist()] == list(
        range(len(sizes))
    )
    room = size // 16 or 1 if by == "bytes" else size
    shapes = set()
    for batch in batches:
        ids, places, ends = (
            np.asarray(batch.tensors[name]) for name in ("ids", "position_ids", "cu_seqlens")
        )
        shapes.add((ids.shape, ends.shape))
        assert ids.shape == places.shape == (batch.padded_tokens,)
        assert len(ends) == len(batch.rows) + batch.filled + 1
        for at, row in enumerate(batch.rows):
            number = batch.window.span.start + int(row)
            start, stop = ends[at : at + 2]
            assert ids[start:stop].tolist() == [number + 1] * sizes[number]
            assert places[start:stop].tolist() == list(range(sizes[number]))
        assert not ids[ends[-1] :].any()
        if by == "rows":
            assert len(batch.rows) <= size
        elif len(batch.rows) > 1:
            assert batch.real_tokens <= room
        if fixed:
            assert len(ids) % room == 0
    if fixed and max(sizes) <= room:
        assert len(shapes) == 1


@given(st.integers(1, 5000), st.integers(1, MAX_SHAPES))
def test_bucket_lengths(longest: int, count: int) -> None:
    """The lengths ascend to the longest, and a row goes to the first that holds it; beyond, to a doubling."""
    lengths = bucket_lengths(longest, count)
    assert list(lengths) == sorted(set(lengths))
    assert len(lengths) <= count
    assert lengths[-1] == longest
    for length in (0, 1, longest // 2, longest):
        assert rounded(length, lengths) == min(size for size in lengths if size >= length)
    assert rounded(longest + 1, lengths) == 2 * longest
    assert rounded(2 * longest, lengths) == 2 * longest
    assert rounded(2 * longest + 1, lengths) == 4 * longest
    assert rounded(longest, ()) == longest


@given(st.lists(st.integers(0, 30), min_size=2, max_size=80), st.integers(1, 80), st.integers(1, 80))
def test_batches_do_not_depend_on_chunks(lengths: list[int], first: int, second: int) -> None:
    """The same unit gives the same batches however it was chunked, as long as it fits one window."""
    policy = BatchPolicy(size=64, by="tokens", bindings=(Binding("ids", "ids", "int64"),))
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


@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=40),
    packed=st.booleans(),
    fixed=st.booleans(),
    cut=st.tuples(st.integers(0, 40), st.integers(1, 40)),
)
def test_pieces_of_a_batch(sizes: list[int], *, packed: bool, fixed: bool, cut: tuple[int, int]) -> None:
    """A piece holds its rows as the batch does, padded or packed; where the batch has a shape that its model
    is made for, so has the piece."""
    policy = BatchPolicy(
        size=256,
        by="tokens",
        bindings=(Binding("ids", "ids", "int64"),),
        fixed=fixed,
        lengths=(8, 16, 32) if fixed and not packed else (),
        packing=Packing(values=("ids",)) if packed else None,
    )
    for batch in full_batches(make_chunks(make_unit(0, len(sizes)), sizes, size=50, bad=set()), 100, policy):
        start = min(cut[0], len(batch.rows) - 1)
        stop = min(start + cut[1], len(batch.rows))
        part = piece(batch, start, stop)
        assert part.rows.tolist() == batch.rows[start:stop].tolist()
        assert rows_of(part) == rows_of(batch)[start:stop]
        shapes = [
            {name: np.shape(part_of.tensors[name]) for name in batch.tensors} for part_of in (batch, part)
        ]
        assert not fixed or shapes[0] == shapes[1]
        bad = list(range(1, len(batch.rows), 2))
        stood_in = rows_of(with_stand_ins(batch, bad))
        assert stood_in[::2] == rows_of(batch)[::2]
        own = {value for row in stood_in[1::2] for value in row} - {0}
        assert own <= {row + 1 for row in batch.rows[::2].tolist()}


def rows_of(batch: HostBatch) -> list[list[int]]:
    """Return the ids of each row of a batch."""
    ids: Any = batch.tensors["ids"]
    if not batch.is_packed:
        return [row.tolist() for row in ids[: len(batch.rows)]]
    ends: Any = batch.tensors["cu_seqlens"]
    return [ids[start:stop].tolist() for start, stop in itertools.pairwise(ends[: len(batch.rows) + 1])]
