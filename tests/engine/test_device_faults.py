"""What a device's error means is told by CUDA's number for it, whoever reports it."""

from __future__ import annotations

from typing import Any

import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as ort

from batchinfer.backends.onnx_session import _run_error
from batchinfer.backends.simulated_faults import AcceleratorError, fail
from batchinfer.device_faults import DEVICE, PROCESS, cuda_code, harm_of
from batchinfer.errors import DataError, DeviceError, OutOfMemory, from_message, to_message
from batchinfer.user_code import device_error

ILLEGAL = (
    "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=h ; file=f.cc ; line=1"
)


def test_the_table() -> None:
    """Thirteen errors end the process, as CUDA's own header says; seven make the device suspect."""
    assert sorted(PROCESS) == [226, 700, 702, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911]
    assert sorted(DEVICE) == [3, 46, 100, 214, 220, 802, 999]
    assert {harm_of(name) for name in PROCESS.values()} == {"process"}
    assert {harm_of(name) for name in DEVICE.values()} == {"device"}
    assert harm_of("CUDA error 12345") == harm_of("") == "process"
    assert harm_of("canary") == "device"


@pytest.mark.parametrize("name", [*PROCESS.values(), *DEVICE.values()])
def test_a_simulated_device_reports_them(name: str) -> None:
    """The fault keeps its name, also over the border of a process."""
    with pytest.raises(DeviceError) as caught:
        fail(name)
    assert not isinstance(caught.value, OutOfMemory)
    again = from_message(to_message(caught.value))
    assert isinstance(again, DeviceError)
    assert again.fault == name


def test_torch_and_others() -> None:
    """Torch's errors have an attribute; those that it has no class for begin in one of three ways."""
    full = device_error(AcceleratorError(2), "no memory")
    assert isinstance(full, OutOfMemory)
    assert device_error(RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), "it failed") is not None
    assert device_error(RuntimeError("a row about a CUDA error"), "it failed") is None
    assert device_error(ValueError("CUDA error: 700"), "it failed") is None
    odd: Any = ValueError("mine")
    odd.error_code = 700
    assert cuda_code(odd) is None


def test_onnxruntime() -> None:
    """Its errors have classes for what it was given; the number stands in the text of the others."""
    shapes: dict[str, Any] = {"x": [1]}
    failed = _run_error(ort.RuntimeException(ILLEGAL), shapes)
    assert isinstance(failed, DeviceError)
    assert failed.fault == "IllegalAddress"
    assert isinstance(_run_error(ort.EPFail("it did"), shapes), DeviceError)
    assert isinstance(_run_error(ort.Fail(ILLEGAL.replace("700", "2")), shapes), OutOfMemory)
    assert isinstance(_run_error(ort.RuntimeException("bad allocation"), shapes), OutOfMemory)
    given = _run_error(ort.InvalidArgument("input CUDA out of memory has another rank"), shapes)
    assert isinstance(given, DataError)
