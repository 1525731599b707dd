"""Make the model and the data of this job: MiniLM as ONNX, and about 10,000 docstrings as Parquet."""

from __future__ import annotations

import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import docstrings  # noqa: E402 - beside this folder
import minilm  # noqa: E402

STDLIB_ROWS = 5_000
TORCH_ROWS = 2_000
OTHER_ROWS = 1_000


def main() -> None:
    """Make what is not there yet."""
    model, data = HERE / "model", HERE / "data"
    began = time.perf_counter()
    if not (model / "model.onnx").exists():
        print("exporting MiniLM to ONNX ...", flush=True)
        minilm.export(model)
        print(f"model   {model}/model.onnx ({time.perf_counter() - began:.0f} s)")
    if not (data / "_DONE").exists():
        print(f"data    {write(data):,} docstrings in {data}/package=*/")


def write(folder: Path) -> int:
    """Write one hive partition per package; return the number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = 0
    limits = {"stdlib": STDLIB_ROWS, "torch": TORCH_ROWS}
    for package, found in docstrings.collect().items():
        kept = docstrings.spread(found, limits.get(package, OTHER_ROWS))
        rows += len(kept)
        table = pa.Table.from_pylist([docstring._asdict() for docstring in kept])
        path = folder / f"package={package}" / "part.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, row_group_size=1_000)
    (folder / "_DONE").touch()
    return rows


if __name__ == "__main__":
    main()
