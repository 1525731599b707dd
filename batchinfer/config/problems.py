"""Everything that is wrong with a job file, gathered under its place and reported at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TypeAlias

from batchinfer.errors import JobFileError

KeyPath: TypeAlias = tuple[str | int, ...]
"""Keys and list positions from the top of the job file: `("preprocess", 0, "tokenize", "column")`."""

_LONGEST_SHOWN = 60
_MOST_SHOWN = 100
_MOST_KEPT = 1000


@dataclass(frozen=True, slots=True)
class Place:
    """Where a key stands in its file, both counted from 1."""

    line: int
    column: int


@dataclass(slots=True)
class Problems:
    """Collects problems; `raise_if_any` turns them into one JobFileError, sorted by place."""

    origin: str
    places: Mapping[KeyPath, Place] = field(default_factory=dict)
    labels: Mapping[KeyPath, str] = field(default_factory=dict)
    """Places outside the file, for keys that came from the command line."""

    found: dict[tuple[Place, KeyPath, str, str], None] = field(default_factory=dict)
    """(place, path, message, origin), each once, in the order in which they were found."""

    def add(
        self, path: KeyPath, message: str, *, place: Place | None = None, label: str | None = None
    ) -> None:
        """Record a problem under a key path; `place` or `label` where it is not the key's own."""
        if place is None and label is None:
            label = self.label(path)
        where = place or self.nearest(path) or Place(0, 0)
        # Messages of components may quote a value raw; a report is one line each, safe on a terminal.
        line = " ".join(message.split())
        line = line if line.isprintable() else ascii(line)[1:-1]
        self.found[where, path, line, label or self.origin] = None
        # A file with so many is no job file; collecting on would cost minutes.
        if len(self.found) >= _MOST_KEPT:
            self.raise_if_any()

    def label(self, path: KeyPath) -> str | None:
        """Return the command-line place of a key, or of the nearest key above it."""
        for size in range(len(path), 0, -1):
            if path[:size] in self.labels:
                return self.labels[path[:size]]
        return None

    def nearest(self, path: KeyPath) -> Place | None:
        """Return the place of a key, or of the nearest key above it that has one."""
        for size in range(len(path), -1, -1):
            if path[:size] in self.places:
                return self.places[path[:size]]
        return None

    def place(self, path: KeyPath) -> str:
        """Return `job.yaml:12:5` for a key path."""
        label = self.label(path)
        return label or _position(self.origin, self.nearest(path))

    def __bool__(self) -> bool:
        return bool(self.found)

    def raise_if_any(self) -> None:
        """Raise JobFileError with every problem, one to a line."""
        if not self.found:
            return
        found = sorted(self.found, key=lambda problem: (problem[0].line, problem[0].column))
        lines = []
        for where, path, message, origin in found[:_MOST_SHOWN]:
            position = _position(origin, where) if origin == self.origin else origin
            name = format_path(path)
            # A place on the command line ends with the key itself.
            named = f"  {name}: " if name and not position.endswith(f" {name}") else ": "
            lines.append(f"{position}{named}{message}")
        if len(found) > _MOST_SHOWN:
            lines.append(f"{self.origin}: and {len(found) - _MOST_SHOWN} more problems")
        raise JobFileError("\n".join(lines))


def _position(origin: str, place: Place | None) -> str:
    return f"{origin}:{place.line}:{place.column}" if place and place.line else origin


def format_path(path: KeyPath) -> str:
    """Return `preprocess[0].tokenize.column`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{printable(part)}" if text else printable(part)
    return text


def printable(text: str) -> str:
    """Return text that is safe on a terminal and in a log line: no control characters, not long."""
    safe = text if text.isprintable() else ascii(text)[1:-1]
    return safe if len(safe) <= _LONGEST_SHOWN else f"{safe[: _LONGEST_SHOWN - 1]}…"


def quoted(text: str) -> str:
    """Return text in quotes, safe to print."""
    return f"'{printable(text)}'"


def guess(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` where a known name is near, else nothing."""
    choices = {choice.lower(): choice for choice in known}
    near = get_close_matches(name.lower(), choices, n=1, cutoff=0.6)
    return f"; did you mean {choices[near[0]]!r}?" if near else ""


def listed(names: Iterable[str], word: str = "or") -> str:
    """Return `a, b or c`."""
    items = list(names)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {word} {items[-1]}" if items else "none"
