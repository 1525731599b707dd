"""Between the supervisor, which must never wait, and a deal, which talks to the store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from batchinfer.crash import crash_point
from batchinfer.data import Receipt, Unit
from batchinfer.errors import UnavailableError
from batchinfer.runner.messages import Assign

if TYPE_CHECKING:
    from batchinfer.runner.deal import Deal
    from batchinfer.runner.plan import Plan

_STORE_AWAY_S = 1.0
_LEAVE_S = 5.0


class Keeper:
    """Steps a deal from a thread of its own, so that a slow store never keeps workers waiting."""

    def __init__(self, deal: Deal, *, on_trouble: Callable[[UnavailableError], None]) -> None:
        self._deal = deal
        self._on_trouble = on_trouble
        self._wake = threading.Event()
        self._stop = False
        self.error: BaseException | None = None
        """What ended the keeper, for the thread that runs the run."""
        self._thread = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def start(self) -> None:
        """Show a first sign of life, and go on in the thread."""
        self._step()
        self._thread.start()

    def nudge(self) -> None:
        """Step at once: work runs low."""
        self._wake.set()

    def close(self) -> None:
        """End, and take leave; a store that does not answer is not waited for."""
        self._stop = True
        self._wake.set()
        if not self._thread.is_alive():
            return
        self._thread.join(timeout=_LEAVE_S)

    def _keep(self) -> None:
        try:
            while not self._stop:
                self._wake.wait(self._step())
                self._wake.clear()
            self._deal.leave()
        except BaseException as error:  # noqa: BLE001 - raised where the run is
            self.error = error

    def _step(self) -> float:
        """Step once. A store that is away for a while only makes others believe that we are dead."""
        try:
            return self._deal.step()
        except UnavailableError as error:
            self._on_trouble(error)
            return _STORE_AWAY_S


class DealtWork:
    """A deal as the supervisor sees it."""

    def __init__(
        self,
        plan: Plan,
        deal: Deal,
        keeper: Keeper,
        *,
        spilled: Iterable[int],
        on_done: Callable[[Receipt], None],
        on_check: Callable[[], None],
    ) -> None:
        self._plan = plan
        self._deal = deal
        self._keeper = keeper
        self._spilled = set(spilled)
        self._on_done = on_done
        self._on_check = on_check
        self._is_sound = False

    def take(self) -> Assign | None:
        """Return a unit; where there is none, have the keeper look for more."""
        index = self._deal.take()
        if index is None:
            self._keeper.nudge()
            return None
        unit = self._plan.unit(index)
        return Assign(unit=unit, spilled=index in self._spilled, is_sound=self._is_sound)

    def give_back(self, units: Iterable[Unit]) -> None:
        """Take back units; some of their batches may have been put aside."""
        indexes = [unit.index for unit in units]
        self._spilled.update(indexes)
        self._deal.give_back(indexes)

    def done(self, receipt: Receipt) -> None:
        """Count a committed unit."""
        self._deal.done(receipt.unit)
        self._is_sound |= receipt.rows_ok > 0
        crash_point("count.after")
        self._on_done(receipt)

    def finished(self) -> bool:
        """Tell whether nothing is left to hand out."""
        return self._deal.finished()

    def check(self) -> None:
        """Raise what ended the keeper, or what else there is."""
        if self._keeper.error is not None:
            raise self._keeper.error
        self._on_check()
