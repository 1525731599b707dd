"""What a torch model takes and gives: from an exported program, from `forward`, or from a probe batch."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from batchinfer import tensors
from batchinfer.backends.torch_values import named_values
from batchinfer.data import TensorSpec
from batchinfer.errors import ContractError

PROBE_ROWS = 2
_ANY_ROWS = 2


@dataclass(frozen=True, slots=True)
class ExportedSignature:
    """An exported program's inputs and outputs. `call` says how inputs become its arguments (a pytree
    spec), `most` and `least` how many rows a batch may have, None for any number."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    most: int | None
    least: int
    call: Any


def exported_signature(program: Any, path: str) -> ExportedSignature:
    """Read the shapes that a program was exported with. Raises ContractError for what is no flat list."""
    nodes = {node.name: node for node in program.graph.nodes}
    names = list(program.graph_signature.user_inputs)
    values: list[Any] = [nodes[name].meta.get("val") if name in nodes else None for name in names]
    plain = all(len(getattr(value, "shape", ())) for value in values)
    if not names or not plain or program.call_spec.in_spec.num_leaves != len(names):
        raise ContractError(
            f"{path} takes something else than tensors with a batch axis: {', '.join(map(str, names))}",
            hint="export a module whose forward takes one tensor for each input",
        )
    first = {value.shape[0] for value in values if isinstance(value.shape[0], int)}
    if len(first) > 1:
        raise ContractError(f"{path}: the inputs have batch axes of {sorted(first)} rows, which never agree")
    batch = next(iter(first), None)
    inputs = tuple(_spec(name, value) for name, value in zip(names, values, strict=True))
    outputs = _exported_outputs(program, batch, path)
    least, most = (batch, batch) if batch is not None else _bounds(program, values)
    return ExportedSignature(inputs, outputs, most, least, program.call_spec.in_spec)


def arguments(values: list[Any], call: Any) -> tuple[list[Any], dict[str, Any]]:
    """Return what an exported program is called with: by order, and by name."""
    from torch.utils import _pytree as pytree

    by_order, by_name = pytree.tree_unflatten(values, call)
    return list(by_order), dict(by_name)


def _bounds(program: Any, values: Sequence[Any]) -> tuple[int, int | None]:
    """Return the least and the most rows that a program was exported for, the most None for any number."""
    found = [program.range_constraints.get(value.shape[0].node.expr) for value in values]
    ranges = [bounds for bounds in found if bounds is not None]
    most = [int(bounds.upper) for bounds in ranges if bounds.upper.is_Integer]
    # torch writes 2 where it means any number, and takes one row as well.
    least = max((int(bounds.lower) for bounds in ranges if int(bounds.lower) > _ANY_ROWS), default=1)
    return least, min(most, default=None)


def _exported_outputs(program: Any, batch: int | None, path: str) -> tuple[TensorSpec, ...]:
    from torch.utils import _pytree as pytree

    last = next(node for node in program.graph.nodes if node.op == "output")
    kinds = program.graph_signature.output_specs
    # A program also gives back buffers that it changed; those are not results.
    results = [
        getattr(node, "meta", {}).get("val")
        for node, spec in zip(last.args[0], kinds, strict=True)
        if spec.kind.name == "USER_OUTPUT"
    ]
    returned = pytree.tree_unflatten(results, program.call_spec.out_spec)
    return _per_row(named_values(returned), batch, path)


def probed_outputs(returned: Any, what: str) -> tuple[TensorSpec, ...]:
    """Describe what a model returned for `PROBE_ROWS` rows."""
    return _per_row(named_values(returned), PROBE_ROWS, what)


def _per_row(named: dict[str, Any], batch: int | None, what: str) -> tuple[TensorSpec, ...]:
    """Describe the tensors with a row for each row of the batch. Raises ContractError where none has."""
    rows = {
        name: value
        for name, value in named.items()
        if len(value.shape) and (not isinstance(value.shape[0], int) or value.shape[0] == batch)
    }
    if not rows:
        found = ", ".join(f"{name} {list(value.shape)}" for name, value in named.items()) or "no tensor"
        raise ContractError(f"{what} gives {found}: none of it has a row for each row of the batch")
    return tuple(_spec(name, value) for name, value in rows.items())


def _spec(name: str, value: Any) -> TensorSpec:
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in tensors.NUMERIC and dtype != "bfloat16":
        raise ContractError(f"{name!r} is of dtype {dtype}, which no column can hold")
    sizes = tuple(size if isinstance(size, int) else None for size in value.shape)
    # NumPy has no bfloat16: results are widened.
    return TensorSpec(name, "float32" if dtype == "bfloat16" else dtype, (None, *sizes[1:]))


def forward_names(module: Any) -> tuple[list[str], bool]:
    """Return the names that `forward` must be given, and whether it takes any others by name."""
    schema = getattr(getattr(module, "forward", None), "schema", None)
    if schema is not None:
        return [arg.name for arg in schema.arguments[1:] if not arg.has_default_value()], False
    parameters = inspect.signature(module.forward).parameters.values()
    kinds = inspect.Parameter
    rest = {kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD}
    needed = [each.name for each in parameters if each.default is kinds.empty and each.kind not in rest]
    return needed, any(each.kind is kinds.VAR_KEYWORD for each in parameters)


def takes_names(module: Any, names: Sequence[str]) -> bool:
    """Tell whether `forward` can be called with these names as keywords."""
    schema = getattr(getattr(module, "forward", None), "schema", None)
    if schema is not None:
        return set(names) <= {arg.name for arg in schema.arguments[1:]}
    parameters = inspect.signature(module.forward).parameters
    kinds = inspect.Parameter
    by_name = {
        name
        for name, parameter in parameters.items()
        if parameter.kind in {kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY}
    }
    return set(names) <= by_name or forward_names(module)[1]
