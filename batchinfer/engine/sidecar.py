"""Failed rows in a table of their own (`errors.to: separate`): taken out of a unit's rows, and encoded.

Its columns are those of the parts but the results, `_error`, `_input` where that is kept, and `_position`:
where the row would stand in its part, counted over good and failed rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from batchinfer.sinks.parquet import ParquetOptions, ParquetSink

APART = ("_error", "_input")
"""Columns that say why a row failed, and never stand in a part whose failed rows are apart."""

POSITION = "_position"

SIDECAR = "batchinfer.sidecar"
"""Under which key a part's metadata names the file with its failed rows."""


@dataclass(frozen=True, slots=True)
class Apart:
    """Takes failed rows out. `results` are the columns that a failed row has not got."""

    results: tuple[str, ...]

    def split(self, rows: pa.Table, *, at: int) -> tuple[pa.Table, list[pa.Table]]:
        """Return the rows that went well, as a part holds them, and a table of the others, if there are any.

        `at` is how many rows of the part came before.
        """
        column = rows["_error"]
        good = rows.drop_columns([name for name in APART if name in rows.column_names])
        if column.null_count == rows.num_rows:
            return good, []
        has_failed = column.is_valid().combine_chunks()
        positions = np.flatnonzero(has_failed.to_numpy(zero_copy_only=False))
        kept = np.setdiff1d(np.arange(rows.num_rows), positions)
        failed = rows.take(positions).drop_columns(list(self.results))
        return good.take(kept), [failed.append_column(POSITION, pa.array(positions + at, pa.int64()))]


def sidecar_sink() -> ParquetSink:
    """Return what encodes and reads tables of failed rows."""
    return ParquetSink(ParquetOptions.model_construct())


def encode_failed(rows: pa.Table, metadata: Mapping[str, str]) -> pa.Buffer:
    """Encode failed rows as one Parquet file: the same bytes for the same rows."""
    encoder = sidecar_sink().begin(rows.schema, metadata)
    encoder.write(rows)
    counts = {"batchinfer.rows": str(rows.num_rows), "batchinfer.rows_error": str(rows.num_rows)}
    return encoder.finish(counts)
