"""The preprocessing steps, with care for rows that a worker died on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from batchinfer.data import Chunk
from batchinfer.engine.blackbox import Entry
from batchinfer.engine.steps import StepFailure, Stepped, merged

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchinfer.engine.care import Care


class CarefulSteps:
    """Leaves out the rows that kill, and tries the suspects alone."""

    def __init__(self, steps: Callable[[Chunk], Stepped], care: Care) -> None:
        self._steps = steps
        self._care = care

    def __call__(self, chunk: Chunk) -> Stepped:
        """Return what is left of a chunk."""
        poison = self._care.poison(chunk.unit.index, ("preprocess",))
        killers = [at for at, row in enumerate(chunk.numbers.tolist()) if row in poison] if poison else []
        if not killers:
            return self._carefully(chunk)
        keep = np.setdiff1d(np.arange(len(chunk.numbers)), killers)
        rest = self._carefully(Chunk(chunk.unit, chunk.rows.take(keep), chunk.numbers[keep]))
        failed = {int(keep[at]): failure for at, failure in rest.failed.items()}
        for at in killers:
            one = poison[int(chunk.numbers[at])]
            failed[at] = StepFailure(one.stage, one.code, one.message, one.attempts)
        return Stepped(rest.rows, keep[rest.good], failed)

    def _carefully(self, chunk: Chunk) -> Stepped:
        unit, num_rows = chunk.unit.index, len(chunk.numbers)
        key = int(chunk.numbers[0]) if num_rows else 0
        pieces = []
        for start, stop, alone in self._care.cuts("preprocess", unit, key, num_rows) or [(0, 0, False)]:
            row = int(chunk.numbers[start]) if alone and stop - start == 1 else -1
            part = Chunk(chunk.unit, chunk.rows.slice(start, stop - start), chunk.numbers[start:stop])
            with self._care.holding(Entry("preprocess", unit, key, start, stop, row), alone=alone):
                pieces.append((start, self._steps(part)))
        return pieces[0][1] if len(pieces) == 1 else merged(pieces, num_rows)
