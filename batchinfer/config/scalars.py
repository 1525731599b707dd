"""What an unquoted word means: what YAML 1.2 and JSON agree on, and text otherwise."""

from __future__ import annotations

import re

from batchinfer.config.problems import printable

_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
_LARGEST = 2**63


def scalar(text: str) -> str | int | float | bool | None:
    """Return what an unquoted YAML scalar means: null, true, false, a number, else text.

    The words of YAML 1.1 (`yes`, `NO`, `12:30:00`, `0777`) are text here. Raises ValueError for a
    number that does not fit 64 bits.
    """
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if _INT.fullmatch(text):
        if len(text) > len(str(_LARGEST)) + 1 or abs(int(text)) >= _LARGEST:
            raise ValueError(f"{printable(text)} does not fit a 64-bit number")
        return int(text)
    if _FLOAT.fullmatch(text):
        number = float(text)
        if number in (float("inf"), float("-inf")):
            raise ValueError(f"{printable(text)} does not fit a 64-bit number")
        return number
    return checked(text)


def checked(text: str) -> str:
    """Return the text. Raises ValueError for what no path, name or JSON file can hold."""
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("holds a NUL or half of a surrogate pair; remove it")
    return text
