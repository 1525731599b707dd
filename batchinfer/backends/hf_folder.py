"""What a model folder says about itself: its task, how it pools, how long its texts may be."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from batchinfer.errors import ContractError, DataError, JobFileError

Task = Literal["embedding", "text-classification", "token-classification", "text-generation"]

_TASKS: dict[str, Task] = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "Model": "embedding",
}
_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
_KNOWN_MODULES = {"Transformer", "Pooling", "Normalize"}


@dataclass(frozen=True, slots=True)
class EmbeddingRecipe:
    """How a sentence-transformers folder makes one vector of a text.

    `pooling` is None where the folder does not say it, or says what is neither "mean" nor "cls";
    then `other` names what it says.
    """

    transformer: Path
    pooling: str | None = None
    other: str | None = None
    normalize: bool = False
    max_length: int | None = None
    lower_case: bool = False
    prefix: str = ""


def open_folder(path: str | None) -> Path:
    """Return the model's folder. Raises JobFileError where there is none, or no config.json in it."""
    if path is None:
        raise JobFileError("model.path is required: the folder of the model")
    folder = Path(path)
    if not folder.is_dir():
        raise JobFileError(
            f"model.path: there is no folder {path}",
            hint="models are not downloaded: fetch the folder first, and give its path",
        )
    return folder


def read_json(file: Path, default: Any = None) -> Any:
    """Return the content of a JSON file, or `default` where there is none. Raises DataError."""
    if not file.is_file():
        return default
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DataError(f"{file} cannot be read as JSON: {error}") from error


def guess_task(folder: Path) -> Task:
    """Return the task that the folder was made for. Raises ContractError where it does not say."""
    if (folder / "modules.json").is_file():
        return "embedding"
    config = read_json(folder / "config.json", {})
    architectures = [str(name) for name in config.get("architectures") or []]
    for name in architectures:
        for ending, task in _TASKS.items():
            if name.endswith(ending):
                return task
    named = ", ".join(architectures) or "it names none"
    raise ContractError(
        f"{folder}: the task cannot be told from its config.json ({named})",
        hint="write model.task: embedding, text-classification, token-classification or text-generation",
    )


def read_recipe(folder: Path) -> EmbeddingRecipe:
    """Read how a folder embeds. A plain transformers folder says nothing of it.

    Raises ContractError for a folder with steps that this backend does not take.
    """
    modules = read_json(folder / "modules.json")
    if modules is None:
        return EmbeddingRecipe(folder)
    places = {str(module["type"]).rpartition(".")[2]: folder / module["path"] for module in modules}
    foreign = sorted(places.keys() - _KNOWN_MODULES)
    if foreign or "Transformer" not in places:
        steps = ", ".join(foreign) or "no transformer"
        raise ContractError(
            f"{folder} embeds with {steps}, which this backend does not compute",
            hint="backend: python can call sentence-transformers itself",
        )
    transformer = places["Transformer"]
    about = read_json(transformer / "sentence_bert_config.json", {})
    prompts = read_json(folder / "config_sentence_transformers.json", {})
    pooling, other = _pooling(read_json(places["Pooling"] / "config.json", {}) if "Pooling" in places else {})
    return EmbeddingRecipe(
        transformer=transformer,
        pooling=pooling,
        other=other,
        normalize="Normalize" in places,
        max_length=about.get("max_seq_length"),
        lower_case=bool(about.get("do_lower_case", False)),
        prefix=(prompts.get("prompts") or {}).get(prompts.get("default_prompt_name")) or "",
    )


def _pooling(config: dict[str, Any]) -> tuple[str | None, str | None]:
    """Return the pooling of a folder: what we compute, or the name of what we do not."""
    mode = config.get("pooling_mode")
    if mode is None:
        on = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
        modes = [_POOLINGS.get(key, key.removeprefix("pooling_mode_")) for key in on]
    else:
        modes = [mode] if isinstance(mode, str) else list(mode)
    if not modes:
        return None, None
    if modes[0] not in _POOLINGS.values() or len(modes) > 1:
        return None, " and ".join(modes)
    return modes[0], None


def check_weights(folder: Path, *, allow_unsafe: bool) -> None:
    """Refuse a folder whose weights are pickles, unless the job trusts them. Raises JobFileError."""
    if not (folder / "config.json").is_file():
        raise JobFileError(f"{folder} holds no config.json, so it is no model folder of transformers")
    _check_index(folder)
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(file.name for file in folder.glob("*.bin"))
    if not pickles:
        raise JobFileError(f"{folder} holds no weights (*.safetensors)")
    if not allow_unsafe:
        raise JobFileError(
            f"{folder} keeps its weights in {pickles[0]}, a pickle: it can run any code of whoever made it",
            hint="save the model as safetensors; or model.allow_unsafe_model: true if you trust its maker",
        )


def _check_index(folder: Path) -> None:
    """Refuse an index of weights that leads out of the folder. Raises JobFileError."""
    for index in folder.glob("*.index.json"):
        try:
            names = set(json.loads(index.read_text())["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise JobFileError(f"{index} is no index of weights: {error}") from error
        outside = sorted(name for name in names if Path(str(name)).name != name)
        if outside:
            raise JobFileError(
                f"{index} names {outside[0]!r}, which is no file of this folder",
                hint="put all weights of the model into its folder",
            )
