"""A model that is a class of the job's own: anything that takes a batch and gives one result for each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from batchinfer.backends.type_text import Signature, parse_outputs, parse_specs
from batchinfer.backends.unused_keys import not_for
from batchinfer.config.sections import ModelOptions
from batchinfer.errors import ContractError, DataError, JobFileError
from batchinfer.options import Field, field_validator
from batchinfer.user_code import call, load_entry, setting_up

if TYPE_CHECKING:
    from batchinfer.data import Tensors, TensorSpec

_WRITE = 'inputs = {"x": "float32[?, 4]"} and outputs = {"y": "float32[?]"}'


class PythonOptions(ModelOptions):
    """A class `entry`, created with `args`, and with `path=` where `path` is set; `__call__(batch)` takes and
    gives columns by name."""

    backend: Literal["python"] = "python"
    """python"""

    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the class."""

    signature: Signature | None = None
    """What the class takes and gives, where it has no attributes `inputs` and `outputs` that say so."""

    _no_precision = field_validator("precision")(not_for("python"))


class PythonBackend:
    """An object of the user's.

    `load(device)` and `close()` are called where they exist. `inputs` and `outputs` map names to types
    (`"float32[?, 384]"`). `__call__` gets ndarrays (CUDA: torch tensors on the device) and Arrow arrays
    for text, and returns the like.
    """

    Options = PythonOptions

    def __init__(self, options: PythonOptions) -> None:
        self._options = options
        self._object: Any = None
        self.inputs: Sequence[TensorSpec] = ()
        self.outputs: Sequence[TensorSpec] = ()

    def load(self, device: str, *, threads: int) -> None:
        """Create the object and let it load. Raises JobFileError, ContractError or DeviceError."""
        del threads
        entry = self._options.entry
        if entry is None:
            raise JobFileError("model.entry is required: module:Class")
        path = {} if self._options.path is None else {"path": self._options.path}
        factory = load_entry(entry)
        with setting_up(entry):
            self._object = factory(**self._options.args, **path)
        if not callable(self._object):
            kind = type(self._object).__name__
            raise JobFileError(f"model.entry: {entry} gave {kind}, which has no __call__")
        if hasattr(self._object, "load"):
            with setting_up(f"{entry}: load"):
                self._object.load(device)
        # After load: a class may know only then what it takes.
        self.inputs = self._declared("inputs")
        self.outputs = self._declared("outputs")

    def forward(self, tensors: Tensors) -> dict[str, Any]:
        """Run one batch. Raises DataError with the class, file and line of what went wrong."""
        entry = self._options.entry
        results = call(str(entry), self._object, dict(tensors))
        if not isinstance(results, Mapping):
            raise DataError(f"{entry} must return a dict of columns, but returned {type(results).__name__}")
        missing = [spec.name for spec in self.outputs if spec.name not in results]
        if missing:
            given = ", ".join(repr(str(name)) for name in results) or "nothing"
            raise DataError(f"{entry} returned no {missing[0]!r}, but {given}")
        try:
            return {spec.name: _kept(results[spec.name]) for spec in self.outputs}
        except ValueError as error:
            raise DataError(f"{entry} returned lists of several lengths, which make no array") from error

    def close(self) -> None:
        """Let the object close."""
        closing, self._object = self._object, None
        if hasattr(closing, "close"):
            with setting_up(f"{self._options.entry}: close"):
                closing.close()

    def _declared(self, which: str) -> tuple[TensorSpec, ...]:
        """Parse the types of the job, or else of the object. Raises ContractError."""
        source = self._options.signature or self._object
        texts = getattr(source, which, None)
        if not isinstance(texts, Mapping) or not texts:
            raise ContractError(
                f"{self._options.entry} does not say its {which}",
                hint=f"give the class {_WRITE}, or write model.signature",
            )
        try:
            parse = parse_specs if which == "inputs" else parse_outputs
            return parse({str(name): str(text) for name, text in texts.items()})
        except ValueError as error:
            raise ContractError(f"{self._options.entry}: {which}: {error}") from error


def _kept(value: Any) -> Any:
    """Copy a result: the class may use its memory for the next batch. Tensors and lists become arrays."""
    if isinstance(value, (pa.Array, pa.ChunkedArray)):
        return value
    if hasattr(value, "detach"):
        tensor = value.detach()
        return tensor if tensor.is_cuda else tensor.cpu().numpy().copy()
    return np.array(value)
