"""The few lengths to which ragged rows are padded where a model is prepared for each shape that it meets."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

MAX_SHAPES = 32
"""Shapes for which a model is compiled or captured, at most."""

_SHORTEST = 8
_LONGEST = 4096


def bucket_lengths(longest: int | None, count: int = MAX_SHAPES) -> tuple[int, ...]:
    """Return at most `count` lengths that grow by the same factor, the last of them `longest`.

    By the same factor every length wastes the same share. The rule sees no data, so that a unit's batches
    are the same wherever it is computed. Where the longest row is not known, it is taken to be 4,096.
    """
    last = longest or _LONGEST
    first = min(_SHORTEST, last)
    if count == 1 or first == last:
        return (last,)
    factor = (last / first) ** (1 / (count - 1))
    # Rounded a little down first: the last power may be a hair above what it should be.
    steps = (math.ceil(first * factor**at - 1e-6) for at in range(count))
    return tuple(sorted({min(step, last) for step in steps}))


def rounded(length: int, lengths: Sequence[int]) -> int:
    """Return the smallest of `lengths` (ascending) that holds a row; above the last, that times 2, 4, 8, ...

    Without lengths a row keeps its own, and at least 1.
    """
    if not lengths:
        return max(length, 1)
    if length <= lengths[-1]:
        return lengths[bisect_left(lengths, length)]
    return int(lengths[-1]) << ((length - 1) // lengths[-1]).bit_length()
