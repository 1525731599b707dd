"""What the rest of the house asks of a store, and the two answers that are no accident."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from batchinfer.errors import AccessError, BatchinferError, DataError, LocalDiskError, UnavailableError

if TYPE_CHECKING:
    from batchinfer.clock import Clock
    from batchinfer.data import Entry


class AlreadyExists(Exception):
    """`create` found the name taken: by somebody else, or by our own write whose answer was lost."""


class ObjectMissing(DataError):
    """An object that was there, or that should be, is not."""


class Store(Protocol):
    """One bucket or file system. Safe to use from several threads at once.

    `conditional` says whether `create` is atomic: of two writers of one name exactly one succeeds.
    `parallel` requests at once are worth making. For `patience_s` seconds an unclear write is tried
    again before it is given up, on its `clock`.
    Every method raises AccessError (no permission), UnavailableError (network, throttling beyond
    the retry budget) or LocalDiskError (full or broken disk) besides what it names.
    """

    conditional: bool
    parallel: int
    patience_s: float
    clock: Clock

    def entries(self, prefix: str) -> list[Entry]:
        """Return everything below a folder, sorted by URI; nothing where the folder is missing."""
        ...

    def glob(self, pattern: str) -> list[Entry]:
        """Return the files that a file name, a folder or a glob stands for, sorted by URI.

        Names that begin with "_" or "." below the fixed part of the pattern are left out, as
        Spark, pyarrow and Hive do.
        """
        ...

    def open(self, uri: str, *, version: str | None = None) -> Any:
        """Open for random access, as a file that pyarrow reads. With `version`, raises DataError
        where the object is another one now, at the latest when the changed bytes are read."""
        ...

    def read(self, uri: str) -> bytes:
        """Return the whole object. Raises ObjectMissing."""
        ...

    def create(self, uri: str, data: Any, *, stamp: Mapping[str, str] | None = None) -> None:
        """Write a whole object unless the name is taken. Raises AlreadyExists.

        `stamp` is kept with the object where the store can: short texts under lower-case names.
        """
        ...

    def stamp(self, uri: str) -> Mapping[str, str]:
        """Return what an object was stamped with, without reading it; nothing where the store keeps
        no stamps. Raises ObjectMissing."""
        ...

    def put(self, uri: str, data: Any) -> None:
        """Write a whole object, replacing what is there."""
        ...

    def replace(self, uri: str, data: Any, *, version: str) -> None:
        """Replace an object if it still is at this version. Raises AlreadyExists where it is not."""
        ...

    def delete(self, uri: str) -> None:
        """Delete an object; nothing happens where there is none."""
        ...

    def leftovers(self, prefix: str, *, now: float) -> list[Entry]:
        """Return the traces of writes below a folder that will never be finished: their writer is
        dead, or they are older than a day at `now`, in seconds of the store's own clock."""
        ...


def changed(uri: str) -> DataError:
    """Return the error for an input that is no longer the one that was planned."""
    return DataError(
        "the input changed after it was planned",
        where=uri,
        hint="restore the file, or start a new output for the new content",
    )


@contextlib.contextmanager
def os_errors(uri: str) -> Iterator[None]:
    """Turn what the operating system says into our words."""
    try:
        yield
    except BatchinferError:
        raise
    except FileNotFoundError as error:
        raise ObjectMissing("there is no such file", where=uri) from error
    except PermissionError as error:
        raise AccessError(
            "permission denied", where=uri, hint="check the owner and mode of the file and its folder"
        ) from error
    except IsADirectoryError as error:
        raise DataError("is a folder, not a file", where=uri) from error
    except OSError as error:
        if error.errno in {errno.EMFILE, errno.ENFILE}:
            raise BatchinferError(
                "this process may not open more files", where=uri, hint="raise its limit: ulimit -n 4096"
            ) from error
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG}:
            raise LocalDiskError(
                f"the disk refused: {error.strerror}", where=uri, hint="free some space and run again"
            ) from error
        raise UnavailableError(f"could not be reached: {error.strerror or error}", where=uri) from error
