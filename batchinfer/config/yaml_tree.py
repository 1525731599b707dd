"""YAML text to plain values with the place of every key: the part of YAML that JSON has, no more."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from batchinfer.config.problems import KeyPath, Place, Problems, printable, quoted
from batchinfer.config.scalars import checked, scalar
from batchinfer.errors import JobFileError

JSON: TypeAlias = "dict[str, JSON] | list[JSON] | str | int | float | bool | None"

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 32

_SKIPPED = -1


@dataclass(slots=True)
class Tree:
    """A parsed job file. `value` is JSON-able; `plain` has the text of unquoted scalars, as written."""

    value: dict[str, Any]
    places: dict[KeyPath, Place] = field(default_factory=dict)
    plain: dict[KeyPath, str] = field(default_factory=dict)


def parse_job(data: bytes, problems: Problems) -> Tree:
    """Parse a whole job file. Raises JobFileError where there is nothing to go on with; what can be
    reported later with everything else is added to `problems`."""
    tree = Tree({}, places={(): Place(1, 1)})
    problems.places = tree.places
    text = _decode(data, problems)
    value: JSON = None
    try:
        value = _Reader(text, tree, problems).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problems.add((), _syntax(error), place=_place(mark) if mark else None)
        problems.raise_if_any()
    except (ValueError, OverflowError):
        # The scanner hands `"\\UFFFFFFFF"` and the like to chr() unchecked.
        problems.add((), "is not YAML: an escape in double quotes names no character")
        problems.raise_if_any()
    if not isinstance(value, dict):
        problems.add((), "must be a mapping of sections such as `job:` and `input:`")
        problems.raise_if_any()
    tree.value = cast("dict[str, Any]", value)
    return tree


def parse_value(text: str) -> JSON:
    """Parse one YAML value from the command line: a scalar, or quoted, or `[...]`, or `{...}`.

    Raises ValueError.
    """
    if not text.startswith(("[", "{", '"', "'")):
        return scalar(text)
    problems = Problems("value")
    try:
        value = _Reader(text, Tree({}), problems).document()
        problems.raise_if_any()
    except (yaml.YAMLError, ValueError, OverflowError, JobFileError):
        raise ValueError("is not a YAML value; quote it, or close its brackets") from None
    return value


def _decode(data: bytes, problems: Problems) -> str:
    """Return the text of a file, or report why it has none."""
    if len(data) > MAX_BYTES:
        problems.add((), f"is larger than {MAX_BYTES // 1024} KiB: this is no job file")
        problems.raise_if_any()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        head = data[: error.start]
        place = Place(head.count(b"\n") + 1, error.start - (head.rfind(b"\n") + 1) + 1)
        problems.add((), f"is not UTF-8: byte 0x{data[error.start]:02x}; save it as UTF-8", place=place)
        problems.raise_if_any()
        raise
    found = re.search(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", text)
    if found:
        head_text = text[: found.start()]
        place = Place(head_text.count("\n") + 1, found.start() - (head_text.rfind("\n") + 1) + 1)
        problems.add((), f"holds the control character {found.group()!a}; remove it", place=place)
        problems.raise_if_any()
    return text


def _syntax(error: yaml.MarkedYAMLError) -> str:
    """Say in one line what the parser could not read."""
    problem = error.problem or "cannot be read"
    if "'\\t'" in problem:
        return "a tab cannot indent YAML; use spaces"
    hint = ""
    if "mapping values are not allowed" in problem:
        hint = "; is the line before it unfinished, or does a text with `: ` need quotes?"
    elif "could not find expected ':'" in problem:
        hint = "; is a `:` missing after the key?"
    elif "expected <block end>" in problem:
        hint = "; does the indentation fit the lines above?"
    return f"is not YAML: {printable(problem)}{hint}"


def _place(mark: Any) -> Place:
    return Place(mark.line + 1, mark.column + 1)


class _Reader:
    """Builds values from parser events. Recursion is bounded by MAX_DEPTH, not by the file."""

    def __init__(self, text: str, tree: Tree, problems: Problems) -> None:
        self.events: Iterator[Event] = yaml.parse(text, Loader=yaml.SafeLoader)
        self.tree = tree
        self.problems = problems

    def document(self) -> JSON:
        """Return the value of the only document."""
        next(self.events)
        if not isinstance(next(self.events), DocumentStartEvent):
            self.add((), "is empty; `batchinfer init` writes a job file to begin with")
            self.problems.raise_if_any()
        value = self.node(next(self.events), ())
        next(self.events)
        following = next(self.events)
        if isinstance(following, DocumentStartEvent):
            message = "holds several YAML documents; a job file is one"
            self.add((), message, place=_place(following.start_mark))
        return value

    def node(self, event: Event, path: KeyPath) -> JSON:
        """Return the value that begins with an event, reporting what only YAML has."""
        assert isinstance(event, NodeEvent)
        if len(path) > MAX_DEPTH:
            self.add(path[:2], f"is nested deeper than {MAX_DEPTH} levels")
            self.problems.raise_if_any()
        place = _place(event.start_mark)
        # 450 bytes of aliases can stand for a billion values once they are written out.
        if isinstance(event, AliasEvent):
            self.add(path, f"`*{event.anchor}` is a YAML alias; repeat the value instead", place=place)
            return None
        if event.anchor is not None:
            self.add(path, f"`&{event.anchor}` is a YAML anchor; remove it", place=place)
        tag = getattr(event, "tag", None)
        if tag is not None:
            self.add(path, f"has the YAML tag {quoted(tag)}; tags are refused", place=place)
        self.tree.places.setdefault(path, place)
        if isinstance(event, MappingStartEvent):
            return self.mapping(path)
        if isinstance(event, SequenceStartEvent):
            return self.sequence(path)
        assert isinstance(event, ScalarEvent)
        return self.scalar(event, path)

    def scalar(self, event: ScalarEvent, path: KeyPath) -> JSON:
        """Return the value of a scalar; only an unquoted one can be anything but text."""
        text: str = event.value
        try:
            if event.style is not None:
                return checked(text)
            self.tree.plain[path] = text
            return scalar(text)
        except ValueError as error:
            self.add(path, str(error), place=_place(event.start_mark))
            return None

    def sequence(self, path: KeyPath) -> list[JSON]:
        values: list[JSON] = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            values.append(self.node(event, (*path, len(values))))
        return values

    def mapping(self, path: KeyPath) -> dict[str, JSON]:
        values: dict[str, JSON] = {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            place = _place(event.start_mark)
            key = self.key(event, path, place)
            if key is None:
                self.skip(next(self.events), path)
            elif key in values:
                first = self.tree.places[(*path, key)]
                # PyYAML would keep the last one without a word.
                message = f"is given twice; the first is in line {first.line}"
                self.add((*path, key), message, place=place)
                self.skip(next(self.events), (*path, key))
            else:
                self.tree.places[(*path, key)] = place
                values[key] = self.node(next(self.events), (*path, key))
        return values

    def key(self, event: Event, path: KeyPath, place: Place) -> str | None:
        """Return a key as text, or None where it is none."""
        if not isinstance(event, ScalarEvent) or event.tag is not None or event.anchor is not None:
            self.add(path, "has a key that is not plain text", place=place)
            self.skip(event, path)
            return None
        text: str = event.value
        wrong = None
        if event.style is None and text in ("<<", ""):
            wrong = "has the YAML merge key `<<`; repeat the values instead" if text else "has an empty key"
        try:
            checked(text)
        except ValueError as error:
            wrong = str(error)
        if wrong is not None:
            self.add(path, wrong, place=place)
            return None
        return text

    def add(self, path: KeyPath, message: str, *, place: Place | None = None) -> None:
        """Record a problem; inside what is skipped, under the key that it belongs to."""
        shown = path[: path.index(_SKIPPED)] if _SKIPPED in path else path
        self.problems.add(shown, message, place=place)

    def skip(self, event: Event, path: KeyPath) -> None:
        """Read a value without keeping it or its places."""
        kept = self.tree
        self.tree = Tree({})
        self.node(event, (*path, _SKIPPED))
        self.tree = kept
