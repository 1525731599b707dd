"""PyTorch models: a module of the job's own with safetensors weights, an exported program, or TorchScript."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from batchinfer.backends import torch_files, torch_signature
from batchinfer.backends.fixed_batch import in_batches_of
from batchinfer.backends.torch_device import torch_device
from batchinfer.backends.torch_shapes import Shaped, graphs_on
from batchinfer.backends.torch_values import named_values, putting_on, run_error, to_host, to_tensor
from batchinfer.backends.type_text import SpecTexts, checked, checked_outputs, parse_specs
from batchinfer.config.sections import ModelOptions
from batchinfer.data import TensorSpec
from batchinfer.errors import BatchinferError, ContractError, DataError
from batchinfer.options import Field, Options, field_validator
from batchinfer.tensors import NUMERIC

if TYPE_CHECKING:
    from batchinfer.data import Tensors

_IMAGE_AXES = 4
_WRITE = 'model: {signature: {inputs: {x: "float32[?, 4]"}, outputs: {y: "float32[?, 3]"}}}'


class TorchSignature(Options):
    """What a model takes and gives, where its file does not say."""

    inputs: SpecTexts | None = None
    """Input -> type, such as `pixels: "float32[?, 3, 224, 224]"`, in the order of forward's arguments; ? is
    an axis that varies. By default the names are forward's, and any dtype and shape will do."""

    outputs: SpecTexts | None = None
    """Output -> type, in the order in which they are returned. By default found by running two rows of
    zeros, where every size of every input is known."""

    @field_validator("inputs")
    @classmethod
    def _known_inputs(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        return None if value is None else checked(value)

    @field_validator("outputs")
    @classmethod
    def _known_outputs(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        return None if value is None else checked_outputs(value)


class TorchOptions(ModelOptions):
    """A .pt2 or .pt file (with allow_unsafe_model), or `entry` with or without weights in `path`."""

    backend: Literal["torch"] = "torch"
    """torch"""

    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of `entry`."""

    signature: TorchSignature = Field(default_factory=TorchSignature)
    """What the model takes and gives. Needed unless `path` is a .pt2."""

    compile: bool = False
    """Compile the model with torch.compile for each shape of batches; the first of a shape takes long."""

    cuda_graphs: bool = False
    """On a GPU, capture a CUDA graph for each shape of batches, and launch it as one. Not for a model that
    looks at its numbers to decide what to compute."""

    channels_last: bool = False
    """Keep images as rows of pixels in memory: often faster for convolutions."""


class TorchBackend:
    """A torch module in inference mode. Results keep the names of `signature`, or the model's own."""

    Options = TorchOptions
    libraries = ("torch",)

    def __init__(self, options: TorchOptions) -> None:
        self._options = options
        self._module: Any = None
        self._device: Any = None
        self._half: Any = None
        self._most: int | None = None
        self._least = 1
        self._by_order = False
        self.few_shapes = False
        self._keeps = False
        self._call: Any = None
        self.inputs: Sequence[TensorSpec] = ()
        self.outputs: Sequence[TensorSpec] = ()

    def load(self, device: str, *, threads: int) -> None:
        """Load the module on `device`. Raises DeviceError, JobFileError, ContractError or DataError."""
        import torch

        options = self._options
        self._device = torch_device(device)
        torch.set_num_threads(threads)
        self._half = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}[options.precision]
        module, form = torch_files.open_module(
            options.path, options.entry, options.args, allow_unsafe=options.allow_unsafe_model
        )
        if form == "exported":
            module = self._exported(module)
        else:
            module.eval()
            self._declare_inputs(module)
            names = [spec.name for spec in self.inputs]
            self._by_order = not torch_signature.takes_names(module, names)
        with putting_on(self._device, "the model"):
            if self._half is not None:
                module.to(self._half)
            module.to(self._device)
            if options.channels_last:
                module.to(memory_format=torch.channels_last)
        self._module = module
        self._declare_outputs()
        graphs = options.cuda_graphs and self._device.type == "cuda"
        self.few_shapes = options.compile or graphs
        if self.few_shapes:
            capture = graphs_on(self._device) if graphs else None
            self._module = Shaped(module, compiled=options.compile, capture=capture)
        # A replayed graph writes over its last results, of which a batch in pieces needs all.
        self._keeps = graphs and (self._most is not None or self._least > 1)

    def forward(self, tensors: Tensors) -> dict[str, Any]:
        """Run one batch; on CUDA it is only queued. Raises DataError or DeviceError."""
        try:
            if self._most is None and self._least == 1:
                return self._run(tensors)
            most = self._most or max(self._least, len(next(iter(tensors.values()))))
            return in_batches_of(most, tensors, self._run, least=self._least)
        except BatchinferError:
            raise
        # A module may raise anything.
        except Exception as error:
            raise run_error(error, tensors) from error

    def close(self) -> None:
        """Free the module."""
        self._module = None

    def _exported(self, program: Any) -> Any:
        """Return an exported program as a module on the device; its file says what it takes and gives."""
        path = str(self._options.path)
        if self._half is not None:
            raise ContractError(
                f"model.precision: {self._options.precision} cannot be chosen for {path}: an exported "
                "program has its precision in it",
                hint="export the model in that precision and leave model.precision out",
            )
        if self._options.signature.inputs is not None:
            raise ContractError(
                f"model.signature.inputs: {path} says itself what it takes", hint="leave signature.inputs out"
            )
        if self._device.type == "cuda":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, str(self._device))
        found = torch_signature.exported_signature(program, path)
        self.inputs, self.outputs = found.inputs, found.outputs
        self._most, self._least = found.most, found.least
        self._call = found.call
        return program.module()

    def _declare_inputs(self, module: Any) -> None:
        given = self._options.signature.inputs
        if given is not None:
            self.inputs = parse_specs(given)
        else:
            names, _ = torch_signature.forward_names(module)
            self.inputs = tuple(TensorSpec(name, "any", (None,)) for name in names)
        _check_numbers(self.inputs)
        if not self.inputs:
            raise ContractError("the model's forward takes no named arguments", hint=f"write {_WRITE}")

    def _declare_outputs(self) -> None:
        """Take the outputs from the job, from the file, or from a probe. Raises ContractError."""
        given = self._options.signature.outputs
        if given is not None:
            self.outputs = parse_specs(given)
            _check_numbers(self.outputs)
        if self.outputs:
            return
        open_ = [spec for spec in self.inputs if spec.dtype == "any" or None in spec.shape[1:]]
        if open_:
            raise ContractError(
                f"what the model gives is not known: its input `{open_[0]}` has no known size to try it with",
                hint=f"write the types down: {_WRITE}",
            )
        import numpy as np

        rows = torch_signature.PROBE_ROWS
        zeros = {
            spec.name: np.zeros((rows, *(size or 1 for size in spec.shape[1:])), spec.dtype)
            for spec in self.inputs
        }
        try:
            with putting_on(self._device, "two rows of zeros"):
                returned = self._returned(zeros)
        except BatchinferError:
            raise
        except Exception as error:
            raise ContractError(
                f"what the model gives is not known: trying it with two rows of zeros failed: {error}",
                hint=f"write the types down: {_WRITE}",
            ) from error
        specs = torch_signature.probed_outputs(returned, "the model")
        self.outputs = tuple(
            TensorSpec(spec.name, "float32", spec.shape)
            if self._half is not None and spec.dtype == "float16"
            else spec
            for spec in specs
        )

    def _returned(self, columns: Mapping[str, Any]) -> Any:
        """Call the module with one batch, and return what it returns."""
        import torch

        given = {spec.name: self._ready(spec.name, columns[spec.name]) for spec in self.inputs}
        by_order: Sequence[Any] = ()
        if self._call is not None:
            by_order, given = torch_signature.arguments(list(given.values()), self._call)
        elif self._by_order:
            by_order, given = list(given.values()), {}
        with torch.inference_mode():
            return self._module(*by_order, **given)

    def _ready(self, name: str, column: Any) -> Any:
        """Return an input on the device, in the precision and memory order of the model."""
        import torch

        tensor = to_tensor(name, column, self._device)
        if self._half is not None and tensor.is_floating_point():
            tensor = tensor.to(self._half)
        if self._options.channels_last and tensor.dim() == _IMAGE_AXES:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return tensor

    def _run(self, columns: Tensors) -> dict[str, Any]:
        returned = self._returned(columns)
        named = named_values(returned)
        values = list(named.values())
        by_order = not isinstance(returned, Mapping) and len(values) >= len(self.outputs)
        results = {}
        for at, spec in enumerate(self.outputs):
            value = named.get(spec.name, values[at] if by_order else None)
            if value is None:
                raise DataError(
                    f"the model gave no {spec.name!r}, but {', '.join(map(repr, named)) or 'no tensor'}",
                    hint="name what it gives in model.signature.outputs",
                )
            result = _own(to_host(_as_declared(value, spec)))
            results[spec.name] = result.clone() if self._keeps else result
        return results


