"""`prompt`: a text per row from a template over its columns, sandboxed."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from batchinfer.data import Encoded, ErrorCode, Failure
from batchinfer.errors import ContractError
from batchinfer.options import ContentPath, Field, Options, model_validator
from batchinfer.preprocess.appending import with_column, with_field
from batchinfer.preprocess.row_values import python_values

_REASON_CHARS = 200


class PromptOptions(Options):
    """Columns to a text."""

    template: str | None = None
    """A Jinja template over the columns: `Classify: {{ title }}`."""

    template_file: ContentPath | None = None
    """A file with the template, instead."""

    to: str = "prompt"
    """Name of the column to add."""

    max_chars: int = Field(default=1_000_000, ge=1)
    """A row whose text grows longer fails, as soon as it does."""

    @model_validator(mode="after")
    def _one(self) -> PromptOptions:
        if (self.template is None) == (self.template_file is None):
            raise ValueError("needs either template or template_file")
        return self


class Prompt:
    """Renders with Jinja's immutable sandbox: a template reaches its row and nothing else."""

    Options = PromptOptions
    shorthand: ClassVar[str] = "template"

    def __init__(self, options: PromptOptions) -> None:
        self._options = options

    def input_columns(self) -> frozenset[str]:
        """Columns that the template names. Raises ContractError for a template that is none."""
        return self._compiled[1]

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        """Add the text column. Raises ContractError for bytes, which a template would show as Python does."""
        for name in sorted(self._compiled[1]):
            type_ = schema.field(name).type
            if pa.types.is_binary(type_) or pa.types.is_large_binary(type_):
                raise ContractError(
                    f"column {name!r} has type {type_}, and a template takes no bytes",
                    hint="decode the bytes by a python step",
                )
        return with_field(schema, self._field)

    def encode(self, rows: pa.RecordBatch) -> Encoded:
        """Render the template for each row; a null is None in it. What fails in one row costs that row."""
        template, names = self._compiled
        failed: dict[int, Failure] = {}
        columns = {}
        for name in sorted(names):
            columns[name], unread = python_values(name, _in_microseconds(rows[name]))
            failed.update(unread)
        texts: list[str | None] = []
        for row in range(rows.num_rows):
            text = None
            if row not in failed:
                text = self._rendered(template, {name: values[row] for name, values in columns.items()})
            if isinstance(text, Failure):
                failed[row], text = text, None
            texts.append(text)
        return Encoded(with_column(rows, self._field, pa.array(texts, pa.string())), failed)

    @property
    def _field(self) -> pa.Field:
        return pa.field(self._options.to, pa.string())

    def _rendered(self, template: Any, values: dict[str, Any]) -> str | Failure:
        """Return the text of one row, or why there is none."""
        limit = self._options.max_chars
        pieces: list[str] = []
        length = 0
        try:
            # Piece by piece: a loop that runs away is stopped at the limit, not at the end of memory.
            for piece in template.generate(values):
                pieces.append(piece)
                length += len(piece)
                if length > limit:
                    return Failure(ErrorCode.USER, f"the text is longer than max_chars, which is {limit}")
            text = "".join(pieces)
            text.encode()
        except Exception as error:  # noqa: BLE001 - a template can raise anything
            why = f"{type(error).__name__}: {error}"[:_REASON_CHARS]
            return Failure(ErrorCode.USER, f"the template failed: {why}")
        return text

    @functools.cached_property
    def _compiled(self) -> tuple[Any, frozenset[str]]:
        import jinja2
        from jinja2 import meta
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
        # The same row gives the same text: no chance in it.
        del environment.globals["lipsum"], environment.filters["random"]
        where = self._options.template_file
        try:
            text = self._options.template if where is None else Path(where).read_text(encoding="utf-8")
            assert text is not None
            tree = environment.parse(text)
            if others := sorted(map(str, meta.find_referenced_templates(tree))):
                raise ContractError(
                    f"the template asks for another one, {others[0]!r}, and there is only this one",
                    where=where,
                    hint="write it out in place of the include, import or extends",
                )
            return environment.from_string(text), frozenset(meta.find_undeclared_variables(tree))
        except jinja2.TemplateSyntaxError as error:
            raise ContractError(
                f"the template is wrong in line {error.lineno}: {error.message}", where=where
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise ContractError(f"the template cannot be read: {error}", where=where) from error


def _in_microseconds(column: pa.Array) -> pa.Array:
    """Cut nanoseconds off: Python's times have none, and what shows them depends on what is installed."""
    unit = getattr(column.type, "unit", None)
    if unit != "ns" or pa.types.is_dictionary(column.type):
        return column
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.timestamp("us", column.type.tz), safe=False)
    shorter = pa.duration("us") if pa.types.is_duration(column.type) else pa.time64("us")
    return column.cast(shorter, safe=False)
