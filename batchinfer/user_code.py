"""The user's own code: imported when it is needed, and named by its line where it fails."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable
from typing import Any

from batchinfer.errors import ContractError, DataError


def load_entry(entry: str) -> Any:
    """Import `module:name`. Raises ContractError where there is no such module or name in it."""
    module, _, name = entry.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ContractError(
            f"cannot import {entry}: {error}",
            hint="put the module beside the job file, or install its package",
        ) from error


def call(entry: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the user's function. Raises DataError that names the line where it raised."""
    try:
        return function(*arguments)
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1]
        raise DataError(
            f"{entry} raised {type(error).__name__}: {error}", where=f"{line.filename}:{line.lineno}"
        ) from error
