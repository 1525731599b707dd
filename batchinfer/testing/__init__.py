"""For tests and benchmarks, ours and yours: exams for components, and devices that only pretend."""

from __future__ import annotations

from batchinfer.testing.exams import check_backend
from batchinfer.testing.lazy_device import LazyDevice
from batchinfer.testing.virtual_clock import VirtualClock

__all__ = ["LazyDevice", "VirtualClock", "check_backend"]
