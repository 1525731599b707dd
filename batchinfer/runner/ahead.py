"""Reading begins while the model is loaded: the columns of the steps are known without it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

from batchinfer.engine.reading import Timed, start_reading
from batchinfer.loader.prefetch import Levels

if TYPE_CHECKING:
    import pyarrow as pa

    from batchinfer.config import Job
    from batchinfer.data import Unit
    from batchinfer.engine.room import Room
    from batchinfer.protocols import Preprocessor, Source


class Units(Protocol):
    """The units of a worker, as they are assigned."""

    def units(self, on_arrival: Callable[[Unit], None]) -> Iterator[Unit]:
        """Yield them, until there are no more. Each is told of as soon as it is assigned."""
        ...

    def rewind(self) -> None:
        """Begin anew: end the iterator that was given, and let the next one yield every unit again."""
        ...


class ReadAhead:
    """Reads units in a thread: with columns that are only guessed at first, and anew if they were wrong."""

    def __init__(self, units: Units, source: Source, schema: pa.Schema, room: Room) -> None:
        self._units = units
        self._source = source
        self._schema = schema
        self._room = room
        self._columns: tuple[str, ...] | None = None
        self._chunks: Generator[Timed, None, None] | None = None
        self.levels = Levels()

    def begin(self, columns: tuple[str, ...]) -> Generator[Timed, None, None]:
        """Return what is read of these columns, from the first unit on."""
        if self._chunks is None or columns != self._columns:
            self.close()
            self._columns = columns
            self._chunks = start_reading(
                self._units.units(self._on_arrival(columns)),
                self._source,
                schema=self._schema,
                columns=columns,
                room=self._room,
                levels=self.levels,
            )
        return self._chunks

    def _on_arrival(self, columns: Sequence[str]) -> Callable[[Unit], None]:
        """Return what lets a far source open a unit before its turn has come."""
        ahead: Callable[..., None] | None = getattr(self._source, "ahead", None)
        if ahead is None:
            return lambda _: None
        return partial(ahead, schema=self._schema, columns=columns)

    def close(self) -> None:
        """Stop reading."""
        if self._chunks is not None:
            self._units.rewind()
            self._chunks.close()
            self._chunks = None
            if hasattr(self._source, "close"):
                self._source.close()


def columns_before_model(
    job: Job, schema: pa.Schema, steps: Sequence[Preprocessor]
) -> tuple[str, ...] | None:
    """Return the columns that the steps and the output need, in the schema's order; None where a step
    takes whatever there is, or where there is none: then the model says."""
    needed = set(job.output.carry)
    for step in steps:
        columns = step.input_columns()
        if columns is None:
            return None
        needed |= columns
    return tuple(name for name in schema.names if name in needed) if steps else None
