"""What a run ran on: versions of what computes, and the machine."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import socket
from pathlib import Path
from typing import Any

from batchinfer import hardware

_PACKAGES = (
    "batchinfer-pipeline",
    "numpy",
    "pyarrow",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "transformers",
    "tokenizers",
    "Pillow",
    "obstore",
    "fsspec",
    "nvidia-ml-py",
)


def versions() -> dict[str, str]:
    """Return the versions of Python, the driver and the packages that may have computed."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    driver = hardware.driver_version()
    if driver is not None:
        found["nvidia driver"] = driver
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def machine() -> dict[str, Any]:
    """Return the machine's name, its processor, the cores that it has, and its memory in bytes."""
    return {
        "host": socket.gethostname(),
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()
