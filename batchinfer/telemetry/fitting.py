"""Lines of labelled figures, of which the least important give way where a window is narrow."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

LABEL = 10
"""Cells before the figures of a line."""

_SEPARATOR = "   "

Part = tuple[int, "str | Text"]
"""A figure, and how soon it may give way: 0 never."""


def labelled(label: str, parts: Sequence[str | Text | Part], *, width: int = 0) -> Text:
    """Return a line. Where it would be wider than `width`, parts are left out, those of the highest number
    first; a width of 0 has room for all. Empty parts are none."""
    ranked = [part if isinstance(part, tuple) else (0, part) for part in parts if part]
    ranked = [(rank, part) for rank, part in ranked if part]
    while width and _width_of(ranked) > width and any(rank for rank, _ in ranked):
        worst = max(rank for rank, _ in ranked)
        last = max(at for at, (rank, _) in enumerate(ranked) if rank == worst)
        del ranked[last]
    text = Text(label.ljust(LABEL), style="dim", end="")
    for number, (_, part) in enumerate(ranked):
        text.append(_SEPARATOR if number else "")
        text.append(part if isinstance(part, Text) else Text(part, style="not dim"))
    return text


def _width_of(parts: Sequence[Part]) -> int:
    cells = sum(part.cell_len if isinstance(part, Text) else Text(part).cell_len for _, part in parts)
    return LABEL + cells + len(_SEPARATOR) * max(len(parts) - 1, 0)


def bar(ratio: float, width: int, *, ascii_only: bool) -> Text:
    """Return a bar of so many cells."""
    full, empty = ("#", ".") if ascii_only else ("█", "░")
    done = int(min(max(ratio, 0.0), 1.0) * width)
    drawn = Text(full * done, style="not dim green")
    return drawn.append(empty * (width - done), style="dim")


def whole_percent(ratio: float) -> str:
    """Return ` 97 %`, always as wide."""
    return f"{ratio * 100:3.0f} %"
