"""The protocol keeps its promises in every order of events, and the checker finds the mistakes that break them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.model.cases import CASES, Case
from tests.model.check import Explorer
from tests.model.invariants import PROMISES, Watch
from tests.model.mutant import Mutant
from tests.model.mutants import MUTANTS
from tests.model.protocol import Protocol
from tests.model.world import Scope, State


def names(items: tuple[Case, ...] | tuple[Mutant, ...]) -> list[str]:
    return [item.name for item in items]


@pytest.mark.parametrize("case", CASES, ids=names(CASES))
def test_the_protocol_keeps_its_promises(case: Case) -> None:
    """Whatever dies, sleeps, loses an answer or comes late: every promise holds in every state."""
    result = Explorer(case.protocol(case.scope)).explore()
    assert (result.broken, result.path) == ("", ())
    assert result.num_states >= case.at_least


def test_the_scopes_are_large() -> None:
    """More than a million states are visited, most of them with faults, some with three workers."""
    assert sum(case.at_least for case in CASES) > 1_000_000
    assert any(case.scope.workers == 3 and case.scope.lost and case.scope.crashes for case in CASES)


@pytest.mark.parametrize("mutant", MUTANTS, ids=names(MUTANTS))
def test_a_mistake_breaks_a_promise(mutant: Mutant) -> None:
    """Each mistake breaks the promise that it names, and the events that are told do lead there."""
    protocol = mutant.protocol(mutant.scope)
    result = Explorer(protocol).explore()
    assert result.broken.startswith(mutant.breaks)
    assert result.path
    before = after = protocol.initial()
    for words in result.path:
        before, after = after, follow(protocol, after, words)
    if mutant.breaks not in {"L1", "I9"}:
        assert Watch(protocol).broken(before, after) == result.broken


def follow(protocol: Protocol, state: State, words: str) -> State:
    (after,) = {then for _, text, then in protocol.successors(state) if text == words}
    return after


@pytest.mark.parametrize("mutant", MUTANTS, ids=names(MUTANTS))
def test_the_mistake_is_what_breaks_it(mutant: Mutant) -> None:
    """In the scope of every mutant the correct protocol, on a store with conditional writes, holds."""
    assert Explorer(Protocol(mutant.scope)).explore().broken == ""


def test_every_promise_is_broken_by_a_mistake() -> None:
    """No promise is in the list that the checker could not see broken; and there are many mistakes."""
    assert {mutant.breaks for mutant in MUTANTS} == PROMISES.keys()
    assert len(MUTANTS) >= 50


def test_every_step_is_taken() -> None:
    """No step of the protocol is left out of what is explored."""
    everything = (
        Scope(crashes=1, lost=1, late=1, outages=1, claims=True),
        Scope(spill=True, damages=1, sweeps=True),
        Scope(parts=2, digests=True),
        Scope(rivals="jobs"),
        Scope(orders=("either",)),
    )
    taken: set[str] = set()
    for scope in everything:
        taken |= Explorer(Protocol(scope)).steps_taken()
    # A process finds another manifest only where a generation was deleted and written again by a sleeper.
    assert taken == Protocol(Scope()).acts.keys() - {"failed"}


def test_a_shortest_history_is_told() -> None:
    """A counter-example has the fewest events that lead to it: half a part takes one write to be seen."""
    (streams,) = (mutant for mutant in MUTANTS if mutant.name == "streams")
    assert Explorer(streams.protocol(streams.scope)).explore().path == (
        "w0 starts: no plan",
        "w0 creates plan.json of plan 1",
        "w0 creates GEN/1",
        "w0 takes unit 0",
        "w0 creates part of unit 0 of plan 1",
    )


def test_the_command_prints_a_table() -> None:
    """The command names results and tells counter-examples, from any folder, with Python alone."""
    check = Path(__file__).with_name("check.py")
    command = [sys.executable, "-S", str(check), "-v", "claim"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "claims, advisory " in done.stdout
    assert "claim-forever " in done.stdout
    assert "  5 w1 creates claim of unit 0 of plan 1\n        -> L1 w0 can never" in done.stdout
