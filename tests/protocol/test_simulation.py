"""Thousands of schedules of the real protocol on a simulated store, and mistakes that they must find."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from batchinfer.engine import commit, publish
from batchinfer.runner import deal, finish, output
from tests.protocol.simulation import SimStore, simulate

SCHEDULES = 20_000
BATCHES = 8


@pytest.mark.parametrize("batch", range(BATCHES))
def test_every_schedule_leaves_the_same_output(batch: int) -> None:
    """Whoever dies, sleeps, lies or loses a reply, and whenever: the output is that of a calm run.

    A failing seed is replayed with `python -m tests.protocol.simulation --schedules 1 --seed N --trace`.
    """
    size = SCHEDULES // BATCHES
    wrong = {
        seed: outcome.problems
        for seed in range(batch * size, (batch + 1) * size)
        if (outcome := simulate(seed)).problems
    }
    assert wrong == {}


def test_a_schedule_is_replayable() -> None:
    """The same seed gives the same deaths and the same number of writes."""
    first, second = simulate(17), simulate(17)
    assert (first.deaths, first.operations) == (second.deaths, second.operations)


def overwrite(patch: pytest.MonkeyPatch) -> None:
    """A part is looked for, and then written without a condition."""

    def create(self: SimStore, uri: str, data: Any, *, stamp: Mapping[str, str] | None = None) -> None:
        self.put(uri, data)
        self._world.objects[uri].stamp = dict(stamp or {})

    patch.setattr(SimStore, "create", create)


def trust_exists(patch: pytest.MonkeyPatch) -> None:
    """A name that is taken is called somebody else's: nothing is read back."""
    patch.setattr(publish, "_whose", lambda *_, **__: publish.Outcome.SAME)


def count_by_bytes(patch: pytest.MonkeyPatch) -> None:
    """A part with the same bytes is taken for one's own."""
    patch.setattr(commit, "new_attempt", lambda: "me")


def seal_early(patch: pytest.MonkeyPatch) -> None:
    """The manifest is written without waiting for every unit."""
    patch.setattr(finish, "set", lambda *_: frozenset(), raising=False)
    real = deal.StaticDeal.finished

    def finished(self: deal.StaticDeal) -> bool:
        return real(self) or self._num_done > 2

    patch.setattr(deal.StaticDeal, "finished", finished)


def seal_backwards(patch: pytest.MonkeyPatch) -> None:
    """`_SUCCESS` is put without a look at the generation it names."""

    def seal(store: Any, root: str, plan: Any, manifest: bytes, facts: Mapping[str, Any]) -> bool:
        name = f"_batchinfer/{plan.plan8}/manifest.json"
        text = {"format": 1, "generation": plan.generation, "plan": plan.plan8, "manifest": name}
        store.put(f"{root}/_SUCCESS", json.dumps({**text, "manifest_sha256": "", **facts}).encode())
        return True

    patch.setattr(finish, "seal", seal)


def register_what_is_not_there(patch: pytest.MonkeyPatch) -> None:
    """The generation is registered before its plan is stored."""

    def store_plan(store: Any, root: str, plan: Any) -> Any:
        base = f"{root}/_batchinfer"
        register = output.control(plan=plan.plan8, fingerprint=plan.fingerprint)
        first = publish.create_once(store, f"{base}/GEN/{plan.generation:04d}.json", register)
        publish.create_once(store, f"{base}/{plan.plan8}/plan.json", plan.to_json())
        return plan if first else output.read_plan(store, root, plan.generation)

    from tests.protocol import actor

    patch.setattr(actor, "store_plan", store_plan)


@pytest.mark.parametrize(
    "mistake",
    [
        overwrite,
        trust_exists,
        count_by_bytes,
        seal_early,
        seal_backwards,
        register_what_is_not_there,
    ],
)
def test_a_mistake_is_found(mistake: Callable[[pytest.MonkeyPatch], None]) -> None:
    """Each of these plausible mistakes breaks an invariant, or the run, within a few hundred schedules."""
    for seed in range(600):
        with pytest.MonkeyPatch.context() as patch:
            mistake(patch)
            try:
                if simulate(seed).problems:
                    return
            except Exception:  # noqa: BLE001 - a run that breaks down has found it as well
                return
    pytest.fail(f"{mistake.__name__} was not found")
