"""What the record batches of an Arrow IPC file decode to, by its metadata alone, before anything is decoded.

A compressed buffer begins with its decoded size. Where that is, the metadata say, in tables of the
FlatBuffers format. It is defined in `Message.fbs` and `File.fbs` of the Arrow project.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

MAGIC = b"ARROW1"
_CONTINUES = 0xFFFFFFFF
_PREFIX_BYTES = 8
_DICTIONARY, _BATCH = 2, 3  # of the union MessageHeader
_BLOCK, _BUFFER = struct.Struct("<qi4xq"), struct.Struct("<qq")
_WINDOW_BYTES = 4096
_TEXTS = {pa.string(), pa.binary(), pa.large_string(), pa.large_binary()}


def decoded_sizes(
    raw: Any, schema: pa.Schema, fields: Sequence[int], *, is_file: bool, first: int
) -> Iterator[int]:
    """Yield the bytes that some columns of each record batch decode to, dictionaries included; of a file
    from batch `first` on, of a stream from its beginning.

    Raises ArrowInvalid where the metadata make no sense.
    """
    reader = _Reader(raw)
    try:
        places = _blocks(reader, first) if is_file else _stream(reader)
        dictionaries = 0
        for at in places:
            kind, buffers = _message(reader, at)
            if kind == _DICTIONARY:
                dictionaries += sum(buffers)
            elif kind == _BATCH:
                yield dictionaries + _of_columns(buffers, fields, schema)
    except (struct.error, IndexError, OverflowError, MemoryError) as error:
        raise pa.ArrowInvalid(f"the metadata are damaged: {error}") from error


def _of_columns(buffers: Sequence[int], fields: Sequence[int], schema: pa.Schema) -> int:
    """Return the size of some columns, or of all where it cannot be told which buffers are whose."""
    counts = [_num_buffers(field.type) for field in schema]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts) or sum(known) != len(buffers):
        return sum(buffers)
    stops = [0, *itertools.accumulate(known)]
    return sum(sum(buffers[stops[at] : stops[at + 1]]) for at in fields)


def _num_buffers(type_: pa.DataType) -> int | None:
    """Return how many buffers a column has, its children's included; None for the rarer layouts."""
    if isinstance(type_, pa.BaseExtensionType):
        return _num_buffers(type_.storage_type)
    if pa.types.is_null(type_):
        return 0
    if pa.types.is_dictionary(type_) or pa.types.is_primitive(type_) or pa.types.is_decimal(type_):
        return 2
    if type_ in _TEXTS:
        return 3
    if pa.types.is_fixed_size_binary(type_):
        return 2
    own = 1 if pa.types.is_struct(type_) or pa.types.is_fixed_size_list(type_) else None
    if pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_map(type_):
        own = 2
    inner = [_num_buffers(type_.field(at).type) for at in range(type_.num_fields)]
    known = [count for count in inner if count is not None]
    return None if own is None or len(known) < len(inner) else own + sum(known)


@dataclass(frozen=True, slots=True)
class _Table:
    """A FlatBuffers table: fields of fixed places, each there or not."""

    data: bytes
    at: int

    def place(self, field: int) -> int | None:
        """Return where a field is."""
        rows = self.at - _number("<i", self.data, self.at)
        if 4 + 2 * field >= _number("<H", self.data, rows):
            return None
        offset = _number("<H", self.data, rows + 4 + 2 * field)
        return self.at + offset if offset else None

    def number(self, field: int, form: str) -> int:
        """Return a number, 0 where it is not there."""
        place = self.place(field)
        return 0 if place is None else _number(form, self.data, place)

    def table(self, field: int) -> _Table | None:
        """Return a table."""
        place = self.place(field)
        return None if place is None else _Table(self.data, place + _number("<I", self.data, place))

    def structs(self, field: int, form: struct.Struct) -> Iterator[Any]:
        """Yield the structs of a vector."""
        place = self.place(field)
        if place is not None:
            start = place + _number("<I", self.data, place)
            count = _number("<I", self.data, start)
            stop = start + 4 + count * form.size
            if stop > len(self.data):
                raise struct.error("a vector ends behind its table")
            yield from form.iter_unpack(self.data[start + 4 : stop])


def _number(form: str, data: bytes, at: int) -> int:
    if at < 0:
        raise struct.error("an offset leads before the beginning")
    value: int = struct.unpack_from(form, data, at)[0]
    return value


def _root(data: bytes) -> _Table:
    return _Table(data, _number("<I", data, 0))


class _Reader:
    """Reads a few bytes here and there, with those behind them at once: a read may be a request."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.size: int = raw.size()
        self._at = 0
        self._data = b""

    def read(self, at: int, size: int) -> bytes:
        """Read bytes at a place that the file has named. The file's own position stays."""
        if not 0 <= at <= at + size <= self.size:
            raise struct.error("an offset leads out of the file")
        if not self._at <= at <= at + size <= self._at + len(self._data):
            place = self._raw.tell()
            self._raw.seek(at)
            self._data = self._raw.read(min(max(size, _WINDOW_BYTES), self.size - at))
            self._raw.seek(place)
            self._at = at
        return self._data[at - self._at : at - self._at + size]


def _blocks(reader: _Reader, first: int) -> list[int]:
    """Return where the messages of a file are, dictionaries first, by its footer."""
    end = struct.Struct(f"<i{len(MAGIC)}s")
    length, _ = end.unpack(reader.read(reader.size - end.size, end.size))
    footer = _root(reader.read(reader.size - end.size - length, length))
    dictionaries, batches = ([at for at, _, _ in footer.structs(field, _BLOCK)] for field in (2, 3))
    return dictionaries + batches[first:]


def _stream(reader: _Reader) -> Iterator[int]:
    """Yield where the messages of a stream are."""
    at = 0
    while at + _PREFIX_BYTES <= reader.size:
        start, length = _metadata_at(reader, at)
        if not length:
            return
        yield at
        body = _root(reader.read(start, length)).number(3, "<q")
        if body < 0:
            raise struct.error("a body has less than no bytes")
        at = start + length + body


def _metadata_at(reader: _Reader, at: int) -> tuple[int, int]:
    """Return where the metadata of a message are, and how long."""
    first, second = struct.unpack("<II", reader.read(at, _PREFIX_BYTES))
    return (at + _PREFIX_BYTES, second) if first == _CONTINUES else (at + 4, first)


def _message(reader: _Reader, at: int) -> tuple[int, list[int]]:
    """Return the kind of a message, and the decoded sizes of its buffers."""
    start, length = _metadata_at(reader, at)
    message = _root(reader.read(start, length))
    kind, header = message.number(1, "<B"), message.table(2)
    if kind == _DICTIONARY and header is not None:
        header = header.table(1)
    if kind not in {_DICTIONARY, _BATCH} or header is None:
        return kind, []
    body = start + length
    if header.table(3) is None:
        return kind, [size for _, size in header.structs(2, _BUFFER)]
    return kind, [_decoded(reader, body + offset, size) for offset, size in header.structs(2, _BUFFER)]


def _decoded(reader: _Reader, at: int, stored: int) -> int:
    """Return the decoded size of a compressed buffer; -1 in its place: it was not worth compressing."""
    if not stored:
        return 0
    (size,) = struct.unpack("<q", reader.read(at, _PREFIX_BYTES))
    return int(size) if size >= 0 else stored - _PREFIX_BYTES
