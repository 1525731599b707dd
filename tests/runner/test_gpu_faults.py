"""The faults of a real GPU: an access out of range, memory that runs out, a kill while kernels run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import torch

from batchinfer.errors import OutOfMemory
from batchinfer.user_code import device_error
from tests.conftest import Run, doubling_job, environment, write_shards

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

MODELS = """
import torch

class OutOfRange(torch.nn.Module):
    # Row 45 looks far beyond the table: a device-side assertion, after which the context is lost.
    def forward(self, x):
        table = torch.arange(1000, dtype=torch.float32, device=x.device)
        at = (2 * x).long()
        return table[torch.where(at == 45, 10**9, at)]

class Greedy(torch.nn.Module):
    # Rows beyond eight need more than there is.
    def forward(self, x):
        free, _ = torch.cuda.mem_get_info(x.device)
        room = torch.empty(int(free * len(x) / 8.5), dtype=torch.uint8, device=x.device)
        return 2 * x + 0 * room[:1]

class Slow(torch.nn.Module):
    def forward(self, x):
        torch.cuda._sleep(200_000_000)
        return 2 * x

def out_of_range():
    return OutOfRange()

def greedy():
    return Greedy()

def slow():
    return Slow()
"""


def job_of(folder: Path, entry: str, **more: Any) -> Path:
    """Write a job whose model doubles, and does something bad."""
    write_shards(folder / "in", [250])
    (folder / "models.py").write_text(MODELS)
    job = doubling_job(folder, compute={"devices": ["cuda:0"]}, errors={"max": "100%"}, **more)
    model = {
        "backend": "torch",
        "entry": f"models:{entry}",
        "signature": {"inputs": {"x": "float32[?]"}, "outputs": {"y": "float32[?]"}},
    }
    text = job.read_text().replace(
        '{"backend": "simulated", "seconds_per_batch": 0}', str(model).replace("'", '"')
    )
    job.write_text(text)
    return job


def rows_of(folder: Path) -> pa.Table:
    """Return the output, in source order."""
    return ds.dataset(folder / "out", format="parquet").to_table().sort_by("id")


def test_a_row_that_ends_the_context(tmp_path: Path, batchinfer: Run) -> None:
    """It is found, and left out with the code `device`; its neighbours are as they should be."""
    job = job_of(tmp_path, "out_of_range")
    done = batchinfer("run", str(job), timeout=300)
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path).to_pylist()
    assert {row["id"]: row["_error"]["code"] for row in rows if row["_error"]} == {45: "device"}
    assert all(row["y"] == row["id"] for row in rows if row["id"] != 45)


def test_memory_runs_out(tmp_path: Path, batchinfer: Run) -> None:
    """Batches go on in pieces that fit, and no row fails."""
    job = job_of(tmp_path, "greedy")
    done = batchinfer("run", str(job), timeout=300)
    assert done.returncode == 0, done.stderr
    assert "32 rows do not fit" in done.stderr
    rows = rows_of(tmp_path)
    assert rows["_error"].null_count == 250
    assert rows["y"].to_pylist() == list(range(250))


def test_a_kill_while_kernels_run(tmp_path: Path) -> None:
    """Another worker does the units again; the output is the same."""
    job = job_of(tmp_path, "slow")
    command = [sys.executable, "-m", "batchinfer", "run", str(job)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if "event=worker_ready" in line and "worker_died" not in said:
                time.sleep(0.3)
                os.kill(int(line.rpartition("pid=")[2]), signal.SIGKILL)
    assert process.returncode == 0, said
    assert said.count("event=worker_ready") == 2
    assert rows_of(tmp_path)["y"].to_pylist() == list(range(250))


def test_the_numbers_of_real_errors() -> None:
    """Torch's own errors are told by their number."""
    with pytest.raises(torch.OutOfMemoryError) as full:
        torch.empty(2**50, dtype=torch.uint8, device="cuda")
    assert isinstance(device_error(full.value, "full"), OutOfMemory)
    code = (
        "import torch\n"
        "from batchinfer.user_code import device_error\n"
        "x = torch.zeros(4, device='cuda')\n"
        "try:\n"
        "    x[torch.full((4,), 10**9, device='cuda')]\n"
        "    torch.cuda.synchronize()\n"
        "except RuntimeError as error:\n"
        "    print(device_error(error, 'failed').fault)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.strip() in {"Assert", "IllegalAddress"}, done.stderr
