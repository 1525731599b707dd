"""Devices that fail, and devices that compute wrongly: the others do their units, and no row is lost."""

from __future__ import annotations

import importlib.util
import inspect
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pynvml
import pytest

from tests.conftest import Run, doubling_job, write_shards

TWO = {"devices": ["simulated:0", "simulated:1"]}

PACE = """
import pathlib, time
FLAG = pathlib.Path(__file__).with_name("flag")

def pace(rows):
    if not FLAG.exists():
        time.sleep(0.2)
    return {"x": rows["x"]}
"""


def check(out: Path, num_rows: int) -> None:
    """See that every row is there, once and right."""
    rows = ds.dataset(out, format="parquet").to_table().sort_by("id")
    assert rows["id"].to_pylist() == list(range(num_rows))
    assert rows["y"].to_pylist() == np.arange(num_rows, dtype=np.float32).tolist()
    assert rows["_error"].null_count == num_rows


def until(job: Path, text: str) -> tuple[int, str]:
    """Run a job whose steps take their time until it says a text. Returns its exit code, and all that it says."""
    command = [sys.executable, "-m", "batchinfer", "run", str(job)]
    said = ""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            said += line
            if text in line:
                (job.parent / "flag").touch()
    return process.returncode, said


def test_a_device_that_fails_is_left_alone(tmp_path: Path) -> None:
    """What makes a device suspect is forgiven once; then others do its units, and no row is blamed for it."""
    write_shards(tmp_path / "in", [600])
    (tmp_path / "pace.py").write_text(PACE)
    step = {"function": "pace:pace", "columns": ["x"], "output": {"x": "float32"}}
    job = doubling_job(
        tmp_path,
        preprocess=[{"python": step}],
        model={"device_faults": {"simulated:1": {"fault": "ECCUncorrectable", "after": 1}}},
        compute={**TWO, "loaders": "threads", "readers": 1},
        checkpoint={"unit_rows": 5},
        batching={"size": 5},
    )
    code, said = until(job, "device_quarantined")
    assert code == 0, said
    assert said.count("CUDA error: ECCUncorrectable") == 2
    assert "simulated:1 failed 2 times (ECCUncorrectable): worker 1 ended" in said
    check(tmp_path / "out", 600)


def test_no_device_is_left(tmp_path: Path, batchinfer: Run) -> None:
    """A run without a usable device ends with 71, keeps what is committed, and goes on later."""
    write_shards(tmp_path / "in", [250])
    faults = {"simulated:0": {"fault": "NvlinkUncorrectable", "after": 3}}
    job = doubling_job(
        tmp_path,
        model={"device_faults": faults},
        compute={"devices": ["simulated:0"]},
        checkpoint={"unit_rows": 20},
    )
    done = batchinfer("run", str(job))
    assert done.returncode == 71
    assert "simulated:0 failed 2 times (NvlinkUncorrectable)" in done.stderr
    assert "no other device is left" in done.stderr
    assert len(list((tmp_path / "out").glob("part-*"))) == 6
    again = batchinfer("run", str(job), "--set", "model.device_faults={}", "--set", "compute.devices=cpu")
    assert again.returncode == 0, again.stderr
    check(tmp_path / "out", 250)
    wrong = batchinfer("run", str(job), "--set", "model={backend: onnx, path: no.onnx}")
    assert wrong.returncode == 78


def test_a_device_that_computes_wrongly_gets_no_work(tmp_path: Path, batchinfer: Run) -> None:
    """A golden batch is made on a device that is trusted; one that gives other results is named and refused."""
    write_shards(tmp_path / "in", [250])
    model = {"device_faults": {"simulated:1": {"fault": "wrong"}}}
    job = doubling_job(tmp_path, model=model, compute=TWO)
    golden = str(tmp_path / "canary.parquet")
    made = batchinfer("preview", str(job), "-n", "8", "--save-canary", golden)
    assert made.returncode == 0, made.stderr
    assert not (tmp_path / "out").exists()
    canary = ("--set", "model.canary={path: canary.parquet}")
    more = ("--set", "checkpoint.unit_rows=5", "--set", "model.seconds_per_batch=0.05")
    done = batchinfer("run", str(job), *canary, *more)
    assert done.returncode == 0, done.stderr
    assert "simulated:1 computes wrongly" in done.stderr
    assert "'y' differs in 8 of 8 rows, by 1 at most" in done.stderr
    check(tmp_path / "out", 250)
    bad = batchinfer("run", str(job), "--set", "model.canary={path: in/shard-0.parquet}", "--force")
    assert bad.returncode == 78
    assert "has no column 'in.x'" in bad.stderr


