"""Text from a causal language model: greedy or sampled, each row as if it were alone."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchinfer.errors import ContractError

if TYPE_CHECKING:
    from batchinfer.backends.hf_model import TransformersOptions


class Generator:
    """Answers texts. Only the special tokens are the folder's; all other settings are the job's.

    Raises ContractError for `chat` with a tokenizer that has no template.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, config: Any, options: TransformersOptions, max_length: int | None
    ) -> None:
        if options.chat and not tokenizer.chat_template:
            raise ContractError(f"{options.path} has no chat template", hint="model.chat: false")
        self._model = model
        self._tokenizer = tokenizer
        self._options = options
        self._max_length = max_length
        # Rows end together, so that what is new begins at the same place in each.
        tokenizer.padding_side = tokenizer.truncation_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        folders = model.generation_config
        ends = folders.eos_token_id if folders.eos_token_id is not None else tokenizer.eos_token_id
        self._ends = np.atleast_1d(np.asarray([] if ends is None else ends, dtype=np.int64))
        is_sampled = options.temperature > 0
        sampling = {"temperature": options.temperature, "top_p": options.top_p, "top_k": 0}
        self._settings = config(
            max_new_tokens=options.max_new_tokens,
            do_sample=is_sampled,
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=folders.bos_token_id,
            **(sampling if is_sampled else {}),
        )
        # What the model brings would fill in what ours leaves open.
        model.generation_config = self._settings

    def answer(self, texts: list[str]) -> dict[str, Any]:
        """Return `text`, `num_tokens` (the end's included) and `finish_reason` (stop or length)."""
        if self._options.temperature == 0 or len(texts) <= 1:
            return self._answer(texts)
        # Sampled rows are drawn one by one: numbers drawn for a batch would make a row's text depend on
        # its neighbours.
        answers = [self._answer([text]) for text in texts]
        return {name: _joined([answer[name] for answer in answers]) for name in answers[0]}

    def _answer(self, texts: list[str]) -> dict[str, Any]:
        import torch

        encoded = self._encoded(texts)
        asked = encoded["input_ids"]
        # Other texts, other numbers; the same texts again, the same.
        torch.manual_seed(self._options.seed ^ zlib.crc32(asked.numpy().tobytes()))
        given = {name: tensor.to(self._model.device) for name, tensor in encoded.items()}
        tokens = self._model.generate(**given, generation_config=self._settings).cpu().numpy()
        new = tokens[:, asked.shape[1] :]
        is_end = np.isin(new, self._ends)
        ended = is_end.any(1)
        counts = np.where(ended, is_end.argmax(1) + 1, new.shape[1]).astype(np.int32)
        answers = [row[:count] for row, count in zip(new, counts, strict=True)]
        return {
            "text": pa.array(self._tokenizer.batch_decode(answers, skip_special_tokens=True), pa.string()),
            "num_tokens": counts,
            "finish_reason": pa.array(np.where(ended, "stop", "length").tolist(), pa.string()),
        }

    def _encoded(self, texts: list[str]) -> dict[str, Any]:
        chat = self._options.chat
        if chat:
            texts = [self._as_message(text) for text in texts]
        # A model begins from something: an empty text is its beginning, or else its end.
        nothing = self._tokenizer.bos_token or self._tokenizer.eos_token or " "
        encoded = self._tokenizer(
            [text or nothing for text in texts],
            padding=True,
            truncation=self._max_length is not None,
            max_length=self._max_length,
            add_special_tokens=not chat,
            return_tensors="pt",
        )
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def _as_message(self, text: str) -> str:
        message = [{"role": "user", "content": text}]
        filled = self._tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        return str(filled)


def _joined(columns: list[Any]) -> Any:
    """Put the columns of single rows together."""
    if isinstance(columns[0], np.ndarray):
        return np.concatenate(columns)
    return pa.concat_arrays(columns)