def _check_numbers(specs: Sequence[TensorSpec]) -> None:
    for spec in specs:
        if spec.dtype != "any" and spec.dtype not in NUMERIC:
            raise ContractError(f"model.signature: `{spec}` is no tensor; torch takes and gives numbers only")


def _own(value: Any) -> Any:
    """Copy host memory: a module may return a buffer of its own, and write the next batch into it."""
    return value.copy() if isinstance(value, np.ndarray) else value


def _as_declared(value: Any, spec: TensorSpec) -> Any:
    """Return a result with its declared dtype. Raises DataError where that would lose what it says."""
    import torch

    wanted = getattr(torch, spec.dtype)
    given_name = str(value.dtype).removeprefix("torch.")
    if value.dtype.is_floating_point and wanted.is_floating_point:
        fits = True
    else:
        # A narrower whole number is looked at, on the CPU: on a GPU the look would stop the stream.
        fits = torch.can_cast(value.dtype, wanted) and (
            np.can_cast(given_name, spec.dtype)
            or (not value.is_cuda and bool((value.to(wanted).to(value.dtype) == value).all()))
        )
    if not fits:
        raise DataError(
            f"the model gave {spec.name!r} as {given_name}, which is no {spec.dtype}",
            hint="correct its type in model.signature.outputs",
        )
    return value.to(wanted)
