"""`input.sample`: a share of the rows, chosen by the hash of file and row number, the same every time."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

_FULL = 2**64


def parse_share(text: str) -> float:
    """Parse `1%` or `0.25%` to a fraction in (0, 1]. Raises ValueError."""
    number = text.strip().removesuffix("%")
    try:
        share = float(number) / 100
    except ValueError:
        share = -1.0
    if not text.strip().endswith("%") or not 0 < share <= 1:
        raise ValueError(f"must be a share above 0% and up to 100%, such as 1%, got {text!r}")
    return share


def sampled(key: str, numbers: np.ndarray[Any, Any], share: float) -> np.ndarray[Any, Any]:
    """Choose rows by splitmix64 (Steele, Lea, Flood 2014) of the row number, seeded by the file's key."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    with np.errstate(over="ignore"):
        z = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    limit = min(int(share * _FULL), _FULL - 1)
    chosen: np.ndarray[Any, Any] = z <= np.uint64(limit)
    return chosen
