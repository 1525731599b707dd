"""How a failed row is recorded in an output."""

from __future__ import annotations

import pyarrow as pa

ERROR_TYPE = pa.struct(
    [
        ("stage", pa.string()),
        ("code", pa.string()),
        ("message", pa.string()),
        ("attempts", pa.int32()),
        ("source", pa.string()),
        ("row", pa.int64()),
    ]
)
"""Type of the `_error` column: null for a row that succeeded. Fixed, also where no row ever fails."""
