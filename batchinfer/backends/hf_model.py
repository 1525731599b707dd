"""Transformers models from a local folder: embeddings, labels, entities and generated text."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pyarrow as pa

from batchinfer.backends import hf_folder, hf_packing, hf_tasks
from batchinfer.backends.hf_encoder import Encoder
from batchinfer.backends.hf_folder import EmbeddingRecipe, Task
from batchinfer.backends.hf_generation import Generator
from batchinfer.backends.torch_device import torch_device
from batchinfer.backends.torch_values import putting_on, run_error, to_host, to_tensor
from batchinfer.backends.unused_keys import not_for
from batchinfer.config.sections import Count, ModelOptions
from batchinfer.data import Packing, TensorSpec
from batchinfer.errors import BatchinferError, ContractError, DataError
from batchinfer.options import Field, field_validator

if TYPE_CHECKING:
    from batchinfer.data import Tensors

_CLASSES: dict[Task, str] = {
    "embedding": "AutoModel",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "text-generation": "AutoModelForCausalLM",
}
_NO_LIMIT = 1_000_000
_TEXT = (TensorSpec("text", "string", (None,)),)
_TOKENS = (
    TensorSpec("input_ids", "int64", (None, None)),
    TensorSpec("attention_mask", "int64", (None, None)),
)


class TransformersOptions(ModelOptions):
    """A folder with config.json, safetensors and tokenizer. The text's column: `inputs: {text: COLUMN}`."""

    backend: Literal["transformers"] = "transformers"
    """transformers"""

    task: Task | None = None
    """embedding, text-classification, token-classification or text-generation; by default what the folder
    was made for."""

    inputs_are: Literal["text", "tokens"] = "text"
    """text: the model's own tokenizer runs here, on the column `text`. tokens: `input_ids` and
    `attention_mask` come from a `tokenize` step, in other threads and sorted by length; for embedding and
    text-classification."""

    pooling: Literal["mean", "cls"] | None = None
    """embedding: mean of the tokens, or the first token; by default what the folder says, else mean."""

    normalize: bool | None = None
    """embedding: scale vectors to length 1; by default what the folder says."""

    max_length: Count | None = None
    """Tokens of a text; more are cut off, at the end (text-generation: at the beginning). By default what
    the folder says."""

    max_new_tokens: Count = 128
    """text-generation: tokens of an answer, at most."""

    temperature: Annotated[float, Field(ge=0)] = 0.0
    """text-generation: 0 takes the most probable token every time."""

    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """text-generation: sample from the most probable tokens that together have this probability."""

    seed: Annotated[int, Field(ge=0)] = 0
    """text-generation: where sampling begins; the same batch gives the same text."""

    compile: bool = False
    """embedding and text-classification of tokens: compile the model with torch.compile for each shape of
    batches; the first batch of a shape takes long."""

    cuda_graphs: bool = False
    """embedding and text-classification of tokens, on a GPU: capture a CUDA graph for each shape of batches,
    and launch it as one."""

    chat: bool = False
    """text-generation: put each text as a user's message into the model's chat template."""

    _no_entry = field_validator("entry")(not_for("transformers"))


