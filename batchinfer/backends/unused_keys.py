"""Keys that every backend has but not every one uses: set where they do nothing, they are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def not_for(backend: str) -> Callable[[Any], Any]:
    """Return a validator that refuses any value but the one that says nothing."""

    def refuse(value: Any) -> Any:
        if value not in {None, "fp32"}:
            raise ValueError(f"is not for `backend: {backend}`, which does nothing with it")
        return value

    return refuse
