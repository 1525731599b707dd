"""Slabs: rows come back as they went in, in place, and nothing is written over that somebody can still see."""

from __future__ import annotations

import itertools
import os
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinfer.loader import slabs
from batchinfer.loader.slabs import Place, SlabReader, SlabWriter


class Pair:
    """A writer and a reader, in one process, as if in two."""

    def __init__(self, most_lent: int = 32) -> None:
        self.writer = SlabWriter()
        self.reader = SlabReader(most_lent=most_lent)

    def send(self, rows: pa.RecordBatch) -> tuple[Place, pa.RecordBatch]:
        """Send rows, and with them word of what is free."""
        self.writer.release(self.reader.released())
        place, fd = self.writer.write(rows)
        return place, self.reader.read(place, None if fd is None else os.dup(fd))

    def close(self) -> None:
        """End both sides."""
        self.writer.close()
        self.reader.close()


def rows_of(seed: int, num_rows: int) -> pa.RecordBatch:
    """Return rows of several types that no other seed gives."""
    numbers = np.arange(num_rows) + seed * 10_000
    return pa.RecordBatch.from_pydict(
        {
            "number": pa.array(numbers, pa.int64()),
            "text": pa.array([f"{seed} {row}" if row % 3 else None for row in range(num_rows)], pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(numbers, 4), pa.float32()), 4),
        }
    )


def where(rows: pa.RecordBatch) -> list[tuple[int, int]]:
    """Return the addresses, first and behind the last, of every buffer of some rows."""
    buffers = [buffer for column in rows.columns for buffer in column.buffers() if buffer is not None]
    return [(buffer.address, buffer.address + buffer.size) for buffer in buffers if buffer.size]


@given(
    st.lists(
        st.tuples(st.integers(0, 400), st.sampled_from(["keep", "drop", "keep a slice", "drop all"])),
        max_size=60,
    ),
    st.integers(0, 6),
    st.sampled_from([4096, 1 << 16]),
    st.integers(0, 3),
)
def test_no_two_that_live_share_memory(
    steps: list[tuple[int, str]], most_lent: int, slab_bytes: int, kept_warm: int
) -> None:
    """Whatever is kept and dropped, and in whatever order: rows that are alive never change and never
    overlap, whether they fit a slab or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slabs, "SLAB_BYTES", slab_bytes)
        patch.setattr(slabs, "_KEPT_WARM", kept_warm)
        pair, draw = Pair(most_lent), random.Random(1)
        alive: list[tuple[pa.RecordBatch, pa.RecordBatch]] = []
        for seed, (num_rows, then) in enumerate(steps):
            given_rows = rows_of(seed, num_rows)
            _, got = pair.send(given_rows)
            alive.append((given_rows, got))
            del got
            if then == "drop":
                del alive[draw.randrange(len(alive))]
            elif then == "keep a slice":
                whole = alive.pop()
                alive.append((whole[0].slice(num_rows // 2), whole[1].slice(num_rows // 2)))
                del whole
            elif then == "drop all":
                alive.clear()
            assert all(got.equals(expected) for expected, got in alive)
            places = sorted(place for _, got in alive for place in where(got))
            assert all(one[1] <= other[0] for one, other in itertools.pairwise(places))
        pair.close()
        assert all(got.equals(expected) for expected, got in alive)


def test_rows_are_read_in_place() -> None:
    """What the reader gets lies in the memory of the slab, and so does an array made of it."""
    pair = Pair()
    _, got = pair.send(rows_of(1, 1000))
    with open("/proc/self/maps") as file:
        maps = [line.split() for line in file if "memfd:batchinfer" in line]
    spans = [tuple(int(end, 16) for end in fields[0].split("-")) for fields in maps if fields[1][1] == "-"]
    address = got["number"].to_numpy().__array_interface__["data"][0]
    for start, stop in [*where(got), (address, address + 8000)]:
        assert any(low <= start and stop <= high for low, high in spans)
    pair.close()


def test_a_slab_is_used_again_once_nothing_sees_it() -> None:
    """One slab is enough while nothing is kept; an array over its rows keeps it, and gives it back."""
    pair = Pair()
    first = {pair.send(rows_of(seed, 100))[0].slab for seed in range(20)}
    assert len(first) == 1
    place, rows = pair.send(rows_of(20, 100))
    view = rows["number"].to_numpy()[50:]
    del rows
    others = {pair.send(rows_of(seed, 100))[0].slab for seed in range(21, 30)}
    assert place.slab not in others
    assert view[0] == 200_050
    del view
    assert place.slab in {pair.send(rows_of(seed, 100))[0].slab for seed in range(30, 33)}
    pair.close()


def test_descriptors_and_memory_stay_flat() -> None:
    """However many rows wait, so many slabs are lent and no more; after a burst, memory goes back."""
    before = len(os.listdir("/proc/self/fd"))
    pair = Pair(most_lent=8)
    rows = rows_of(0, 10_000)
    most = 0
    for _ in range(5):
        kept = [pair.send(rows)[1] for _ in range(50)]
        most = max(most, len(os.listdir("/proc/self/fd")))
        assert all(got.equals(rows) for got in kept)
        del kept
    pair.send(rows)
    # A descriptor and a mapping's for the writer, a mapping's for the reader.
    assert most - before <= 3 * 10
    touched = sum(os.fstat(slab.fd).st_blocks * 512 for slab in pair.writer._slabs.values())
    assert touched <= (slabs._KEPT_WARM + 2) * (rows.nbytes + (64 << 10))
    pair.close()
    del pair
    assert len(os.listdir("/proc/self/fd")) == before


def test_rows_larger_than_a_slab_pass_and_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that no slab can hold get memory of their own, which is freed with the last view of them."""
    monkeypatch.setattr(slabs, "SLAB_BYTES", 4096)
    pair = Pair()
    large = rows_of(1, 10_000)
    place, got = pair.send(large)
    assert place.size > 4096
    assert got.equals(large)
    del got
    again, _ = pair.send(rows_of(2, 10))
    assert again.slab != place.slab
    assert [len(slab.memory) for slab in pair.writer._slabs.values()] == [4096]
    with open("/proc/self/maps") as file:
        sizes = [fields[0].split("-") for fields in map(str.split, file) if "memfd:batchinfer" in fields[-2:]]
    assert all(int(high, 16) - int(low, 16) <= 4096 for low, high in sizes)
    pair.close()
