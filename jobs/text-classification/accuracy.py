"""Compare this job's output with the truth: `python jobs/text-classification/accuracy.py`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow.dataset as ds
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent


def main() -> None:
    """Print how many docstrings of each package got which label."""
    rows = ds.dataset(HERE / "output", format="parquet").to_table(columns=["package", "label"])
    pairs = Counter(zip(rows["package"].to_pylist(), rows["label"].to_pylist(), strict=True))
    packages = sorted({package for package, _ in pairs})
    right = sum(count for (package, label), count in pairs.items() if package == label)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("docstrings of")
    for package in packages:
        table.add_column(f"said {package}", justify="right")
    for package in packages:
        table.add_row(package, *(str(pairs[package, label]) for label in packages))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"\n[bold]{right / len(rows):.1%}[/bold] of {len(rows):,} are right; guessing gives 25%.")


if __name__ == "__main__":
    main()
