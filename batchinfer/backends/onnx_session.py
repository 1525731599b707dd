"""ONNX models on onnxruntime: the providers that were asked for, or an error, never quietly another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from batchinfer.backends.fixed_batch import in_batches_of
from batchinfer.backends.onnx_binding import CudaBinding
from batchinfer.backends.onnx_providers import (
    CUDA_PROVIDERS,
    PROVIDERS,
    WAY_OUT,
    check_loaded,
    on_cuda,
    wanted_providers,
)
from batchinfer.backends.onnx_signature import OnnxSignature, read_signature
from batchinfer.backends.torch_device import torch_device
from batchinfer.backends.unused_keys import not_for
from batchinfer.config.sections import ModelOptions
from batchinfer.device_faults import fault_of, harm_of
from batchinfer.errors import (
    BatchinferError,
    ContractError,
    DataError,
    DeviceError,
    JobFileError,
    OutOfMemory,
)
from batchinfer.onnx_files import check_onnx_files
from batchinfer.options import field_validator, neutral

if TYPE_CHECKING:
    from batchinfer.data import Tensors, TensorSpec

_LEVELS = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "none": "ORT_DISABLE_ALL",
}
_FATAL = 4
_REFUSED = {"InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented"}
"""onnxruntime's errors that are about what it was given, whatever their text says."""
_BROKEN = {"EPFail", "DeviceReset", "EngineError"}
"""Those that are about the device."""
_NO_MEMORY = ("Failed to allocate memory", "out of memory", "bad allocation", "CUBLAS_STATUS_ALLOC_FAILED")
"""onnxruntime has one error for everything else: only its text tells that memory ran out."""


