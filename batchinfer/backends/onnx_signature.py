"""What an ONNX session takes and gives, as tensor specs; and which sizes are known before it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from batchinfer.data import TensorSpec
from batchinfer.errors import ContractError

_DTYPES = {
    "tensor(bool)": "bool",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(string)": "string",
}


@dataclass(frozen=True, slots=True)
class OnnxSignature:
    """Inputs and outputs; `batch` is the number of rows that the model insists on, if it does.

    `symbols` has each spec's sizes as the file has them: numbers, names, or None.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch: int | None
    symbols: Mapping[str, tuple[int | str | None, ...]]

    def output_shape(self, name: str, given: Mapping[str, Sequence[int]]) -> tuple[int, ...] | None:
        """Return an output's shape for inputs of these shapes, or None where only a run can tell."""
        known = {
            symbol: size
            for spec in self.inputs
            for symbol, size in zip(self.symbols[f"in {spec.name}"], given[spec.name], strict=True)
        }
        sizes = [known.get(size) if isinstance(size, str) else size for size in self.symbols[f"out {name}"]]
        whole = tuple(size for size in sizes if size is not None)
        return whole if len(whole) == len(sizes) else None


def read_signature(session: Any, path: str) -> OnnxSignature:
    """Ask a session for its inputs and outputs. Outputs without a batch axis are left out.

    Raises ContractError for a type that no column can hold, and for an input without a batch axis.
    """
    inputs = tuple(_spec(node, path) for node in session.get_inputs())
    for spec in inputs:
        if not spec.shape:
            raise ContractError(
                f"{path}: input {spec.name!r} is one number for the whole batch, not one for each row, or "
                "the file does not say how many axes it has",
                hint="export the model with that input as a constant, or with its shape",
            )
    first = {node.shape[0] for node in session.get_inputs()}
    fixed = {size for size in first if isinstance(size, int)}
    if len(fixed) > 1:
        raise ContractError(f"{path}: the inputs have batch axes of {sorted(fixed)} rows, which never agree")
    batch = next(iter(fixed), None)
    given = [node for node in session.get_outputs() if _has_batch_axis(node, batch)]
    if not given:
        names = ", ".join(repr(node.name) for node in session.get_outputs())
        raise ContractError(f"{path}: no output ({names}) has a batch axis, so none gives a value per row")
    symbols = {f"in {node.name}": tuple(node.shape) for node in session.get_inputs()}
    symbols |= {f"out {node.name}": tuple(node.shape) for node in given}
    return OnnxSignature(inputs, tuple(_spec(node, path) for node in given), batch, symbols)


def _has_batch_axis(node: Any, batch: int | None) -> bool:
    """Tell whether an output has a row for each row of the inputs; what is no tensor is judged later."""
    if node.type not in _DTYPES:
        return True
    return bool(node.shape) and (not isinstance(node.shape[0], int) or node.shape[0] == batch)


def _spec(node: Any, path: str) -> TensorSpec:
    dtype = _DTYPES.get(node.type)
    if dtype is None:
        sklearn = "; for scikit-learn classifiers, convert with options={'zipmap': False}"
        raise ContractError(
            f"{path}: {node.name!r} is of type {node.type}, which no column can hold",
            hint=f"export the model with plain tensors{sklearn if node.type.startswith('seq') else ''}",
        )
    sizes = tuple(size if isinstance(size, int) else None for size in node.shape)
    return TensorSpec(node.name, dtype, (None, *sizes[1:]) if sizes else ())
