"""Write RESULTS.md from the files in results/: `python benchmarks/summary.py`. A test compares them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
HEAD = """# Results

<!-- Written by summary.py from the files in results/; a test compares it. -->

What the programs of this folder measured, on two cores without a GPU. Each figure is a median over
rounds in which all runners took turns, with the smallest and the largest beside it. README.md says how
each was taken.
"""
WORKS = {
    "text": "Text: 1,536 glosses through MiniLM",
    "images": "Images: 4,000 JPEGs, fully decoded, through a small network",
    "table": "Table: 4,000,000 rows of 32 columns through a small network",
    "device25": "A device of 25,600 rows/s",
    "device51": "A device of 51,200 rows/s",
}
LIMITS = {
    "compute": "the bare model on batches in memory",
    "sum": "the CPU time of all stages, each alone, over the cores",
    "device": "the device",
}


def main() -> None:
    """Write the file."""
    (HERE / "RESULTS.md").write_text(summary())


def summary() -> str:
    """Return the whole text."""
    parts = [HEAD]
    for work, title in WORKS.items():
        found = result(f"versus_{work}")
        if found is not None:
            parts.append(f"\n## {title}\n\n{versus(found)}")
    for name, title, write in (
        ("simulated_device", "A simulated device, 20 ms a batch", simulated),
        ("tokenize_texts", "Tokenizing on one core", tokenizing),
        ("startup", "Starting", starting),
    ):
        found = result(name)
        # A file from before the works had names has no table.
        if found is not None and (text := write(found)).count("\n") > 2:  # noqa: PLR2004 - the head
            parts.append(f"\n## {title}\n\n{text}")
    return "".join(parts)


def result(name: str) -> dict[str, Any] | None:
    """Read a result file, if it is there."""
    path = HERE / "results" / f"{name}.json"
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return found


def versus(found: dict[str, Any]) -> str:
    """Return the table of a work, the fastest whole run first."""
    limit = found["limit"]
    ours = found["runners"]["batchinfer"]["whole_s"]["median"]
    what = LIMITS[limit["kind"].split()[0]]
    lines = [
        f"Limit: {limit['rows_per_s']:,.0f} rows/s, {what}. {found['rounds']} rounds.\n",
        "| | whole run, s | to batchinfer's | steady rows/s | of the limit | USS, MB | CPU, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for runner, figures in sorted(found["runners"].items(), key=lambda one: one[1]["whole_s"]["median"]):
        whole, share = figures["whole_s"], figures["of_limit"]
        cells = (
            f"**{runner}**" if runner == "batchinfer" else runner,
            f"{whole['median']:.2f} ({min(whole['all']):.2f} to {max(whole['all']):.2f})",
            f"{whole['median'] / ours:.2f}",
            f"{figures['rows_per_s']['median']:,.0f}",
            f"{share['median']:.3f} ({min(share['all']):.3f} to {max(share['all']):.3f})",
            f"{figures['uss_mb']['median']:,.0f}",
            f"{figures['cpu_s']['median']:.1f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def simulated(found: dict[str, Any]) -> str:
    """Return the efficiencies with a simulated device."""
    lines = ["| | efficiency | whole run |", "|---|---|---|"]
    for work, figures in found.items():
        if isinstance(figures, dict) and "efficiency" in figures:
            cells = [f"{share(figures[key])}" for key in ("efficiency", "whole_run")]
            lines.append(f"| {work} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


def share(figures: dict[str, Any]) -> str:
    """Write a median and its spread."""
    return f"{figures['median']:.2%} ({min(figures['all']):.2%} to {max(figures['all']):.2%})"


def tokenizing(found: dict[str, Any]) -> str:
    """Return the speeds of tokenizing."""
    lines = ["| | tokens/s | to the library |", "|---|---|---|"]
    for name in ("library", "cold", "warm"):
        figures = found[name]
        lines.append(f"| {name} | {figures['tokens_per_second']:,} | {figures['ratio']:.2f} |")
    return "\n".join(lines) + "\n"


def starting(found: dict[str, Any]) -> str:
    """Return what starting costs."""
    lines = ["| | seconds | CPU, s |", "|---|---|---|"]
    for name, figures in found.items():
        if isinstance(figures, dict) and "cpu_s" in figures:
            cells = [f"{figures[key]['median']:.2f}" for key in ("seconds", "cpu_s")]
            lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
