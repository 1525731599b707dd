"""Memory of exactly the size asked for, which the kernel takes back at once when nobody refers to it."""

from __future__ import annotations

import contextlib
import mmap
from typing import Any

import numpy as np


def map_memory(num_bytes: int) -> np.ndarray[Any, Any]:
    """Map zeros: bytes, uint8 of shape (num_bytes,), touched by this thread, so that they lie next to it.

    Not in /dev/shm, which is small in containers. Device DMA may read and write it: a forked child does
    not get it, and cannot make it move.
    """
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # A kernel may have no huge pages.
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    memory.madvise(mmap.MADV_DONTFORK)
    array = np.frombuffer(memory, np.uint8)
    array.fill(0)
    return array
