"""Running ahead in a thread: order, errors, bounds, and no thread left behind."""

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinfer.loader.prefetch import Bound, Levels, ordered_map, prefetch

WIDE = Bound(items=4, num_bytes=1 << 30)


def names() -> set[str]:
    """Return the names of the threads that are alive."""
    return {thread.name for thread in threading.enumerate()}


@given(st.lists(st.integers(min_value=0, max_value=1000)), st.integers(1, 5), st.integers(1, 3000))
def test_keeps_order_within_any_bound(items: list[int], depth: int, num_bytes: int) -> None:
    """Items come out in the order they went in, whatever the bound; one larger than it passes alone."""
    bound = Bound(items=depth, num_bytes=num_bytes)
    assert list(prefetch(iter(items), bound=bound, size_of=lambda item: item, name="t")) == items


def test_raises_where_consumed() -> None:
    """An error in the thread reaches the consumer after the good items, with its own type."""

    def items() -> Iterator[int]:
        yield 1
        raise KeyError("boom")

    ahead = prefetch(items(), bound=WIDE, size_of=lambda _: 1, name="t")
    assert next(ahead) == 1
    with pytest.raises(KeyError, match="boom"):
        next(ahead)


def test_runs_no_further_than_its_bytes() -> None:
    """No more bytes wait than the bound allows, however fast the producer is."""
    produced = []
    consumed = threading.Semaphore(0)
    stuck = threading.Event()

    def items() -> Iterator[int]:
        for at in range(10):
            produced.append(at)
            if at == 3:
                stuck.set()
            yield at

    ahead = prefetch(items(), bound=Bound(items=100, num_bytes=30), size_of=lambda _: 10, name="t")
    assert next(ahead) == 0
    # Three wait, the fourth is in the producer's hand.
    assert stuck.wait(5)
    assert not consumed.acquire(timeout=0.1)
    assert len(produced) <= 5
    assert list(ahead) == list(range(1, 10))


def test_early_close_leaves_no_thread() -> None:
    """Abandoning the iterator ends its thread even when the buffer is full."""

    def forever() -> Iterator[int]:
        while True:
            yield 0

    ahead = prefetch(forever(), bound=Bound(items=1, num_bytes=1), size_of=lambda _: 1, name="left-behind")
    next(ahead)
    ahead.close()
    assert "left-behind" not in names()


def test_closing_the_last_stage_closes_them_all() -> None:
    """A chain of stages ends as one: closing the last ends the threads of all."""
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    first = prefetch(source(), bound=WIDE, size_of=lambda _: 1, name="chain-1")
    second = prefetch(
        ordered_map(lambda item: item, first, threads=2, name="chain-map"),
        bound=WIDE,
        size_of=lambda _: 1,
        name="chain-2",
    )
    next(second)
    second.close()
    assert closed.is_set()
    assert not {name for name in names() if name.startswith("chain-")}


def test_mapping_over_threads_keeps_order() -> None:
    """Results come in the order of the items, also when a later one is ready first."""
    release = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert release.wait(5)
        else:
            release.set()
        return item * 2

    assert list(ordered_map(work, iter(range(6)), threads=2, name="m")) == [0, 2, 4, 6, 8, 10]


def test_mapping_raises_in_its_place() -> None:
    """The error of one item comes after the results of the items before it."""

    def work(item: int) -> int:
        if item == 2:
            raise ValueError("item 2")
        return item

    results = ordered_map(work, iter(range(5)), threads=3, name="m")
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="item 2"):
        next(results)


def test_levels_tell_what_waits() -> None:
    """How many bytes wait in a queue can be asked, from its first item to its end."""
    levels = Levels()
    ahead = prefetch(iter([5, 6, 7]), bound=WIDE, size_of=lambda item: item, name="watched", levels=levels)
    assert levels.num_bytes() == {}
    assert next(ahead) == 5
    deadline = time.monotonic() + 10
    while levels.num_bytes() != {"watched": 13}:
        assert time.monotonic() < deadline, levels.num_bytes()
        time.sleep(0.005)
    assert list(ahead) == [6, 7]
    assert levels.num_bytes() == {"watched": 0}
