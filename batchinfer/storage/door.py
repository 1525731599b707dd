"""What the rest of the house asks of a store, and the two answers that are no accident."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from batchinfer.errors import AccessError, BatchinferError, DataError, LocalDiskError, UnavailableError

if TYPE_CHECKING:
    from batchinfer.data import Entry


class AlreadyExists(Exception):
    """`create` found the name taken: by somebody else, or by our own write whose answer was lost."""


class ObjectMissing(DataError):
    """An object that was there, or that should be, is not."""


class Store(Protocol):
    """One bucket or file system. Safe to use from several threads at once.

    `conditional` says whether `create` is atomic: of two writers of one name exactly one succeeds.
    Every method raises AccessError (no permission), UnavailableError (network, throttling beyond
    the retry budget) or LocalDiskError (full or broken disk) besides what it names.
    """

    conditional: bool

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

    def create(self, uri: str, data: Any) -> None:
        """Write a whole object unless the name is taken. Raises AlreadyExists."""
        ...

    def put(self, uri: str, data: Any) -> None:
        """Write a whole object, replacing what is there."""
        ...

    def delete(self, uri: str) -> None:
        """Delete an object; nothing happens where there is none."""
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
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG}:
            raise LocalDiskError(
                f"the disk refused: {error.strerror}", where=uri, hint="free some space and run again"
            ) from error
        raise UnavailableError(f"could not be reached: {error.strerror or error}", where=uri) from error
