"""Signs of life: who is at work on an output, what was in their hands when they died.

A heartbeat is one small object per process, written again every few seconds. Whoever watches it
judges by the changes that it sees on its own clock; no two machines' clocks are ever compared.
"""

from __future__ import annotations

import os
import platform
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from batchinfer.crash import crash_point
from batchinfer.engine.publish import create_once
from batchinfer.errors import BatchinferError
from batchinfer.runner.output import below, control, read_control

if TYPE_CHECKING:
    from batchinfer.data import Entry
    from batchinfer.storage import Store

_BEAT = re.compile(r"_batchinfer/([0-9a-f]{8})/hb/([^/]+)\.(json|gone)")
_ANY = "any"
USUAL_BEAT_S = 15.0
"""Seconds between two heartbeats of a process that does not say."""


@dataclass(frozen=True, slots=True)
class Beat:
    """One process's heartbeat as a listing shows it."""

    owner: str
    version: str
    modified: float


def new_owner(shard: int | None) -> str:
    """Return a name for this process: shard, host, pid, and what no other process has."""
    return f"{_ANY if shard is None else shard}-{_host()}-{os.getpid()}-{secrets.token_hex(4)}"


def beats(entries: Iterable[Entry], root: str, plan8: str) -> Iterator[Beat]:
    """Yield the heartbeats of a plan whose processes did not take their leave."""
    found = [(_BEAT.fullmatch(below(root, entry.uri)), entry) for entry in entries]
    mine = [(name[2], name[3], entry) for name, entry in found if name and name[1] == plan8]
    gone = {owner for owner, kind, _ in mine if kind == "gone"}
    for owner, kind, entry in mine:
        if kind == "json" and owner not in gone:
            yield Beat(owner, entry.version, entry.modified)


class Presence:
    """This process's own heartbeat."""

    def __init__(
        self, store: Store, root: str, plan8: str, owner: str, *, every_s: float = USUAL_BEAT_S
    ) -> None:
        self._every_s = every_s
        self._store = store
        self._base = f"{root.rstrip('/')}/_batchinfer/{plan8}"
        self.owner = owner
        self._seq = 0

    @property
    def uri(self) -> str:
        """Where the heartbeat is."""
        return f"{self._base}/hb/{self.owner}.json"

    def beat(self, *, in_flight: Sequence[int], blocks: Sequence[int], done: int) -> None:
        """Say what this process is doing. Raises what the store raises."""
        self._seq += 1
        text = control(
            owner=self.owner,
            seq=self._seq,
            in_flight=list(in_flight),
            blocks=list(blocks),
            done=done,
            every_s=self._every_s,
        )
        crash_point("hb.before")
        self._store.put(self.uri, text)
        crash_point("hb.after")

    def leave(self, *, claimed: bool) -> None:
        """Take leave: nobody need wait for this process, and nobody blames it."""
        if claimed:
            self._store.put(f"{self._base}/hb/{self.owner}.gone", control(owner=self.owner))
        self._store.delete(self.uri)

    def blame(self, others: Iterable[Beat], committed: frozenset[int]) -> list[int]:
        """Record the units that dead predecessors had in their hands; return them.

        A predecessor is one of the same shard, or of this machine, whose process is gone. It is
        blamed once: its heartbeat goes with it.
        """
        suspects: list[int] = []
        for beat in others:
            if beat.owner == self.owner or not is_predecessor(beat.owner, self.owner):
                continue
            uri = f"{self._base}/hb/{beat.owner}.json"
            try:
                units = [int(unit) for unit in read_control(self._store, uri, "heartbeat")["in_flight"]]
            except (BatchinferError, KeyError, TypeError, ValueError):
                units = []  # a torn or foreign heartbeat blames nobody
            for unit in units:
                if unit not in committed:
                    self._suspect(unit, beat.owner)
                    suspects.append(unit)
            self._store.delete(uri)
        return suspects

    def _suspect(self, unit: int, owner: str) -> None:
        """Add a record to those that a unit has already."""
        for number in range(1, 100):
            uri = f"{self._base}/suspect/{unit:05d}/{number}.json"
            if create_once(self._store, uri, control(unit=unit, owner=owner)):
                return


def promised_s(store: Store, root: str, plan8: str, owner: str) -> float:
    """Return how many seconds pass between two heartbeats of a process, as it says itself."""
    uri = f"{root.rstrip('/')}/_batchinfer/{plan8}/hb/{owner}.json"
    try:
        return float(read_control(store, uri, "heartbeat")["every_s"])
    except (BatchinferError, KeyError, TypeError, ValueError):
        return USUAL_BEAT_S  # torn, gone, foreign, or of an earlier release


def died_here(owner: str) -> bool:
    """Tell whether a process ran on this machine and is gone."""
    _, host, pid = _fields(owner)
    return host == _host() and pid.isdigit() and not _runs(pid)


def is_predecessor(owner: str, me: str) -> bool:
    """Tell whether a process was this one's predecessor: of its shard, or gone from this machine."""
    shard, host, _ = _fields(owner)
    if host == _host():
        return died_here(owner)
    return shard == _fields(me)[0] != _ANY


def _runs(pid: str) -> bool:
    """Tell whether a process of this machine runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in {"Z", "X"}


def _fields(owner: str) -> tuple[str, str, str]:
    shard, _, rest = owner.partition("-")
    host, _, rest = rest.partition("-")
    return shard, host, rest.partition("-")[0]


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "", platform.node())[:24] or "host"
