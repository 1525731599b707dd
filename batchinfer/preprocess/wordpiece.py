"""WordPiece over whole columns: texts are cut into words by table, and each distinct word is looked up once.

A BERT tokenizer cuts a text at whitespace and around each punctuation mark, whatever stands beside them;
what lies between two such cuts is tokenized for itself. So the library need only ever see distinct pieces
between ASCII whitespace and ASCII punctuation, once each, and the rest is NumPy over the bytes of the
column. What a piece becomes (accents, other scripts, control characters, letters without end) is the
library's answer and so exact. The cut is not exact where a text spells an added token such as `[SEP]`:
those texts are given to the library whole.

WordPiece: Schuster and Nakajima, 2012; the cut is that of BERT (Devlin et al., 2019).
"""

from __future__ import annotations

import string
import threading
from collections.abc import Mapping, Sequence
from itertools import chain, repeat
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchinfer.arrow_views import column_of, values_of

Array = np.ndarray[Any, Any]

_SPACE, _WORD, _MARK = 0, 1, 2
_KIND = np.full(256, _WORD, np.uint8)
_KIND[list(b" \t\n\r")] = _SPACE
_KIND[list(string.punctuation.encode())] = _MARK
_SAME = np.arange(256, dtype=np.uint8)
_LOWER = np.where((ord("A") <= _SAME) & (ord("Z") >= _SAME), _SAME + 32, _SAME).astype(np.uint8)
_MOST_WORDS = 1_000_000
_LONGEST_KEPT = 64
_MOST_BYTES = 2**31 - 1


