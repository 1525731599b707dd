"""What a worker's libraries read from its environment: how many threads they start, how they allocate."""

from __future__ import annotations

import os

import pyarrow as pa

_ALLOCATOR = {
    "ARROW_DEFAULT_MEMORY_POOL": "jemalloc",
    "JE_ARROW_MALLOC_CONF": "dirty_decay_ms:100,muzzy_decay_ms:0",
}
"""How Arrow allocates in workers: what is freed goes back to the kernel after a tenth of a second. Its usual
allocator keeps it, a third of a worker's memory, and is no faster."""


def worker_environment(threads: int) -> dict[str, str]:
    """Return the variables of a worker whose batches take so many threads."""
    allocator = _ALLOCATOR if "jemalloc" in pa.supported_memory_backends() else {}
    return {
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "RAYON_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "true",
        **{key: os.environ.get(key, value) for key, value in allocator.items()},
    }
