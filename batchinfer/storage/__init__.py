"""URLs to objects: list, open, create (fails if it exists), put, delete, on files and object stores."""

from __future__ import annotations

from batchinfer.storage.door import AlreadyExists, ObjectMissing, Store
from batchinfer.storage.globs import split_glob
from batchinfer.storage.opening import open_store

__all__ = ["AlreadyExists", "ObjectMissing", "Store", "open_store", "split_glob"]
