"""Add or replace a column, in a schema and in rows alike."""

from __future__ import annotations

import pyarrow as pa


def with_field(schema: pa.Schema, field: pa.Field) -> pa.Schema:
    """Return the schema with this field, in the place of one of the same name."""
    at = schema.get_field_index(field.name)
    return schema.append(field) if at < 0 else schema.set(at, field)


def with_column(rows: pa.RecordBatch, field: pa.Field, column: pa.Array) -> pa.RecordBatch:
    """Return the rows with this column, in the place of one of the same name."""
    at = rows.schema.get_field_index(field.name)
    return rows.append_column(field, column) if at < 0 else rows.set_column(at, field, column)
