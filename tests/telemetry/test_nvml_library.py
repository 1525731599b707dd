"""GPUs through the real binding and a library with the real C signatures, found where the driver's would be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import environment

SOURCE = Path(__file__).with_name("nvml.c")

TELL = """
import dataclasses, json
from batchinfer import hardware
from batchinfer.xids import XidWatch
gpus = hardware.gpus()
watch = XidWatch(gpus)
watch.poll()
xids = [watch.of(gpu.uuid) for gpu in gpus]
watch.close()
print(json.dumps([
    [dataclasses.asdict(gpu), dataclasses.asdict(hardware.sample(gpu)), xid and [xid.count, xid.last]]
    for gpu, xid in zip(gpus, xids)
]))
"""

CHOOSE = """
import json, os, sys
from batchinfer import hardware
found = {}
for visible in sys.argv[1:]:
    os.environ["CUDA_VISIBLE_DEVICES"] = visible
    found[visible] = [gpu.uuid for gpu in hardware.gpus()]
print(json.dumps(found))
"""

RUN = """
import os, sys, time
from batchinfer.config.sections import ObserveOptions
from batchinfer.data import Receipt
from batchinfer.events import RunFinished, RunStarted, UnitCommitted, WorkerReady
from batchinfer.telemetry import make_observers

observers = make_observers(
    ObserveOptions(), job="j", interactive=False, log_format="json", stream=sys.stdout
)
receipt = Receipt(unit=0, parts=(), rows_read=1, rows_ok=1, rows_error=0, rows_filtered=0, won=True)
events = [
    RunStarted(job="j", run="r", units_total=1, units_done=0, rows_total=1, rows_done=0, num_workers=1,
               model="m", output="o", devices=("cuda:0",)),
    WorkerReady(worker=0, device="cuda:0", load_s=1.0, pid=1),
    UnitCommitted(worker=0, receipt=receipt),
    RunFinished(exit_code=0, seconds=1.0, complete=True),
]
devices, tally = observers[:2]
for event in events:
    for observer in observers:
        observer.on_event(event)
    deadline = time.monotonic() + 20
    while event is events[1] and not devices.readings(tally.snapshot()) and "NVML_HANGS" not in os.environ:
        assert time.monotonic() < deadline
for observer in observers:
    observer.close()
"""

Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """Run a program beside the library; return what it printed."""
    compiler = shutil.which("cc")
    if compiler is None:
        if os.environ.get("CI") == "true":
            pytest.fail("there is no C compiler")
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("driver")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, SOURCE], check=True)

    def run(*command: str, **variables: str) -> str:
        settings = {**environment(), "LD_LIBRARY_PATH": str(folder)}
        settings.pop("CUDA_VISIBLE_DEVICES", None)
        done = subprocess.run(
            [sys.executable, *command],
            env={**settings, **variables},
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        assert done.stderr == ""
        return done.stdout

    return run


def test_a_gpu_tells_everything(ask: Ask) -> None:
    """Every figure crosses the border in base units, also by an old driver's name for why clocks are low."""
    ((gpu, sample, xids),) = json.loads(ask("-c", TELL, CUDA_VISIBLE_DEVICES="0"))
    assert gpu == {
        "index": 0,
        "uuid": "GPU-11111111-aaaa",
        "name": "NVIDIA L4",
        "memory_total_bytes": 24 * 2**30,
    }
    assert sample == {
        "utilization_ratio": 0.97,
        "memory_used_bytes": 3 * 2**30,
        "temperature_celsius": 64,
        "power_watts": 70.25,
        "energy_joules": 5_000_000,
        "sm_clock_hertz": 2.04e9,
        "memory_clock_hertz": 6.251e9,
        "throttled_by": ["power_cap", "heat"],
        "ecc_errors": 2,
        "pcie_send_bytes_per_second": 1000 * 1024,
        "pcie_receive_bytes_per_second": 2000 * 1024,
        "num_xids": None,
        "last_xid": None,
    }
    assert xids == [0, None]


def test_visible_devices_are_followed(ask: Ask) -> None:
    """Indices, UUIDs and their beginnings, and the UUIDs of slices, choose as CUDA lets them."""
    chosen = {
        "": [],
        "0": ["GPU-11111111-aaaa"],
        "GPU-1": ["GPU-11111111-aaaa"],
        "1": ["MIG-33333333-cccc"],
        "MIG-44444444-dddd": ["MIG-44444444-dddd"],
        "0,MIG-44444444-dddd": ["MIG-44444444-dddd"],
        "NoDevFiles": [],
    }
    assert json.loads(ask("-c", CHOOSE, *chosen)) == chosen


def test_a_slice_tells_what_is_its_own(ask: Ask) -> None:
    """A slice has its memory, and its GPU's Xids; what only the whole GPU knows is unknown."""
    ((gpu, sample, xids),) = json.loads(ask("-c", TELL, CUDA_VISIBLE_DEVICES="MIG-44444444-dddd"))
    assert (gpu["name"], gpu["memory_total_bytes"]) == ("NVIDIA A100 MIG 1g.10gb", 10 * 2**30)
    assert {name for name, value in sample.items() if value is not None} == {"memory_used_bytes"}
    assert xids == [2, 79]


def test_a_run_logs_its_gpus_and_their_energy(ask: Ask) -> None:
    """Progress lines carry the readings; the end says what the GPUs took since the beginning."""
    records = [json.loads(line) for line in ask("-c", RUN, CUDA_VISIBLE_DEVICES="0").splitlines()]
    progress, end = records[-2:]
    assert (progress["event"], end["event"]) == ("progress", "run_finished")
    (gpu,) = progress["gpus"]
    assert (gpu["gpu"], gpu["uuid"], gpu["throttled_by"]) == (0, "GPU-11111111-aaaa", ["power_cap", "heat"])
    assert (gpu["utilization_ratio"], gpu["num_xids"]) == (0.97, 0)
    assert end["energy_joules"] >= 1.5
    assert end["energy_joules"] % 1.5 == 0


def test_a_driver_that_hangs_holds_nobody_up(ask: Ask) -> None:
    """The run goes on without readings, and its process ends although the call never comes back."""
    told = ask("-c", RUN, CUDA_VISIBLE_DEVICES="0", NVML_HANGS="nvmlDeviceGetUtilizationRates")
    records = [json.loads(line) for line in told.splitlines()]
    assert records[-1]["event"] == "run_finished"
    assert records[-1]["energy_joules"] is None
    assert [record["gpus"] for record in records if record["event"] == "progress"] == [[]]