NVML = """
import time

from types import SimpleNamespace

class NVMLError(Exception):
    pass

class NVMLError_NotSupported(NVMLError):
    pass

NVML_TEMPERATURE_GPU = 0
NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
NVML_VOLATILE_ECC = 0
nvmlEventTypeXidCriticalError = 8
COUNTED = []
XIDS = [(0, 43), (1, 79)]

def nvmlInit():
    pass

def nvmlDeviceGetCount():
    return 4

def nvmlDeviceGetHandleByIndex(index):
    return index

def nvmlDeviceGetHandleByUUID(uuid):
    return int(uuid[-1])

def nvmlDeviceGetUUID(handle):
    return f"GPU-{handle}"

def nvmlDeviceGetName(handle):
    return "NVIDIA L4"

def nvmlDeviceGetMemoryInfo(handle, version=None):
    return SimpleNamespace(total=2**34, used=0)

def nvmlDeviceGetMigMode(device):
    raise NVMLError_NotSupported

def nvmlDeviceGetTotalEccErrors(handle, errorType, counterType):
    assert (errorType, counterType) == (1, 0)
    COUNTED.append(handle)
    return 5 if handle == 2 and COUNTED.count(2) > 1 else 3

def nvmlDeviceGetCurrentClocksThrottleReasons(handle):
    return 0x40 if handle == 0 else 0x4

def nvmlEventSetCreate():
    return "set"

def nvmlDeviceRegisterEvents(handle, eventTypes, eventSet):
    assert (eventTypes, eventSet) == (8, "set")

def nvmlEventSetWait_v2(eventSet, timeoutms):
    if not XIDS:
        time.sleep(timeoutms / 1000)
        raise NVMLError
    handle, xid = XIDS.pop(0)
    return SimpleNamespace(device=handle, eventType=8, eventData=xid)

def nvmlEventSetFree(eventSet):
    pass
"""


def test_what_the_driver_reports_counts(
    tmp_path: Path, batchinfer: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fatal Xid, or more uncorrected ECC errors, and a device gets no work any more; a lesser Xid and lower
    clocks are told."""
    (tmp_path / "nvml").mkdir()
    (tmp_path / "nvml" / "pynvml.py").write_text(NVML)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'nvml'}:{os.environ.get('PYTHONPATH', '')}")
    write_shards(tmp_path / "in", [250])
    devices = [f"simulated:{index}" for index in range(3)]
    job = doubling_job(
        tmp_path,
        model={"seconds_per_batch": 0.05},
        compute={"devices": devices},
        checkpoint={"unit_rows": 10},
    )
    done = batchinfer("run", str(job))
    assert done.returncode == 0, done.stderr
    told = [line.partition("message=")[2] for line in done.stderr.splitlines() if "warning=device" in line]
    assert any(
        "simulated:1 reports Xid 79, GPU has fallen off the bus; it is left alone" in line for line in told
    )
    assert any("simulated:2 counts 2 more uncorrected ECC errors; it is left alone" in line for line in told)
    assert any("simulated:0 reports Xid 43" in line for line in told)
    assert any(
        "simulated:0 is slower than it could be: its hardware slows it down because" in line for line in told
    )
    assert len(told) == 4
    check(tmp_path / "out", 250)


def test_the_stand_in_is_called_as_nvml_is(tmp_path: Path) -> None:
    """Each function of the module above takes what NVML's own binding takes."""
    path = tmp_path / "stand_in.py"
    path.write_text(NVML)
    spec = importlib.util.spec_from_file_location("stand_in", path)
    assert spec is not None
    assert spec.loader is not None
    module: Any = types.ModuleType("stand_in")
    spec.loader.exec_module(module)
    names = [name for name in vars(module) if name.startswith("nvml") and callable(vars(module)[name])]
    assert len(names) == 14
    for name in names:
        real = inspect.signature(getattr(pynvml, name)).parameters
        assert list(inspect.signature(vars(module)[name]).parameters) == list(real), name
