"""Where the supervisor gets units from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from batchinfer.data import Receipt, Unit
    from batchinfer.runner.messages import Assign


class Work(Protocol):
    """Units to do. No method waits."""

    def take(self) -> Assign | None:
        """Return a unit to do; None where there is none at this moment."""
        ...

    def give_back(self, units: Iterable[Unit]) -> None:
        """Take back what a worker did not finish."""
        ...

    def done(self, receipt: Receipt) -> None:
        """Note a committed unit. Raises BudgetExceeded and the like."""
        ...

    def finished(self) -> bool:
        """Tell whether nothing is left to hand out."""
        ...

    def check(self) -> None:
        """Raise what ended the work from outside."""
        ...
