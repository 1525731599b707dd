"""Code of the job's own, named `module:name`: imported when a worker loads it, its errors told as its own."""

from __future__ import annotations

import importlib
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from batchinfer.errors import BatchinferError, DataError, JobFileError

_OURS = str(Path(__file__).parents[1])
_NOT_THEIRS = (_OURS, sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "<frozen")


def load_entry(entry: str) -> Callable[..., Any]:
    """Import `module:name`. Raises JobFileError where it is not there, not callable, or fails to import."""
    module, _, name = entry.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise JobFileError(
            f"model.entry: {entry} needs a module {error.name!r}, which is not there",
            hint="modules are looked for beside the job file and among the installed packages",
        ) from error
    except AttributeError as error:
        raise JobFileError(f"model.entry: {module} has no {name!r}") from error
    # Whatever a user's module does when it is imported.
    except Exception as error:
        raise JobFileError(
            f"model.entry: importing {module} failed: {told(error)}", where=place(error)
        ) from error
    if not callable(found):
        raise JobFileError(f"model.entry: {entry} is no class or function, but {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def create(entry: str, args: Mapping[str, Any]) -> Any:
    """Import `module:name` and call it with keyword arguments. Raises JobFileError."""
    factory = load_entry(entry)
    try:
        return factory(**args)
    except BatchinferError:
        raise
    except Exception as error:
        raise JobFileError(f"model.entry: {entry} failed: {told(error)}", where=place(error)) from error


@contextmanager
def users_code(what: str) -> Iterator[None]:
    """Turn any error of a user's code into a DataError with its class, message, file and line."""
    try:
        yield
    except BatchinferError:
        raise
    except Exception as error:
        raise DataError(f"{what} failed: {told(error)}", where=place(error)) from error


def told(error: BaseException) -> str:
    """Return an error's class and message."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def place(error: BaseException) -> str | None:
    """Return file:line of the deepest frame in the user's own code, else of the deepest frame."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(_NOT_THEIRS)]
    last = (theirs or list(frames))[-1:]
    return f"{last[0].filename}:{last[0].lineno}" if last else None
