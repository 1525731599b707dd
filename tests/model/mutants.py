"""Mistakes that are easily made, and a few limits of the protocol: each breaks a promise."""

from __future__ import annotations

from tests.model import mutants_commit, mutants_end, mutants_plan, mutants_spill
from tests.model.mutant import REGISTERED, Mutant

GROUPS = (mutants_commit, mutants_spill, mutants_plan, mutants_end)
MUTANTS: tuple[Mutant, ...] = tuple(
    found for group in GROUPS for found in REGISTERED if found.protocol.__module__ == group.__name__
)
