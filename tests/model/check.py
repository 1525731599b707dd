"""Explore every order of events in small scopes, breadth first: `python tests/model/check.py [-v] [WORD]`.

The correct protocol must keep all promises in all states; every mutant must break the one that it names,
and the shortest sequence of events that does is printed with -v. A word picks what has it in its name.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.model.invariants import Watch, can_go_on, is_finished, outcome
from tests.model.protocol import Protocol
from tests.model.world import ELSE, State, Value

if TYPE_CHECKING:
    from tests.model.cases import Case
    from tests.model.mutant import Mutant


@dataclass(frozen=True, slots=True)
class Result:
    """What an exploration found: the promise that was broken and how, or nothing."""

    broken: str
    path: tuple[str, ...]
    num_states: int
    seconds: float


class Explorer:
    """All states of a protocol, numbered as they were found; a state's number gives its shortest past."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        first = protocol.initial()
        self._states = [first]
        self._numbers: dict[State, int] = {first: 0}
        self._past = array("l", [0])
        self._alone = [(array("l"), array("l")) for _ in first.workers]

    def explore(self) -> Result:
        """Visit every state, or those up to the first that breaks a promise."""
        began = time.process_time()
        # Millions of tuples and not one cycle: looking for cycles would take a quarter of the time.
        gc.disable()
        try:
            found, at = self._visit()
            if not found:
                found, at = self._differing()
            if not found:
                found, at = self._stuck()
        finally:
            gc.enable()
        path = self.path(at) if found else ()
        return Result(found, path, len(self._states), time.process_time() - began)

    def _visit(self) -> tuple[str, int]:
        protocol, states, numbers = self._protocol, self._states, self._numbers
        watch = Watch(protocol)
        for number, state in enumerate(states):
            for actor, _, after in protocol.successors(state):
                known = numbers.get(after)
                if known is None:
                    known = numbers[after] = len(states)
                    states.append(after)
                    self._past.append(number)
                    found = watch.broken(state, after)
                    if found:
                        return found, known
                if actor != ELSE:
                    begins, ends = self._alone[actor]
                    begins.append(number)
                    ends.append(known)
        return "", 0

    def _differing(self) -> tuple[str, int]:
        """Find a finished state whose output is not that of the first, where code gives the same bytes."""
        protocol, scope = self._protocol, self._protocol.scope
        if not scope.deterministic or scope.orders or scope.rivals:
            return "", 0
        outcomes: set[tuple[Value, ...]] = set()
        for number, state in enumerate(self._states):
            if is_finished(protocol, state):
                outcomes.add(outcome(protocol, state))
            if len(outcomes) > 1:
                return "I9 two histories leave different outputs", number
        return "", 0

    def _stuck(self) -> tuple[str, int]:
        """Find the first state from which one worker cannot reach the end by its own steps."""
        protocol, states = self._protocol, self._states
        finished = bytearray(is_finished(protocol, state) for state in states)
        for i, (begins, ends) in enumerate(self._alone):
            good = bytearray(finished)
            changed = True
            # Steps lead mostly to states found later, so that going backwards nearly does it in one turn.
            while changed:
                changed = False
                for at in range(len(begins) - 1, -1, -1):
                    if good[ends[at]] and not good[begins[at]]:
                        good[begins[at]] = changed = True
            bad = good.find(0)
            while bad >= 0 and not can_go_on(protocol, states[bad], i):
                bad = good.find(0, bad + 1)
            if bad >= 0:
                return f"L1 w{i} can never bring the job to its end", bad
        return "", 0

    def steps_taken(self) -> set[str]:
        """Visit every state, and return every step that a worker has taken."""
        self._visit()
        return {worker.at for state in self._states for worker in state.workers}

    def path(self, number: int) -> tuple[str, ...]:
        """Return the events that lead to a state."""
        words: list[str] = []
        while number:
            before, after = self._past[number], self._states[number]
            successors = self._protocol.successors(self._states[before])
            words.append(next(text for _, text, state in successors if state == after))
            number = before
        return tuple(reversed(words))


def check_cases(cases: Iterable[Case], *, verbose: bool) -> bool:
    """Explore the correct protocol, print what was seen, and tell whether all promises hold."""
    write(f"{'the protocol':48} {'result':12} {'states':>9} {'cpu s':>6}")
    results = []
    for case in cases:
        result = Explorer(case.protocol(case.scope)).explore()
        results.append(result)
        verdict = f"breaks {result.broken[:2]}" if result.broken else "holds"
        write(f"{case.name:48} {verdict:12} {result.num_states:9,} {result.seconds:6.1f}")
        if verbose or result.broken:
            write_path(result)
    num_states, seconds = sum(r.num_states for r in results), sum(r.seconds for r in results)
    write(f"{'':48} {'':12} {num_states:9,} {seconds:6.1f}\n")
    return not any(result.broken for result in results)


def check_mutants(mutants: Iterable[Mutant], *, verbose: bool) -> bool:
    """Explore the mutants, print what they break, and tell whether it is what they name."""
    write(f"{'mutant':26} {'breaks':6} {'steps':>5}  what it does")
    expected = True
    for mutant in mutants:
        result = Explorer(mutant.protocol(mutant.scope)).explore()
        as_named = result.broken.startswith(mutant.breaks)
        expected &= as_named
        words = mutant.says if as_named else f"expected {mutant.breaks}, found {result.broken or 'nothing'}"
        write(f"{mutant.name:26} {result.broken[:2] or '-':6} {len(result.path):5}  {words}")
        if verbose or not as_named:
            write_path(result)
    return expected


def write(line: str) -> None:
    """Print a line at once, for a reader who waits."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def write_path(result: Result) -> None:
    """Print a counter-example."""
    for number, words in enumerate(result.path, start=1):
        write(f"    {number:3} {words}")
    if result.broken:
        write(f"        -> {result.broken}")


def main() -> int:
    """Check everything; return the exit code."""
    from tests.model.cases import CASES, WIDE
    from tests.model.mutants import MUTANTS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-v", "--verbose", action="store_true", help="print every counter-example")
    parser.add_argument("--wide", action="store_true", help="the large scopes: five minutes, 2 GB")
    parser.add_argument("word", nargs="?", default="", help="part of a name")
    options = parser.parse_args()
    cases = [case for case in (WIDE if options.wide else CASES) if options.word in case.name]
    mutants = [mutant for mutant in MUTANTS if options.word in mutant.name]
    holds = check_cases(cases, verbose=options.verbose)
    return 0 if check_mutants(mutants, verbose=options.verbose) and holds else 1


if __name__ == "__main__":
    sys.exit(main())
