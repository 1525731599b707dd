"""`tokenize`: texts to token ids, as ragged columns; the loader pads them batch by batch."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from batchinfer.arrow_views import column_of, values_of
from batchinfer.data import Encoded, ErrorCode, Failure
from batchinfer.errors import ContractError
from batchinfer.options import ContentPath, Field, Options, neutral
from batchinfer.preprocess.appending import with_column, with_field
from batchinfer.preprocess.row_values import python_values
from batchinfer.preprocess.wordpiece import WordPiece

_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)

Part = Literal["input_ids", "attention_mask", "token_type_ids"]


class TokenizeOptions(Options):
    """Text to token ids."""

    column: str
    """The text column."""

    tokenizer: ContentPath
    """A `tokenizer.json`."""

    max_length: int = Field(default=256, ge=1)
    """Tokens of a row at most, special tokens included; longer texts are cut."""

    pair_column: str | None = None
    """A second text, joined as the tokenizer joins pairs."""

    truncation_side: Literal["right", "left"] = "right"
    """Which end of a long text is cut off."""

    add_special_tokens: bool = True
    """Add what the tokenizer adds around a text ([CLS], [SEP], <s>)."""

    engine: Literal["auto", "library"] = neutral("auto")
    """auto: the quick way where it gives the very same ids (WordPiece as BERT has it, without a pair), else
    the tokenizers library. library: always that."""

    nulls: Literal["error", "empty"] = "error"
    """A row without text fails (error), or counts as an empty text."""

    outputs: tuple[Part, ...] = Field(default=("input_ids", "attention_mask", "token_type_ids"), min_length=1)
    """Columns to add, each list<int64>."""


class Tokenize:
    """Encodes with the tokenizers library, whose threads need no GIL."""

    Options = TokenizeOptions
    shorthand: ClassVar[str] = "column"

    def __init__(self, options: TokenizeOptions) -> None:
        self._options = options

    def input_columns(self) -> frozenset[str]:
        """The text column or columns."""
        return frozenset(self._texts)

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        """Add a ragged column for each output. Raises ContractError where there is no text or tokenizer."""
        for name in self._texts:
            type_ = schema.field(name).type
            value = type_.value_type if pa.types.is_dictionary(type_) else type_
            if not any(is_text(value) for is_text in _TEXTS):
                raise ContractError(f"column {name!r} has type {type_}, not string", hint=_way_out(value))
        for name in self._options.outputs:
            schema = with_field(schema, self._field(name))
        return schema

    def encode(self, rows: pa.RecordBatch) -> Encoded:
        """Tokenize texts. A row whose text is null fails, unless nulls count as empty; so does one whose
        text is no UTF-8."""
        failed: dict[int, Failure] = {}
        quick = self._quickly(rows, failed)
        if quick is not None:
            return Encoded(self._with_outputs(rows, *quick), failed)
        plain = [self._filled(name, rows[name], failed) for name in self._texts]
        inputs: list[Any] = plain[0] if len(plain) == 1 else list(zip(*plain, strict=True))
        encodings = self._tokenizer.encode_batch_fast(
            inputs, add_special_tokens=self._options.add_special_tokens
        )
        offsets = np.zeros(len(encodings) + 1, np.int32)
        np.cumsum([len(encoding) for encoding in encodings], out=offsets[1:])
        for name in self._options.outputs:
            flat = self._values(name, encodings, int(offsets[-1]))
            column = pa.ListArray.from_arrays(column_of(offsets), column_of(flat))
            rows = with_column(rows, self._field(name), column)
        return Encoded(rows, failed)

    def _quickly(
        self, rows: pa.RecordBatch, failed: dict[int, Failure]
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
        """Return offsets and ids by words, None where that is not for this tokenizer or these texts."""
        if self._word_piece is None:
            return None
        name = self._options.column
        column = _plain_texts(rows[name])
        if column is None:
            return None
        if column.null_count:
            if self._options.nulls == "error":
                nulls = np.flatnonzero(values_of(column.is_null()))
                failed.update(dict.fromkeys(nulls.tolist(), _null(name)))
            column = column.fill_null("")
        return self._word_piece.encode(
            column,
            max_length=self._options.max_length,
            keep_left=self._options.truncation_side == "right",
        )

    def _with_outputs(
        self, rows: pa.RecordBatch, offsets: np.ndarray[Any, Any], ids: np.ndarray[Any, Any]
    ) -> pa.RecordBatch:
        """Add the columns of texts that have no pair: their type ids are all 0."""
        bounds = column_of(offsets)
        for name in self._options.outputs:
            flat = ids if name == "input_ids" else np.full(len(ids), name == "attention_mask", np.int64)
            rows = with_column(rows, self._field(name), pa.ListArray.from_arrays(bounds, column_of(flat)))
        return rows

    @property
    def _texts(self) -> tuple[str, ...]:
        pair = self._options.pair_column
        return (self._options.column,) if pair is None else (self._options.column, pair)

    def _filled(self, name: str, column: pa.Array, failed: dict[int, Failure]) -> list[str]:
        """Return texts, empty where a row has none."""
        values, unread = python_values(name, column)
        failed.update(unread)
        if self._options.nulls == "error" and column.null_count:
            for row, value in enumerate(values):
                if value is None:
                    failed.setdefault(row, _null(name))
        return [value or "" for value in values]

    def _values(self, name: Part, encodings: list[Any], num_tokens: int) -> np.ndarray[Any, Any]:
        if name == "attention_mask":
            return np.ones(num_tokens, np.int64)
        attribute = "ids" if name == "input_ids" else "type_ids"
        parts = [getattr(encoding, attribute) for encoding in encodings]
        return np.fromiter(itertools.chain.from_iterable(parts), np.int64, num_tokens)

    def _field(self, name: Part) -> pa.Field:
        """Return the column's field; its metadata tell the loader what to pad with, and how far."""
        pad = str(self._pad_id) if name == "input_ids" else "0"
        longest = str(self._options.max_length)
        return pa.field(name, pa.list_(pa.int64()), metadata={"pad": pad, "longest": longest})

    def _check_room(self, tokenizer: Any) -> None:
        """Refuse a length that special tokens fill: the library would leave texts empty, or uncut."""
        if not self._options.add_special_tokens:
            return
        added = tokenizer.num_special_tokens_to_add(self._options.pair_column is not None)
        if self._options.max_length <= added:
            raise ContractError(
                f"max_length is {self._options.max_length}, and the tokenizer adds {added} special tokens: "
                "no room is left for text",
                hint=f"set max_length above {added}, or add_special_tokens: false",
            )

    @functools.cached_property
    def _word_piece(self) -> WordPiece | None:
        """The quick way, None where it would not be exact."""
        tokenizer = self._tokenizer
        if self._options.engine == "library" or self._options.pair_column is not None:
            return None
        bare = type(tokenizer).from_str(tokenizer.to_str())
        bare.no_truncation()
        description = json.loads(bare.to_str())
        return WordPiece.of(bare, description, special_tokens=self._options.add_special_tokens)

    @functools.cached_property
    def _pad_id(self) -> int:
        return self._loaded[1]

    @property
    def _tokenizer(self) -> Any:
        return self._loaded[0]

    @functools.cached_property
    def _loaded(self) -> tuple[Any, int]:
        """Load the tokenizer, without the padding and truncation that its file may ask for."""
        import tokenizers

        path = self._options.tokenizer
        if not Path(path).is_file():
            raise ContractError(f"there is no tokenizer at {path}", hint=_where_else(path))
        try:
            tokenizer = tokenizers.Tokenizer.from_file(path)
        except Exception as error:
            raise ContractError(f"not a tokenizer.json: {error}", where=path) from error
        self._check_room(tokenizer)
        padding = tokenizer.padding
        pad_id = int(padding["pad_id"]) if padding else _pad_token(tokenizer)
        tokenizer.no_padding()
        tokenizer.enable_truncation(self._options.max_length, direction=self._options.truncation_side)
        return tokenizer, pad_id


def _null(name: str) -> Failure:
    return Failure(
        ErrorCode.SCHEMA, f"column {name!r} is null (set nulls: empty to take it as an empty text)"
    )


def _plain_texts(column: pa.Array) -> pa.Array | None:
    """Return texts as an array of offsets and bytes; None where one is no UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.large_string())
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return None
    return column


def _way_out(type_: pa.DataType) -> str:
    if pa.types.is_binary(type_) or pa.types.is_large_binary(type_):
        return "decode the bytes by a python step"
    return "make it text by a prompt step"


def _where_else(path: str) -> str:
    """Say where a tokenizer may be, given where there is none."""
    if "://" in path:
        return "a tokenizer is a local file: copy it beside the job file"
    if (Path(path) / "tokenizer.json").is_file():
        return f"that is a folder; its tokenizer is {Path(path) / 'tokenizer.json'}"
    return "a model's folder usually holds a tokenizer.json; AutoTokenizer(...).save_pretrained writes one"


def _pad_token(tokenizer: Any) -> int:
    """Find the id of the padding token by its usual names; 0 is what is left."""
    for token in ("[PAD]", "<pad>", "<|endoftext|>"):
        found = tokenizer.token_to_id(token)
        if found is not None:
            return int(found)
    return 0
