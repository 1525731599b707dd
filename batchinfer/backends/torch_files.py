"""Model files that torch reads: weights are data and welcome; programs and pickles only if asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from batchinfer.errors import DataError, JobFileError
from batchinfer.user_code import load_entry, setting_up

_PICKLES = {".pt", ".pth", ".bin", ".ckpt", ".pkl"}
_MOST_NAMES = 5

Form = Literal["module", "exported", "script"]


def open_module(
    path: str | None, entry: str | None, args: Mapping[str, Any], *, allow_unsafe: bool
) -> tuple[Any, Form]:
    """Return a module, or an ExportedProgram, on the CPU, and which of them it is.

    Raises JobFileError where the job may not, or cannot, load it; DataError where the file is damaged.
    """
    if path is not None and not Path(path).is_file():
        raise JobFileError(f"model.path: there is no file {path}")
    if entry is not None:
        return _from_entry(entry, args, path, allow_unsafe=allow_unsafe), "module"
    if args:
        raise JobFileError("model.args are for model.entry, which is not there")
    if path is None:
        raise JobFileError("model.path or model.entry is required: a .pt2 or .pt file, or module:factory")
    suffix = Path(path).suffix.lower()
    if suffix == ".pt2":
        _refuse_unless(allow_unsafe, path, "an exported program (.pt2)")
        return _exported(path), "exported"
    if suffix == ".pt":
        _refuse_unless(allow_unsafe, path, "TorchScript (.pt)")
        return _script(path), "script"
    raise JobFileError(
        f"{path} holds weights, but no program that computes with them",
        hint="name what builds the model: model.entry: module:factory",
    )


def _refuse_unless(allowed: bool, path: str, what: str) -> None:  # noqa: FBT001 - reads as a sentence
    if not allowed:
        raise JobFileError(
            f"{path} is not loaded: {what} can run any code of whoever made it, with your rights",
            hint="use ONNX, or model.entry with .safetensors weights; "
            "or model.allow_unsafe_model: true for a file whose maker you trust",
        )


def _exported(path: str) -> Any:
    import torch

    try:
        return torch.export.load(path)
    except Exception as error:
        raise DataError(f"{path} is no exported program that torch can load: {_first_line(error)}") from error


def _script(path: str) -> Any:
    import warnings

    import torch

    try:
        with warnings.catch_warnings():
            # That TorchScript is on its way out is for whoever makes the file, not for who runs it.
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(path, map_location="cpu")
    except (RuntimeError, ValueError, OSError) as error:
        raise DataError(
            f"{path} is no TorchScript that torch can load: {_first_line(error)}",
            hint="for a file of weights, name what builds the model: model.entry: module:factory",
        ) from error


def _from_entry(entry: str, args: Mapping[str, Any], path: str | None, *, allow_unsafe: bool) -> Any:
    import torch

    factory = load_entry(entry)
    with setting_up(entry):
        module = factory(**args)
    if not isinstance(module, torch.nn.Module):
        raise JobFileError(
            f"model.entry: {entry} gave {type(module).__name__}, which is no torch.nn.Module",
            hint="backend: python takes any class",
        )
    if path is not None:
        _load_weights(module, _weights(path, allow_unsafe=allow_unsafe), f"{entry} and {path}")
    return module


def _weights(path: str, *, allow_unsafe: bool) -> Mapping[str, Any]:
    """Read names and tensors. A pickle is read by torch's restricted reader, which runs none of it."""
    suffix = Path(path).suffix.lower()
    if suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)  # type: ignore[no-any-return]
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path} is no whole safetensors file: {error}") from error
    if suffix not in _PICKLES:
        raise JobFileError(
            f"{path} is no kind of weights that is known", hint="save the weights as .safetensors"
        )
    _refuse_unless(allow_unsafe, path, "a pickle")
    return _pickled_weights(path)


def _pickled_weights(path: str) -> Mapping[str, Any]:
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(
            f"{path} holds more than tensors, or is damaged: {type(error).__name__}",
            hint="save module.state_dict() as .safetensors",
        ) from error
    state = state.get("state_dict", state) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise DataError(f"{path} holds no mapping of names to tensors, as module.state_dict() gives it")
    return state


def _load_weights(module: Any, state: Mapping[str, Any], what: str) -> None:
    """Fill a module with exactly these weights. Raises JobFileError naming those that do not fit."""
    own = module.state_dict()
    # Weights that are one in memory need not stand in the file under each of their names.
    there = {_memory(own[name]) for name in own.keys() & state.keys()}
    lacking = sorted(name for name in own.keys() - state.keys() if _memory(own[name]) not in there)
    problems = [
        *_listed("the file lacks", lacking),
        *_listed("the model has no", sorted(state.keys() - own.keys())),
        *_listed(
            "of another shape are",
            [
                f"{name} {list(state[name].shape)} for {list(own[name].shape)}"
                for name in sorted(own.keys() & state.keys())
                if own[name].shape != state[name].shape
            ],
        ),
    ]
    if problems:
        raise JobFileError(f"{what} do not fit: {'; '.join(problems)}")
    # Not strictly: that would ask for each name of tied weights.
    module.load_state_dict(state, strict=False)


def _memory(tensor: Any) -> tuple[Any, ...]:
    """Return what two names of the same weights have in common; for what has no memory, what none has."""
    if not tensor.numel():
        return (id(tensor),)
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return [f"{what} {', '.join(names[:_MOST_NAMES])}{more}"]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