class TransformersBackend:
    """A transformers model; rows of a batch do not see each other. Nothing is downloaded.

    embedding -> `embedding`; text-classification -> `label`, `score`, `probabilities`;
    token-classification -> `entities`; text-generation -> `text`, `num_tokens`, `finish_reason`.
    """

    Options = TransformersOptions
    libraries = ("torch",)

    def __init__(self, options: TransformersOptions) -> None:
        self._options = options
        self._task: Task = options.task or "embedding"
        self._recipe = EmbeddingRecipe(Path())
        self._model: Any = None
        self._tokenizer: Any = None
        self._device: Any = None
        self._max_length: int | None = None
        self._labels: list[str] = []
        self._generator: Generator | None = None
        self._encoder: Encoder | None = None
        self.few_shapes = False
        self.inputs: Sequence[TensorSpec] = ()
        self.outputs: Sequence[TensorSpec] = ()

    def load(self, device: str, *, threads: int) -> None:
        """Load model and tokenizer. Raises DeviceError, JobFileError, ContractError or DataError."""
        import torch

        options = self._options
        self._device = torch_device(device)
        torch.set_num_threads(threads)
        folder = hf_folder.open_folder(options.path)
        self._task = options.task or hf_folder.guess_task(folder)
        if options.inputs_are == "tokens" and self._task not in {"embedding", "text-classification"}:
            raise ContractError(f"model.inputs_are: tokens is not for {self._task}, which needs the text")
        if (options.compile or options.cuda_graphs) and (
            options.inputs_are != "tokens" or self._task not in {"embedding", "text-classification"}
        ):
            raise ContractError(
                "model.compile and model.cuda_graphs are for embedding and text-classification of tokens, "
                "whose batches have few shapes",
                hint="model.inputs_are: tokens, with a tokenize step",
            )
        self._recipe = hf_folder.read_recipe(folder) if self._task == "embedding" else EmbeddingRecipe(folder)
        if self._recipe.other and options.pooling is None:
            raise ContractError(
                f"{folder} pools by {self._recipe.other}, which this backend does not compute",
                hint="model.pooling: mean or cls gives other vectors; backend: python can call it itself",
            )
        self._model = self._open_model()
        if options.inputs_are == "text":
            self._tokenizer = self._open_tokenizer()
        self._max_length = options.max_length or self._longest()
        if self._task == "text-generation":
            self._generator = Generator(
                self._model,
                self._tokenizer,
                config=_transformers().GenerationConfig,
                options=options,
                max_length=self._max_length,
            )
        self.inputs = _TEXT if options.inputs_are == "text" else _TOKENS
        self.outputs = self._describe()
        self._encoder = Encoder(
            self._model,
            self._device,
            pooling=options.pooling or self._recipe.pooling or "mean",
            normalize=self._recipe.normalize if options.normalize is None else options.normalize,
            compiled=options.compile,
            graphs=options.cuda_graphs,
        )
        self.few_shapes = self._encoder.few_shapes

    def packing(self) -> Packing | None:
        """Return how rows are taken packed; None where the model gives other vectors then, or none at all."""
        if self._encoder is None or self._task != "embedding" or self._options.inputs_are != "tokens":
            return None
        hf_packing.register(_transformers())
        return self._encoder.packing(max_length=self._max_length)

    def forward(self, tensors: Tensors) -> dict[str, Any]:
        """Run one batch. Raises DataError or DeviceError.

        On CUDA an embedding is only queued; labels and texts are made on the host, which waits for them.
        """
        import torch

        try:
            with torch.inference_mode():
                if self._generator is not None:
                    return self._generator.answer(self._texts(tensors))
                if self._task == "token-classification":
                    return self._find_entities(self._texts(tensors))
                if self._task == "embedding":
                    return self._embed(tensors)
                return self._classify(self._encoded(tensors))
        except BatchinferError:
            raise
        # A model or tokenizer may raise anything.
        except Exception as error:
            raise run_error(error, tensors) from error

    def close(self) -> None:
        """Free the model."""
        self._model = self._tokenizer = self._generator = self._encoder = None

    def _open_model(self) -> Any:
        import torch

        folder, options = self._recipe.transformer, self._options
        hf_folder.check_weights(folder, allow_unsafe=options.allow_unsafe_model)
        dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[options.precision]
        cls = getattr(_transformers(), _CLASSES[self._task])
        try:
            model, info = cls.from_pretrained(
                str(folder),
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=None if options.allow_unsafe_model else True,
                output_loading_info=True,
            )
        except Exception as error:
            raise _load_error(folder, error) from error
        # An embedding does not use the pooler, which many folders lack.
        missing = sorted(
            name
            for name in info["missing_keys"]
            if not (self._task == "embedding" and name.startswith("pooler."))
        )
        if missing:
            raise ContractError(
                f"{folder} was not made for {self._task}: it lacks the weights {', '.join(missing[:5])}, "
                "which would be random numbers",
                hint="choose the task that the model was trained for: model.task",
            )
        with putting_on(self._device, str(folder)):
            return model.eval().to(self._device)

    def _open_tokenizer(self) -> Any:
        folder = self._recipe.transformer
        try:
            tokenizer = _transformers().AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            raise _load_error(folder, error) from error
        if self._task == "token-classification" and not tokenizer.is_fast:
            raise ContractError(f"{folder} has no tokenizer.json, so places in the text are not known")
        if tokenizer.pad_token is None:
            # Causal models have none: their end serves, and the mask hides it.
            tokenizer.pad_token = tokenizer.eos_token
        if self._model.config.pad_token_id is None:
            self._model.config.pad_token_id = tokenizer.pad_token_id
        return tokenizer

    def _longest(self) -> int | None:
        """Return how many tokens the model can take, as far as its folder says."""
        limits = [
            self._recipe.max_length,
            getattr(self._tokenizer, "model_max_length", None),
            self._num_positions(),
        ]
        known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < _NO_LIMIT]
        room = self._options.max_new_tokens if self._task == "text-generation" else 0
        if not known:
            return None
        if min(known) <= room:
            raise ContractError(
                f"model.max_new_tokens: {room} leaves no room for a text in {min(known)} tokens"
            )
        return min(known) - room

    def _num_positions(self) -> int | None:
        """Return the model's positions, without those that RoBERTa and its kin keep for padding."""
        positions: int | None = getattr(self._model.config, "max_position_embeddings", None)
        table = getattr(getattr(self._model.base_model, "embeddings", None), "position_embeddings", None)
        padding = getattr(table, "padding_idx", None)
        return positions if positions is None or padding is None else positions - padding - 1

    def _describe(self) -> tuple[TensorSpec, ...]:
        config = self._model.config
        if self._task == "embedding":
            return (TensorSpec("embedding", "float32", (None, int(config.hidden_size))),)
        if self._task == "text-generation":
            return (
                TensorSpec("text", "string", (None,)),
                TensorSpec("num_tokens", "int32", (None,)),
                TensorSpec("finish_reason", "string", (None,)),
            )
        self._labels = [str(config.id2label[at]) for at in range(config.num_labels)]
        if self._task == "token-classification":
            return (TensorSpec("entities", hf_tasks.ENTITIES, (None,)),)
        return (
            TensorSpec("label", "string", (None,)),
            TensorSpec("score", "float32", (None,)),
            TensorSpec("probabilities", "float32", (None, len(self._labels))),
        )

    def _texts(self, tensors: Tensors) -> list[str]:
        column = tensors["text"]
        if not isinstance(column, (pa.Array, pa.ChunkedArray)) or column.null_count:
            raise DataError("the model's text is missing in some rows: input 'text' holds nulls")
        texts: list[str] = column.to_pylist()
        if self._recipe.lower_case:
            texts = [text.lower() for text in texts]
        return [self._recipe.prefix + text for text in texts] if self._recipe.prefix else texts

    def _tokenize(self, texts: list[str], **more: Any) -> Any:
        return self._tokenizer(
            texts,
            padding=True,
            truncation=self._max_length is not None,
            max_length=self._max_length,
            return_tensors="pt",
            **more,
        )

    def _encoded(self, tensors: Tensors) -> dict[str, Any]:
        """Return what the model is called with, on its device."""
        if self._options.inputs_are == "tokens":
            return {spec.name: to_tensor(spec.name, tensors[spec.name], self._device) for spec in _TOKENS}
        encoded = self._tokenize(self._texts(tensors))
        return {name: tensor.to(self._device, non_blocking=True) for name, tensor in encoded.items()}

    def _embed(self, tensors: Tensors) -> dict[str, Any]:
        assert self._encoder is not None
        if "cu_seqlens" in tensors:
            return {"embedding": to_host(self._encoder.packed_vectors(tensors))}
        return {"embedding": to_host(self._encoder.vectors(self._encoded(tensors)))}

    def _classify(self, encoded: dict[str, Any]) -> dict[str, Any]:
        assert self._encoder is not None
        problem = self._model.config.problem_type
        chances = hf_tasks.probabilities(self._encoder.logits(encoded), problem=problem).cpu().numpy()
        names, scores = hf_tasks.best_labels(chances, self._labels)
        return {"label": names, "score": scores, "probabilities": chances}

    def _find_entities(self, texts: list[str]) -> dict[str, Any]:
        encoded = self._tokenize(texts, return_offsets_mapping=True)
        spans = encoded.pop("offset_mapping").numpy()
        words = [encoded.word_ids(row) for row in range(len(texts))]
        logits = self._model(**{name: tensor.to(self._device) for name, tensor in encoded.items()}).logits
        chances = logits.float().softmax(-1).cpu().numpy()
        return {"entities": hf_tasks.entities(chances, self._labels, spans=spans, words=words)}


def _transformers() -> Any:
    """Import transformers so that it stays at home and keeps quiet. Raises ContractError."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import transformers
    except ImportError as error:
        raise ContractError(
            f"backend: transformers needs a package that is not there: {error}",
            hint="pip install 'batchinfer-pipeline[transformers]'",
        ) from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def _load_error(folder: Path, error: Exception) -> BatchinferError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if "trust_remote_code" in str(error):
        return ContractError(
            f"{folder} brings code of its own, which is not run",
            hint="backend: python or torch runs code that the job names: model.entry",
        )
    return DataError(f"{folder} cannot be loaded: {first}")
