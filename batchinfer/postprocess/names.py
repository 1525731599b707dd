"""`rename`: results under other names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, TypeVar

from batchinfer.data import TensorSpec
from batchinfer.errors import ContractError
from batchinfer.options import Field, Options

if TYPE_CHECKING:
    from batchinfer.data import Column, Tensors

V = TypeVar("V")


class RenameOptions(Options):
    """Results under other names."""

    names: dict[str, str] = Field(min_length=1)
    """Old name -> new name."""


class Rename:
    """Renames results; the others stay as they are."""

    Options = RenameOptions
    shorthand: ClassVar[str] = "names"

    def __init__(self, options: RenameOptions) -> None:
        self._names = options.names

    def output_specs(self, specs: Mapping[str, TensorSpec]) -> Mapping[str, TensorSpec]:
        """Give the results under their new names. Raises ContractError for one that is not there."""
        for old in self._names:
            if old not in specs:
                raise ContractError(f"there is no result {old!r}; there are {', '.join(specs) or 'none'}")
        renamed = self._renamed(specs)
        if len(renamed) < len(specs):
            raise ContractError(f"two results would be called the same: {', '.join(self._names.values())}")
        return {name: replace(spec, name=name) for name, spec in renamed.items()}

    def apply(self, results: Mapping[str, Column], inputs: Tensors) -> Mapping[str, Column]:  # noqa: ARG002 - the door's
        """Rename."""
        return self._renamed(results)

    def _renamed(self, results: Mapping[str, V]) -> dict[str, V]:
        return {self._names.get(name, name): value for name, value in results.items()}
