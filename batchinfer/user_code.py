"""The user's own code: imported when it is needed, and named by its line where it fails."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable
from typing import Any

from batchinfer.errors import ContractError, DataError


def load_entry(entry: str) -> Any:
    """Import `module:name`. Raises ContractError where there is no such module or name in it."""
    module, _, name = entry.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:
        # A module of the user's raises anything while it is imported.
        raise ContractError(
            f"cannot import {entry}: {type(error).__name__}: {error}",
            hint="put the module beside the job file, or install its package",
        ) from error


def call(entry: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the user's function. Raises DataError that names the line where it raised."""
    try:
        return function(*arguments)
    except Exception as error:
        # Not the deepest line: that one may be inside a library that the user's line called.
        frames = traceback.extract_tb(error.__traceback__)
        home = getattr(sys.modules.get(entry.partition(":")[0]), "__file__", None)
        line = next((frame for frame in reversed(frames) if frame.filename == home), frames[-1])
        raise DataError(
            f"{entry} raised {type(error).__name__}: {error}", where=f"{line.filename}:{line.lineno}"
        ) from error
