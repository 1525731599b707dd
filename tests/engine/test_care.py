"""What stands in the black box while rows are taken with care, from several threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from batchinfer.engine.blackbox import BlackBox, Entry
from batchinfer.engine.care import Care

LONE = Entry("model", 0, 0, 5, 6, 5)
OTHER = Entry("preprocess", 1, 0, 0, 32)


class Checked(BlackBox):
    """A black box that remembers what stood in it after each entry."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self.seen: list[list[Entry]] = []

    def put(self, entry: Entry) -> int:
        """Note an entry, and look."""
        slot = super().put(entry)
        self.seen.append(self.read())
        return slot


class Slow(Checked):
    """One during whose forgetting of the lone row somebody else comes, and has time to be noted."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self.noted = threading.Event()
        self.others: list[threading.Thread] = []

    def put(self, entry: Entry) -> int:
        """Note an entry, look, and say so."""
        slot = super().put(entry)
        if entry == OTHER:
            self.noted.set()
        return slot

    def clear(self, slot: int) -> None:
        """Let the others begin, and forget the entry a little later."""
        for other in self.others:
            other.start()
        self.others = []
        self.noted.wait(0.3)
        super().clear(slot)


@pytest.fixture
def fd() -> Iterator[int]:
    """Give the memory of a box."""
    made = BlackBox.create()
    yield made
    os.close(made)


def test_a_lone_row_stands_alone(fd: int) -> None:
    """Who comes while a lone row is being forgotten is noted once it is, not a moment before."""
    box = Slow(fd)
    care = Care(box)
    other = threading.Thread(target=lambda: care.release(care.take(OTHER)))
    box.others.append(other)
    with care.holding(LONE, alone=True):
        pass
    other.join(5)
    assert not other.is_alive()
    assert box.seen == [[LONE], [OTHER]]
    assert box.read() == []


def test_after_a_death_nobody_is_noted(fd: int) -> None:
    """What other threads take while the worker goes down had no part in it."""
    box = Checked(fd)
    care = Care(box)
    with pytest.raises(OSError, match="gone"), care.holding(LONE, alone=True):
        raise OSError("gone")
    with care.holding(Entry("model", 0, 32, 0, 1, 32), alone=True):
        assert box.read() == [LONE]
    care.release(care.take(OTHER))
    assert box.read() == [LONE]
