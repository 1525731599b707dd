"""What libraries in a worker read from its environment when they are imported."""

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
    """Return the variables of a worker with so many threads; those of the allocator only where the user has
    not set them."""
    count = str(threads)
    allocator = _ALLOCATOR if "jemalloc" in pa.supported_memory_backends() else {}
    return {
        "OMP_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "RAYON_NUM_THREADS": count,
        "TOKENIZERS_PARALLELISM": "true",
        **{key: os.environ.get(key, value) for key, value in allocator.items()},
    }
