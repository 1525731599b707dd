"""For tests of components, ours and yours: exams that a component must pass, and a device that is never
early."""

from batchinfer.testing.exams import check_backend
from batchinfer.testing.lazy_device import LazyDevice

__all__ = ["LazyDevice", "check_backend"]
