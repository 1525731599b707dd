"""What was found, in lines to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_WAITS = ("compute", "read", "decode", "pack", "transfer", "postprocess", "write", "commit", "launch")
_WIDE = 32


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of a run: its sections, then the figures of each."""
    yield f"{'section':<14}{'status':<14}{'seconds':>8}   "
    for name, section in result["sections"].items():
        yield f"{name:<14}{section['status']:<14}{section['seconds']:>8.1f}   {section.get('error') or ''}"
    for name, section in result["sections"].items():
        figures = section["figures"]
        if figures:
            yield ""
            yield f"-- {name}"
            yield from _TABLES.get(name, _plain)(figures)
    yield ""
    for wrong in result["wrong"]:
        yield f"WRONG  {wrong}"
    yield f"{len(result['wrong'])} wrong, {result['seconds']:.0f} s of {result['budget_s']:.0f} s"


def _plain(figures: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each figure."""
    for name, value in figures.items():
        if not isinstance(value, str):
            yield f"{name:<{_WIDE}}{_text(value)}"
    yield from _others(figures)


def _others(figures: Mapping[str, Any]) -> Iterator[str]:
    """Yield what was not measured, by the reason."""
    reasons: dict[str, list[str]] = {}
    for name, value in figures.items():
        if isinstance(value, str):
            reasons.setdefault(value, []).append(name)
    for reason, names in reasons.items():
        yield f"{reason:<{_WIDE}}{', '.join(names)}"


def _speed(figures: Mapping[str, Any]) -> Iterator[str]:
    """Yield the runs: rates, the efficiency, how much of the ceiling, and what was waited for."""
    columns = ("rows/s", "alone", "eff.", "padding", "TFLOP/s", "ceiling", "alone", *_WAITS)
    yield f"{'':<24}" + "".join(f"{name:>10}" for name in columns)
    for name, found in figures.items():
        if isinstance(found, Mapping):
            cells = [
                _count(found["rows_per_second"]),
                _count(found["model_rows_per_second"]),
                _share(found["efficiency"]),
                _share(found["padding_ratio"]),
                _tera(found.get("run_flops")),
                _share(found.get("run_of_ceiling")),
                _share(found.get("alone_of_ceiling")),
                *(_share(found["stages"][stage]) for stage in _WAITS),
            ]
            yield f"{name:<24}" + "".join(f"{cell:>10}" for cell in cells)
    yield from _others(figures)


def _roofline(figures: Mapping[str, Any]) -> Iterator[str]:
    """Yield the models: what a batch takes at least, and what it takes."""
    yield (
        f"{'':<30}{'GFLOP':>10}{'MB':>9}{'floor ms':>10}{'layers ms':>11}{'took ms':>10}{'gap':>8}"
        f"{'ceiling':>9}{'rows/s':>12}   bound by"
    )
    for name, found in figures.items():
        if isinstance(found, Mapping):
            known = "floor_s" in found
            yield (
                f"{name:<30}{found['flop'] / 1e9:>10,.1f}{found['bytes'] / 1e6:>9,.1f}"
                f"{_ms(found.get('floor_s')):>10}{_ms(found.get('layers_s')):>11}{_ms(found['seconds']):>10}"
                f"{(str(found['times_floor']) if known else '-'):>8}{_share(found.get('of_ceiling')):>9}"
                f"{_count(found['rows_per_second']):>12}   {found.get('bound_by', '-')}"
            )
    yield from _others(figures)


def _same_rows(figures: Mapping[str, Any]) -> Iterator[str]:
    """Yield the comparisons."""
    yield f"{'':<{_WIDE}}{'rows':>7}{'worst':>11}{'median':>11}{'band':>9}   nearest to themselves"
    for name, found in figures.items():
        if isinstance(found, Mapping):
            yield (
                f"{name:<{_WIDE}}{found['rows']:>7}{found['worst']:>11.2g}{found['median']:>11.2g}"
                f"{found['band']:>9.2g}   {found['own']} of {found['looked_at']}"
            )
    yield from _others(figures)


_TABLES = {"speed": _speed, "roofline": _roofline, "same rows": _same_rows}


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "   ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "; ".join(map(_text, value)) or "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value * 100:.1f} %"


def _tera(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e12:.2f}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value * 1e3:,.3f}"
