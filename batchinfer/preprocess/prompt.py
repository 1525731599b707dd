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


class PromptOptions(Options):
    """Columns to a text."""

    template: str | None = None
    """A Jinja template over the columns: `Classify: {{ title }}`."""

    template_file: ContentPath | None = None
    """A file with the template, instead."""

    to: str = "prompt"
    """Name of the column to add."""

    max_chars: int = Field(default=1_000_000, ge=1)
    """A row whose text grows longer fails."""

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
        """Add the text column."""
        return with_field(schema, pa.field(self._options.to, pa.string()))

    def encode(self, rows: pa.RecordBatch) -> Encoded:
        """Render the template for each row; a null is None in it."""
        template, names = self._compiled
        texts: list[str | None] = []
        failed: dict[int, Failure] = {}
        for row, values in enumerate(rows.select(sorted(names)).to_pylist()) if names else _empty(rows):
            try:
                text = template.render(values)
            except Exception as error:  # noqa: BLE001 - a template can raise anything
                failed[row] = Failure(ErrorCode.USER, f"the template failed: {type(error).__name__}: {error}")
                text = None
            if text is not None and len(text) > self._options.max_chars:
                limit = self._options.max_chars
                failed[row] = Failure(
                    ErrorCode.USER, f"the text has {len(text)} characters, max_chars is {limit}"
                )
                text = None
            texts.append(text)
        field = pa.field(self._options.to, pa.string())
        return Encoded(with_column(rows, field, pa.array(texts, pa.string())), failed)

    @functools.cached_property
    def _compiled(self) -> tuple[Any, frozenset[str]]:
        import jinja2
        from jinja2 import meta
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
        where = self._options.template_file
        try:
            text = self._options.template if where is None else Path(where).read_text(encoding="utf-8")
            assert text is not None
            names = frozenset(meta.find_undeclared_variables(environment.parse(text)))
            return environment.from_string(text), names
        except jinja2.TemplateSyntaxError as error:
            raise ContractError(
                f"the template is wrong in line {error.lineno}: {error.message}", where=where
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise ContractError(f"the template cannot be read: {error}", where=where) from error


def _empty(rows: pa.RecordBatch) -> Any:
    return enumerate([{}] * rows.num_rows)