class WordPiece:
    """Encodes columns of texts as a BERT tokenizer does. Safe to use from several threads."""

    def __init__(self, tokenizer: Any, description: Mapping[str, Any], *, special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._bytes = _LOWER if description["normalizer"].get("lowercase") else _SAME
        self._added = [token["content"].encode() for token in description["added_tokens"]]
        self._first = np.zeros(256, bool)
        self._first[[content[0] for content in self._added]] = True
        self._words = _Words(tokenizer)
        self._special_tokens = special_tokens
        head, tail = _around(tokenizer) if special_tokens else ([], [])
        self._head, self._tail = np.array(head, np.int32), np.array(tail, np.int32)

    @classmethod
    def of(cls, tokenizer: Any, description: Mapping[str, Any], *, special_tokens: bool) -> WordPiece | None:
        """Return an encoder for a tokenizer, without padding and truncation, that `description` (its
        tokenizer.json) describes; None for one that cuts texts in another way."""
        if not _is_bert(description) or any(tokenizer.encode("a").type_ids):
            return None
        return cls(tokenizer, description, special_tokens=special_tokens)

    def encode(self, column: pa.Array, *, max_length: int, keep_left: bool) -> tuple[Array, Array]:
        """Return offsets, int32 of shape (rows + 1,), and ids, int64, of the texts of a column.

        The column is string or large_string, valid UTF-8 and without nulls. A text has at most
        `max_length` ids, special ones included; what is cut off is its right end, or its left one.
        """
        bounds, data = _bytes_of(column)
        if len(data) > _MOST_BYTES:
            half = len(column) // 2
            parts = [column.slice(0, half), column.slice(half)]
            found = [self.encode(part, max_length=max_length, keep_left=keep_left) for part in parts]
            return _joined(found)
        ids, cuts = self._flat(bounds, data)
        room = max_length - len(self._head) - len(self._tail)
        sizes = np.minimum(np.diff(cuts), room)
        starts = cuts[:-1] if keep_left else cuts[1:] - sizes
        odd = self._odd(column, bounds, data)
        whole = self._by_library(column, odd, room, keep_left=keep_left)
        for row, values in zip(odd.tolist(), whole, strict=True):
            sizes[row] = len(values)
        offsets, body = self._framed(sizes)
        out = np.empty(int(offsets[-1]), np.int64)
        _fill(out, offsets[:-1], self._head)
        _fill(out, offsets[1:] - len(self._tail), self._tail)
        source = np.repeat(starts - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes)
        source += np.arange(len(source))
        if len(odd):
            source = np.clip(source, 0, max(len(ids) - 1, 0))
        out[body] = ids[source] if len(ids) else 0
        for row, values in zip(odd.tolist(), whole, strict=True):
            begin = int(offsets[row]) + len(self._head)
            out[begin : begin + len(values)] = values
        return offsets, out

    def _flat(self, bounds: Array, data: Array) -> tuple[Array, Array]:
        """Return the ids of all texts, one after the other, and where each text begins and ends in them."""
        kind = _KIND[data]
        is_word = kind == _WORD
        follows = np.empty(len(data), bool)
        follows[:1] = False
        follows[1:] = is_word[:-1]
        follows[bounds[:-1][bounds[:-1] < len(data)]] = False
        begins = np.flatnonzero((kind == _MARK) | (is_word & ~follows))
        written = kind != _SPACE
        letters = self._bytes[data[written]]
        before = np.cumsum(written, dtype=np.int32)
        ends = np.empty(len(begins) + 1, np.int32)
        ends[:-1] = before[begins] - 1
        ends[-1] = len(letters)
        pieces = pa.Array.from_buffers(
            pa.binary(), len(begins), [None, pa.py_buffer(ends), pa.py_buffer(letters)]
        ).dictionary_encode()
        starts, sizes, ids = self._words.look_up(pieces.dictionary.to_pylist())
        which = values_of(pieces.indices)
        sizes = sizes[which]
        total = np.concatenate([[0], np.cumsum(sizes)])
        source = np.repeat(starts[which] - total[:-1], sizes) + np.arange(int(total[-1]))
        return ids[source], total[np.searchsorted(begins, bounds)]

    def _odd(self, column: pa.Array, bounds: Array, data: Array) -> Array:
        """Return the rows whose texts spell an added token."""
        suspects = np.flatnonzero(self._first[data])
        if not len(suspects):
            return suspects
        rows = np.unique(np.searchsorted(bounds, suspects, side="right") - 1)
        texts = column.take(column_of(rows)).cast(pa.large_binary())
        spelled = np.zeros(len(rows), bool)
        for content in self._added:
            spelled |= values_of(pc.match_substring(texts, content))
        return rows[spelled]

    def _by_library(
        self, column: pa.Array, rows: Array, room: int, *, keep_left: bool
    ) -> list[Sequence[int]]:
        if not len(rows):
            return []
        texts = column.take(column_of(rows)).to_pylist()
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [_cut(encoding.ids, room, keep_left=keep_left) for encoding in encodings]

    def _framed(self, sizes: Array) -> tuple[Array, Array]:
        """Return where each text with its special tokens begins and ends, and the places of its own ids."""
        added = len(self._head) + len(self._tail)
        offsets = np.zeros(len(sizes) + 1, np.int32)
        np.cumsum(sizes + added, out=offsets[1:])
        own = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        body = np.repeat(offsets[:-1] + len(self._head) - own, sizes)
        return offsets, body + np.arange(len(body))


class _Words:
    """What the library makes of each word, in one flat array. Forgotten when there are too many."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._table = _Table()

    def look_up(self, words: list[bytes]) -> tuple[Array, Array, Array]:
        """Return for each word where its ids begin and how many they are, and the ids, int32."""
        table = self._table
        places = np.fromiter(map(table.places.get, words, repeat(-1)), np.int64, len(words))
        unknown = np.flatnonzero(places < 0)
        if len(unknown):
            new = [words[at] for at in unknown.tolist()]
            texts = [word.decode() for word in new]
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            with self._lock:
                if len(table.places) + len(new) > _MOST_WORDS:
                    self._table = _Table()
                places[unknown] = table.add(new, [encoding.ids for encoding in encodings])
        starts, sizes, ids = table.starts, table.sizes, table.ids
        return starts[places], sizes[places], ids


class _Table:
    """Places of words in arrays that only grow; readers keep the ones that they have seen."""

    def __init__(self) -> None:
        self.places: dict[bytes, int] = {}
        self.starts = np.empty(0, np.int64)
        self.sizes = np.empty(0, np.int64)
        self.ids = np.empty(0, np.int32)
        self._num_words = self._num_ids = 0

    def add(self, words: list[bytes], ids: list[list[int]]) -> Array:
        """Add words; return their places. A reader sees a word only once its ids are there."""
        sizes = np.fromiter(map(len, ids), np.int64, len(ids))
        flat = np.fromiter(chain.from_iterable(ids), np.int32, int(sizes.sum()))
        first, begin = self._num_words, self._num_ids
        self._num_words, self._num_ids = first + len(words), begin + len(flat)
        self.ids = _with_room(self.ids, self._num_ids)
        self.ids[begin : self._num_ids] = flat
        self.sizes = _with_room(self.sizes, self._num_words)
        self.sizes[first : self._num_words] = sizes
        self.starts = _with_room(self.starts, self._num_words)
        self.starts[first : self._num_words] = begin + np.concatenate([[0], np.cumsum(sizes)[:-1]])
        found = np.arange(first, self._num_words)
        # Longer ones hardly come again.
        known = (
            (word, at) for word, at in zip(words, found.tolist(), strict=True) if len(word) <= _LONGEST_KEPT
        )
        self.places.update(known)
        return found


def _with_room(array: Array, size: int) -> Array:
    """Return an array with the same beginning and room for so many values."""
    if size <= len(array):
        return array
    larger = np.empty(max(size, 2 * len(array), 1024), array.dtype)
    larger[: len(array)] = array
    return larger


def _is_bert(description: Mapping[str, Any]) -> bool:
    """Tell whether texts are cut as this module does."""
    parts = {name: (description.get(name) or {}) for name in ("normalizer", "pre_tokenizer", "model")}
    kinds = {name: part.get("type") for name, part in parts.items()}
    if kinds != {"normalizer": "BertNormalizer", "pre_tokenizer": "BertPreTokenizer", "model": "WordPiece"}:
        return False
    after = description.get("post_processor")
    if after is not None and after.get("type") not in {"TemplateProcessing", "BertProcessing"}:
        return False
    # They must be found by one letter that is rare, and as they stand, not as they are normalized.
    return all(
        token["content"][:1] in set(string.punctuation) and token["content"] and not token["normalized"]
        for token in description.get("added_tokens", ())
    )


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the special ids that stand before and behind a text."""
    encoding = tokenizer.encode("a")
    ids, mask = encoding.ids, encoding.special_tokens_mask
    at = mask.index(0)
    behind = len(mask) - mask[::-1].index(0)
    return ids[:at], ids[behind:]


def _cut(ids: list[int], room: int, *, keep_left: bool) -> list[int]:
    return ids[:room] if keep_left else ids[max(len(ids) - room, 0) :]


def _bytes_of(column: pa.Array) -> tuple[Array, Array]:
    """Return the bounds of the texts, int64 of shape (rows + 1,), and their bytes."""
    kind = np.int64 if pa.types.is_large_string(column.type) else np.int32
    _, bounds, data = column.buffers()
    if data is None or not len(column):
        return np.zeros(len(column) + 1, np.int64), np.empty(0, np.uint8)
    ends = np.frombuffer(bounds, kind)[column.offset : column.offset + len(column) + 1].astype(np.int64)
    return ends - ends[0], np.frombuffer(data, np.uint8)[ends[0] : ends[-1]]


def _joined(parts: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    (first, ids), (second, more) = parts
    return np.concatenate([first, second[1:] + first[-1]]), np.concatenate([ids, more])


def _fill(out: Array, places: Array, ids: Array) -> None:
    """Write some ids at each of the places."""
    for at, token in enumerate(ids):
        out[places + at] = token
