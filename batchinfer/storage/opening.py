"""Which store serves a URL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from batchinfer.storage.door import Store

_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*)://")
_OBJECT_SCHEMES = {"s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "memory"}


def open_store(url: str, options: Mapping[str, Any]) -> Store:
    """Return a store for every URL of this scheme and bucket. Raises JobFileError for a URL that
    nothing serves or for options that its client does not know. Contacts nobody yet."""
    found = _SCHEME.match(url)
    scheme = found.group(1).lower() if found else "file"
    # The clients cost up to 0.1 s to import: only who names a store pays.
    if scheme == "file":
        from batchinfer.storage.posix import PosixStore

        return PosixStore()
    if scheme in _OBJECT_SCHEMES:
        from batchinfer.storage.objects import ObjectStore

        return ObjectStore(url, options)
    from batchinfer.storage.other import FsspecStore

    return FsspecStore(url, options)
