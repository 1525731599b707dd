"""How a mistake is written down: the protocol with a step done wrong, and the promise that this breaks."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from tests.model.protocol import Protocol
from tests.model.world import Scope

_P = TypeVar("_P", bound=type[Protocol])


@dataclass(frozen=True, slots=True)
class Mutant:
    """A mistake: its name, what is done wrong, in which scope that shows, and which promise breaks."""

    name: str
    says: str
    breaks: str
    scope: Scope
    protocol: type[Protocol]


REGISTERED: list[Mutant] = []


def mutant(breaks: str, **scope: Any) -> Callable[[_P], _P]:
    """Register a protocol as a mutant: the class's name and the first words of its docstring say which."""

    def register(protocol: _P) -> _P:
        assert protocol.__doc__ is not None
        name = re.sub(r"(?<=.)([A-Z])", r"-\1", protocol.__name__).lower()
        says = protocol.__doc__.strip().removesuffix(".")
        REGISTERED.append(Mutant(name, says, breaks, Scope(**scope), protocol))
        return protocol

    return register
