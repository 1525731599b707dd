"""Make the model and the data of the text-embedding job: MiniLM as ONNX, and 10,000 docstrings."""

from __future__ import annotations

import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import docstrings  # noqa: E402 - beside this folder
import minilm  # noqa: E402

MAX_ROWS = 10_000


def main() -> None:
    """Make what is not there yet."""
    model, data = HERE / "model", HERE / "data"
    if not (model / "model.onnx").exists():
        began = time.perf_counter()
        minilm.export(model)
        print(f"model   {model}/model.onnx ({time.perf_counter() - began:.0f} s)")
    if not (data / "_DONE").exists():
        rows = write_texts(data)
        print(f"data    {rows:,} docstrings in {data}/package=*/")


def write_texts(folder: Path) -> int:
    """Write the texts as Parquet, one hive partition per package."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    left = MAX_ROWS
    for package, texts in docstrings.collect(per_package=2_500).items():
        kept = texts[:left]
        if not kept:
            continue
        left -= len(kept)
        table = pa.table(
            {
                "name": pa.array([name for name, _ in kept], pa.string()),
                "text": pa.array([text for _, text in kept], pa.string()),
            }
        )
        path = folder / f"package={package}" / "docstrings.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, row_group_size=1_000)
    (folder / "_DONE").touch()
    return MAX_ROWS - left


if __name__ == "__main__":
    main()
