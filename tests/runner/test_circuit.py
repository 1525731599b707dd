"""Is it the row, or the device? Judged by what another device makes of the same unit."""

from __future__ import annotations

import pytest

from batchinfer.data import ErrorCode, Shard, Unit
from batchinfer.engine.blackbox import Entry
from batchinfer.runner.circuit import Circuits
from batchinfer.runner.inquest import Findings, Inquest
from batchinfer.runner.messages import Assign

SHARD = Shard(index=0, uri="s", key="s", size_bytes=1, version="", blocks=())


def unit(index: int) -> Unit:
    """Return one of a hundred rows."""
    return Unit(index=index, shard=SHARD, start=100 * index, stop=100 * index + 100)


def dies(inquest: Inquest, index: int, device: str, *, row: int = -1, has_others: bool = True) -> Findings:
    """Let a worker die with a batch in hand, or with one row."""
    entry = Entry("model", index, 0, 0, 32 if row < 0 else 1, row)
    return inquest.hear(
        [entry],
        {index: unit(index)},
        how="died",
        code=ErrorCode.CRASH,
        device=device,
        has_others=has_others,
    )


def test_a_row_is_guilty_on_two_devices() -> None:
    """Twice on one device proves nothing while there is another, which is asked next."""
    inquest = Inquest()
    assert dies(inquest, 0, "a").elsewhere == ()
    for _ in range(2):
        found = dies(inquest, 0, "a", row=7)
        assert found.said == ()
        assert found.elsewhere == (unit(0),)
    found = dies(inquest, 0, "b", row=7)
    assert found.said == ("s row 7 ends whoever touches it, and is left out",)
    assert found.elsewhere == ()
    assert inquest.close(0, "b") == []


def test_on_the_only_device_twice_is_enough() -> None:
    """Nobody else can be asked."""
    inquest = Inquest()
    assert dies(inquest, 0, "a", row=7, has_others=False).said == ()
    assert len(dies(inquest, 0, "a", row=7, has_others=False).said) == 1


def test_a_device_is_charged_with_what_others_can_do() -> None:
    """Three units within ten minutes that ended workers on one device, and that others did."""
    inquest, circuits = Inquest(), Circuits(["a", "b"])
    opened = []
    for index, now in enumerate((0.0, 500.0, 601.0, 700.0, 701.0)):
        dies(inquest, index, "a")
        assert inquest.close(index, "b") == ["a"]
        opened.append(circuits.charge("a", now))
    assert opened[:3] == [None, None, None]
    assert opened[3] == "ended its worker on 3 units that other devices did"
    dies(inquest, 9, "a")
    assert inquest.close(9, "a") == []


def test_the_last_device_is_only_given_up_for_its_own_faults() -> None:
    """Where there is no other, nothing is known to work elsewhere."""
    circuits = Circuits(["a", "a", "b"])
    assert circuits.has_others("a")
    circuits.open("b")
    assert not circuits.has_others("a")
    assert [circuits.charge("a", 0.0) for _ in range(9)] == [None] * 9
    assert circuits.fault("a", "IllegalAddress", 0.0) is None
    assert circuits.fault("a", "ECCUncorrectable", 0.0) is None
    assert circuits.fault("a", "ECCUncorrectable", 601.0) is None
    assert circuits.fault("a", "Unknown", 700.0) == "failed 2 times (Unknown)"
    assert circuits.fault("b", "canary", 0.0) == "computes wrongly"


def kill_rows(inquest: Inquest, rows: range) -> list[bool]:
    """Have rows end three workers each: in their batch, and twice alone. Returns whether that helps on."""
    told = []
    for row in rows:
        told.append(dies(inquest, 0, "a", has_others=False).is_told)
        told += [dies(inquest, 0, "a", row=row, has_others=False).is_told for _ in range(2)]
    return told


def test_a_dozen_bad_rows_are_not_the_model() -> None:
    """Rows that kill one after the other, before anything went well, are left out; if they never end, it is
    the model, and it is given up after a few dozen workers."""
    inquest = Inquest()
    assert all(kill_rows(inquest, range(12)))
    told = kill_rows(inquest, range(12, 20))
    assert told.index(False) < 4 * 3
    assert not any(told[told.index(False) :])


@pytest.mark.parametrize(("passed", "helps"), [("model", True), ("preprocess", False)])
def test_a_model_that_does_some_rows_is_none_that_does_none(passed: str, helps: bool) -> None:
    """Where rows went well in between, in the stage that kills, more may follow: sixty-four of one unit."""
    inquest = Inquest()
    told = []
    for first in range(0, 70, 10):
        told += kill_rows(inquest, range(first, first + 10))
        inquest.passed([passed])
    assert all(told[: 64 * 3]) == helps
    assert not told[-1]


def test_a_row_is_found_guilty_once() -> None:
    """Who had a row in hand before hearing of it tells nothing new."""
    inquest = Inquest()
    assert [len(dies(inquest, 0, "a", row=7, has_others=False).said) for _ in range(4)] == [0, 1, 0, 0]
    (poison,) = inquest.brief(Assign(unit=unit(0))).poison
    assert (poison.row, poison.attempts) == (7, 3)
    assert dies(inquest, 0, "b", row=7) == Findings(is_told=False, said=(), elsewhere=())
    assert inquest.brief(Assign(unit=unit(0))).suspects == ()
