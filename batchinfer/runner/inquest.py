"""Who killed the worker? What the black boxes of dead workers say, unit by unit, until a row is found guilty.

A row is guilty once two workers died with nothing but that row in hand: on two devices, where there are
two. One death is an accident: anybody may be killed at any moment, and a device may be to blame.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from batchinfer.data import ErrorCode, Poison, Suspect

if TYPE_CHECKING:
    from batchinfer.data import Unit
    from batchinfer.engine.blackbox import Entry
    from batchinfer.runner.messages import Assign

_GUILTY = 2
_ACCIDENTS = 3
_DEATHS_A_ROW = 4
_MOST_POISON = 64
_MOST_IN_A_ROW = 16
"""Rows of one stage found guilty one after the other, while that stage did no other rows and no unit was ever
done: it is more likely the stage than so many rows. A dozen bad rows at the very start must pass, and what
fails on every row costs three workers for each."""


_SAID = {
    ErrorCode.MEMORY: "took more memory than there is and was ended",
    ErrorCode.TIMEOUT: "finished nothing for too long and was ended",
}


@dataclass(slots=True)
class _Dossier:
    """What is known of one unit."""

    num_rows: int
    deaths: int = 0
    suspects: dict[tuple[str, int], Suspect] = field(default_factory=dict)
    alone: Counter[tuple[str, int]] = field(default_factory=Counter)
    poison: dict[int, Poison] = field(default_factory=dict)
    devices: dict[str, set[tuple[str, int]]] = field(default_factory=dict)

    def leaves_out(self, entry: Entry) -> bool:
        """Tell whether the lone row of an entry is found guilty already: its holder had not heard of it."""
        known = self.poison.get(entry.row)
        return known is not None and known.stage in {entry.stage, "preprocess"}

    def is_hopeless(self) -> bool:
        """Tell whether more workers died on it than a search for bad rows could explain."""
        explained = _ACCIDENTS + math.log2(self.num_rows + 1) + _DEATHS_A_ROW * len(self.poison)
        return self.deaths > explained or len(self.poison) > _MOST_POISON


@dataclass(frozen=True, slots=True)
class Findings:
    """What a death tells: whether it helps the next worker, what to say of rows that are found guilty now,
    and the units that another device should try next."""

    is_told: bool
    said: tuple[str, ...]
    elsewhere: tuple[Unit, ...]


class Inquest:
    """Collects what deaths tell, and says it to whoever does a unit next."""

    def __init__(self) -> None:
        self._dossiers: dict[int, _Dossier] = {}
        self._in_a_row: Counter[str] = Counter()
        self._is_proven = False

    def passed(self, stages: Collection[str]) -> None:
        """Take note of stages that have done some rows."""
        for stage in stages:
            self._in_a_row[stage] = 0

    def hear(
        self,
        entries: Iterable[Entry],
        units: Mapping[int, Unit],
        *,
        how: str,
        code: ErrorCode,
        device: str,
        has_others: bool,
    ) -> Findings:
        """Take note of what a worker had in hand of its units when it died. `has_others` says that there are
        other devices, and that this one may be to blame."""
        said: list[str] = []
        elsewhere: list[Unit] = []
        is_told = False
        mine = [entry for entry in entries if entry.unit in units and not self._is_told_of(entry)]
        for number in {entry.unit for entry in mine}:
            # One death, however many batches of the unit were in hand.
            dossier = self._dossiers.setdefault(number, _Dossier(units[number].num_rows))
            dossier.deaths += 1
            is_told = is_told or not dossier.is_hopeless()
        for entry in mine:
            unit, dossier = units[entry.unit], self._dossiers[entry.unit]
            place = (entry.stage, entry.row)
            here = dossier.devices.setdefault(device, set()) if has_others else set()
            if entry.row >= 0:
                dossier.alone[place] += 1
                here.add(place)
            confirmed = not has_others or sum(place in rows for rows in dossier.devices.values()) > 1
            if entry.row >= 0 and not confirmed:
                elsewhere.append(unit)
            if entry.row >= 0 and confirmed and dossier.alone[place] >= _GUILTY:
                self._in_a_row[entry.stage] += 1
                dossier.poison[entry.row] = _poison(entry, dossier, how=how, code=code)
                said.append(f"{unit.shard.key} row {entry.row} ends whoever touches it, and is left out")
                if entry.stage == "preprocess":
                    # Without the row, the batches of its unit are others.
                    dossier.suspects.clear()
                dossier.suspects.pop((entry.stage, entry.key), None)
            else:
                found = Suspect(entry.stage, entry.key, entry.start, entry.stop)
                dossier.suspects[entry.stage, entry.key] = found
        is_told = is_told and (
            self._is_proven or all(self._in_a_row[entry.stage] < _MOST_IN_A_ROW for entry in mine)
        )
        return Findings(is_told, tuple(said), tuple(elsewhere))

    def _is_told_of(self, entry: Entry) -> bool:
        dossier = self._dossiers.get(entry.unit)
        return dossier is not None and dossier.leaves_out(entry)

    def brief(self, assign: Assign) -> Assign:
        """Add what is known of a unit to its assignment."""
        dossier = self._dossiers.get(assign.unit.index)
        if dossier is None:
            return assign
        return dataclasses.replace(
            assign, suspects=tuple(dossier.suspects.values()), poison=tuple(dossier.poison.values())
        )

    def close(self, unit: int, device: str) -> list[str]:
        """Forget a unit that is committed by a worker on a device. Returns the other devices on which it
        ended workers, where no row of it was to blame."""
        self._is_proven = True
        dossier = self._dossiers.pop(unit, None)
        if dossier is None or dossier.poison:
            return []
        return [other for other in dossier.devices if other != device]


def _poison(entry: Entry, dossier: _Dossier, *, how: str, code: ErrorCode) -> Poison:
    return Poison(
        row=entry.row,
        stage=entry.stage,
        code=code,
        # Without figures: whoever finds the row guilty again says the same.
        message=f"the process that had it in hand {_SAID.get(code, how)}",
        attempts=dossier.alone[entry.stage, entry.row] + 1,
    )