class OnnxOptions(ModelOptions):
    """An .onnx file, with its weights in it or beside it."""

    backend: Literal["onnx"] = "onnx"
    """onnx"""

    providers: tuple[str, ...] | None = neutral(None)
    """cpu, cuda, tensorrt, or onnxruntime's full names, the preferred one first; each must load.
    By default cuda on a GPU and cpu elsewhere."""

    graph_optimization: Literal["all", "extended", "basic", "none"] = "all"
    """How far onnxruntime may rewrite the graph."""

    tf32: bool = False
    """Let GPUs round the inputs of fp32 matrix products to 10 bits of mantissa: faster, less exact."""

    _no_entry = field_validator("entry")(not_for("onnx"))

    @field_validator("providers")
    @classmethod
    def _named(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in value or ():
            if name not in PROVIDERS and not name.endswith("ExecutionProvider"):
                raise ValueError(f"must be cpu, cuda, tensorrt or end in ExecutionProvider, got {name!r}")
        if value == ():
            raise ValueError("must name at least one provider")
        return value


class OnnxBackend:
    """An onnxruntime session. A model with a fixed batch axis gets whole batches, the last one padded."""

    Options = OnnxOptions
    libraries = ("onnxruntime",)

    def __init__(self, options: OnnxOptions) -> None:
        self._options = options
        self._session: Any = None
        self._binding: CudaBinding | None = None
        self._signature = OnnxSignature((), (), None, {})
        self.inputs: Sequence[TensorSpec] = ()
        self.outputs: Sequence[TensorSpec] = ()

    def load(self, device: str, *, threads: int) -> None:
        """Open the model with the providers asked for.

        Raises DeviceError where one of them did not load, DataError or ContractError for the file.
        """
        path = self._options.path
        if path is None:
            raise JobFileError("model.path is required: the .onnx file")
        path = check_onnx_files(path)
        wanted = wanted_providers(self._options.providers, device)
        self._check_precision(path, wanted)
        stream = None
        if device.startswith("cuda") and on_cuda(wanted):
            # torch first: it brings the CUDA libraries that the provider needs.
            import torch

            stream = torch.cuda.Stream(torch_device(device))
        self._session = self._open(path, wanted, threads=threads, stream=stream)
        check_loaded(self._session, wanted)
        self._signature = read_signature(self._session, path)
        self.inputs, self.outputs = self._signature.inputs, self._signature.outputs
        if stream is not None:
            self._bind(stream)

    def forward(self, tensors: Tensors) -> dict[str, Any]:
        """Run one batch; on CUDA it is only queued. Raises DataError or DeviceError."""
        try:
            if self._signature.batch is None:
                return self._run(tensors)
            return in_batches_of(self._signature.batch, tensors, self._run)
        except BatchinferError:
            raise
        # onnxruntime's errors have no base class of their own.
        except Exception as error:
            raise _run_error(error, tensors) from error

    def close(self) -> None:
        """Free the session."""
        self._binding = None
        self._session = None

    def _check_precision(self, path: str, wanted: Sequence[str]) -> None:
        precision = self._options.precision
        if precision != "fp32" and "TensorrtExecutionProvider" not in wanted:
            raise ContractError(
                f"model.precision: {precision} cannot be chosen for {path}: "
                "an ONNX file has its precision in it",
                hint=f"export the model in {precision} and leave model.precision out, or use "
                "model.providers: [tensorrt, cuda]",
            )

    def _open(self, path: str, wanted: Sequence[str], *, threads: int, stream: Any) -> Any:
        """Open a session. Raises DataError naming the file, or DeviceError."""
        import onnxruntime

        # What it would print on stderr is raised, with the way out.
        onnxruntime.set_default_logger_severity(_FATAL)
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = _FATAL
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        settings.use_deterministic_compute = True
        # A thread that spins takes the core that encodes the next rows.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        level = _LEVELS[self._options.graph_optimization]
        settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        missing = [name for name in wanted if name not in onnxruntime.get_available_providers()]
        if missing:
            raise DeviceError(
                f"this onnxruntime {onnxruntime.__version__} has no {missing[0]}; it has "
                f"{', '.join(onnxruntime.get_available_providers())}",
                hint=f"install onnxruntime-gpu; {WAY_OUT}",
            )
        providers = [(name, _provider_options(self._options, name, stream)) for name in wanted]
        try:
            return onnxruntime.InferenceSession(path, settings, providers=providers, enable_fallback=0)
        except Exception as error:
            if _is_device_trouble(error, path=str(path)):
                failed = DeviceError(f"{path} cannot be loaded: {_first_line(error)}", hint=WAY_OUT)
                failed.fault = fault_of(error)
                raise failed from error
            raise DataError(f"{path} is no model that onnxruntime can load: {_first_line(error)}") from error

    def _bind(self, stream: Any) -> None:
        import onnxruntime

        for spec in (*self.inputs, *self.outputs):
            if spec.dtype == "string":
                raise ContractError(
                    f"`{spec}` of {self._options.path} holds text, which no GPU computes on",
                    hint="model.providers: [cpu]",
                )
        options = onnxruntime.RunOptions()
        # The events of the streams order the work; waiting here would stop the pipeline.
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._binding = CudaBinding(self._session, self._signature, stream=stream, options=options)

    def _run(self, tensors: Tensors) -> dict[str, Any]:
        given = {spec.name: tensors[spec.name] for spec in self.inputs}
        if self._binding is not None:
            return self._binding.run(given)
        host = {spec.name: _host(given[spec.name], rank=len(spec.shape)) for spec in self.inputs}
        names = [spec.name for spec in self.outputs]
        results = self._session.run(names, host)
        return {
            spec.name: pa.array(value.reshape(-1).tolist(), pa.string()) if spec.dtype == "string" else value
            for spec, value in zip(self.outputs, results, strict=True)
        }


def _provider_options(options: OnnxOptions, name: str, stream: Any) -> dict[str, str]:
    if stream is None or name not in CUDA_PROVIDERS:
        return {}
    chosen = {"device_id": str(stream.device.index), "user_compute_stream": str(stream.cuda_stream)}
    if name == "CUDAExecutionProvider":
        chosen["use_tf32"] = str(int(options.tf32))
    if name == "TensorrtExecutionProvider" and options.precision != "fp32":
        chosen[f"trt_{options.precision}_enable"] = "1"
    return chosen


def _is_device_trouble(error: Exception, *, path: str = "") -> bool:
    kind = type(error).__name__
    if kind in _REFUSED or kind in _BROKEN or fault_of(error):
        return kind not in _REFUSED
    # The model's path stands in the message, and may hold any word.
    text = str(error).replace(path, "") if path else str(error)
    marks = ("CUDA", "CUDNN", "cuBLAS", *_NO_MEMORY)
    return any(mark in text for mark in marks)


def _run_error(error: Exception, tensors: Mapping[str, Any]) -> BatchinferError:
    shapes = ", ".join(
        f"{name} {list(getattr(value, 'shape', (len(value),)))}" for name, value in tensors.items()
    )
    no_memory = isinstance(error, MemoryError)
    if no_memory or _is_device_trouble(error):
        fault = fault_of(error)
        # onnxruntime has no type and no code of its own for it.
        said = harm_of(fault) == "memory" if fault else any(mark in str(error) for mark in _NO_MEMORY)
        no_memory = no_memory or said
        found = (OutOfMemory if no_memory else DeviceError)(
            f"the device failed on a batch of {shapes}: {_first_line(error)}",
            hint="try a smaller batching.size",
        )
        found.fault = fault
        return found
    return DataError(f"the model refused a batch of {shapes}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _host(value: Any, *, rank: int) -> Any:
    """Return an input as an ndarray: of a device's tensor a copy, of texts one of objects, one to a row."""
    if isinstance(value, (pa.Array, pa.ChunkedArray)):
        if value.null_count:
            raise DataError("a text for the model is null")
        texts = value.to_numpy(zero_copy_only=False).astype(object)
        return texts.reshape(-1, *(1,) * (rank - 1))
    return value if isinstance(value, np.ndarray) else value.cpu().numpy()
