"""Numbers, times and foreign text as a person reads them."""

from __future__ import annotations

import math
import re

_UNITS = ("", " k", " M", " G", " T")
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_GIB = 2**30
_CENTS, _SMALL_KWH, _MANY_KWH = 0.1, 0.001, 10.0
JOULES_PER_KWH = 3.6e6
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")


def count(number: int) -> str:
    """Return `12,000,000`."""
    return f"{number:,}"


def short(number: float) -> str:
    """Return three digits and a unit: `8.91 M`, `812`, `0.45`."""
    for unit in _UNITS:
        if number < 999.5 or unit == _UNITS[-1]:  # noqa: PLR2004 - three digits
            break
        number /= 1000
    if not unit and number == int(number):
        return str(int(number))
    digits = 2 if number < 9.995 else 1 if number < 99.95 else 0  # noqa: PLR2004 - three digits
    return f"{number:.{digits}f}{unit}"


def rate(per_second: float) -> str:
    """Return `41.8 k/s`."""
    return f"{short(per_second)}/s"


def percent(ratio: float) -> str:
    """Return `74.2 %`; never 100 before the end, and never 0 where there is something."""
    value = ratio * 100
    if 0 < value < 0.1:  # noqa: PLR2004 - below, one decimal would say nothing
        return f"{value:.1g} %" if value >= 1e-4 else "<0.0001 %"  # noqa: PLR2004 - where %g turns to e-05
    return f"{math.floor(value * 10 + 1e-9) / 10:.1f} %"


def duration(seconds: float) -> str:
    """Return `4.2 s`, `47 s`, `4m 47s`, `3h 05m` or `2d 04h`."""
    if seconds < 9.95:  # noqa: PLR2004 - two digits
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}m {whole % _MINUTE:02d}s"
    if whole < _DAY:
        return f"{whole // _HOUR}h {whole % _HOUR // _MINUTE:02d}m"
    return f"{whole // _DAY}d {whole % _DAY // _HOUR:02d}h"


def start(seconds: float, whole: float) -> str:
    """Return `6.1 s of 8.9 s (68.5 %), planning and loading the model`."""
    share = f" ({percent(seconds / whole)})" if whole else ""
    return f"{duration(seconds)} of {duration(whole)}{share}, planning and loading the model"


def clock(seconds: float) -> str:
    """Return `00:03:32`."""
    whole = int(seconds)
    return f"{whole // _HOUR:02d}:{whole % _HOUR // _MINUTE:02d}:{whole % _MINUTE:02d}"


def money(amount: float) -> str:
    """Return `0.38`, `1,234.50`, or `0.0012` of what is almost nothing."""
    return f"{amount:,.2f}" if amount >= _CENTS or not amount else f"{amount:.2g}"


def energy(joules: float) -> str:
    """Return `0.021 kWh`, or joules where it is less than a thousandth of one."""
    kwh = joules / JOULES_PER_KWH
    if kwh < _SMALL_KWH:
        return f"{joules:.0f} J"
    return f"{kwh:.2g} kWh" if kwh < _MANY_KWH else f"{kwh:,.1f} kWh"


def gib(num_bytes: float) -> str:
    """Return `18.1`, in GiB."""
    return f"{num_bytes / _GIB:.1f}"


def plain(text: str, *, longest: int = 1000) -> str:
    """Return foreign text as one harmless line: no colours, no control characters, not too long.

    Of a line that draws over itself (a progress bar), what stands at the end is kept.
    """
    last = _ESCAPES.sub("", text.rstrip("\r\n")).rpartition("\r")[2].expandtabs(4)
    safe = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in last)
    return safe if len(safe) <= longest else f"{safe[: longest - 1]}…"


def model_name(model: str) -> str:
    """Return what a person calls a model: its version, entry point, or the end of its path."""
    return plain("/".join(model.rstrip("/").split("/")[-2:]) if "/" in model else model)
