"""Raw bytes of one length as tensors, in and out, and the warning where they are kept as lists."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from batchinfer import tensors
from tests.conftest import Run, doubling_job

SHAPE = (3, 4, 5)


def job_of(folder: Path, column: pa.Array, dtype: str, **columns: str) -> Path:
    """Write a column of images, and a job that doubles them."""
    (folder / "in").mkdir(parents=True)
    pq.write_table(pa.table({"pixels": column}), folder / "in" / "a.parquet")
    spec = f"{dtype}[?, {', '.join(map(str, SHAPE))}]"
    (folder / "models.py").write_text(
        "class Double:\n    def __call__(self, tensors):\n        return {'y': tensors['pixels'] * 2}\n"
    )
    model = {"backend": "python", "entry": "models:Double"}
    job = doubling_job(folder, output={"carry": [], "columns": columns})
    document = json.loads(job.read_text())
    document["model"] = {**model, "signature": {"inputs": {"pixels": spec}, "outputs": {"y": spec}}}
    job.write_text(json.dumps(document))
    return job


@pytest.mark.parametrize("dtype", ["uint8", "float32", "int16"])
def test_in_and_out(tmp_path: Path, batchinfer: Run, dtype: str) -> None:
    """Images that were stored as their bytes come to the model as tensors of its shape and dtype, and go
    out as bytes again where the job says so."""
    values = np.arange(7 * 60).reshape(7, *SHAPE).astype(dtype)
    width = 60 * values.dtype.itemsize
    raw = pa.array([row.tobytes() for row in values], pa.binary(width))
    job = job_of(tmp_path, raw, dtype, y=f"fixed_size_binary[{width}]")
    done = batchinfer("run", str(job))
    assert done.returncode == 0, done.stderr
    assert "slower to read" not in done.stderr
    out = ds.dataset(tmp_path / "out", format="parquet").to_table()["y"]
    assert out.type == pa.binary(width)
    assert b"".join(out.to_pylist()) == (values * 2).astype(dtype).tobytes()


def test_lists_of_bytes_are_warned_of(tmp_path: Path, batchinfer: Run) -> None:
    """They work, and the user is told what would be faster, before a run and in it."""
    values = np.arange(7 * 60, dtype=np.uint8)
    nested = pa.array(values.reshape(7, *SHAPE).tolist(), tensors.parse_type("uint8[3, 4, 5]"))
    job = job_of(tmp_path, nested, "uint8", y="uint8[3, 4, 5]")
    wanted = [
        f"{where} column {name!r} is uint8[3, 4, 5]: about 40 times slower to read than the same bytes as "
        "fixed_size_binary[60]"
        for where, name in (("input", "pixels"), ("output", "y"))
    ]
    for verb in ("validate", "run"):
        done = batchinfer(verb, str(job))
        assert done.returncode == 0, done.stderr
        said = done.stdout + done.stderr
        assert all(said.count(text) == 1 for text in wanted), said


def test_bytes_that_are_no_row(tmp_path: Path, batchinfer: Run) -> None:
    """Bytes of another length than the model's rows are refused before the first row."""
    job = job_of(tmp_path, pa.array([b"abc"], pa.binary(3)), "uint8")
    done = batchinfer("validate", str(job))
    assert done.returncode == 78
    assert "input `pixels: uint8[?, 3, 4, 5]` cannot take column `pixels: uint8[?, 3]`" in done.stderr


def test_nothing_is_copied() -> None:
    """Both ways, an array and a column share their memory, also in the middle of a larger column."""
    column = pa.array([bytes([at] * 4) for at in range(9)], pa.binary(4)).slice(2, 5)
    view = tensors.to_numpy(column)
    assert view.tolist() == [[at] * 4 for at in range(2, 7)]
    assert view.ctypes.data == column.buffers()[1].address + 2 * 4
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    back = tensors.to_arrow(values, pa.binary(16))
    assert back.buffers()[1].address == values.ctypes.data
    with pytest.raises(ValueError, match="no fixed_size_binary"):
        tensors.to_arrow(values, pa.binary(15))


def test_the_type_as_text() -> None:
    """It is written as Arrow prints it."""
    assert tensors.parse_type("fixed_size_binary[150528]") == pa.binary(150528)
    assert tensors.format_type(pa.binary(16)) == "fixed_size_binary[16]"
