"""The `errors` section of a job file: what becomes of rows that fail, and how many may."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from batchinfer.config.nested import RetryOptions
from batchinfer.options import Field, Options, field_validator, model_validator, neutral

_SHARE = re.compile(r"(100(\.0*)?|[0-9]{1,2}(\.[0-9]+)?)%")


def share(value: object) -> object:
    """Return a value unless it is text, or a fraction, that is no share of rows. Raises ValueError."""
    if isinstance(value, float) or (isinstance(value, str) and not _SHARE.fullmatch(value)):
        raise ValueError(f"must be a share from 0% to 100% such as '0.1%', got {value!r}")
    return value


def rows_allowed(most: str | int, rows: int) -> float:
    """Return how many of so many rows may fail, by a count or a share."""
    return most if isinstance(most, int) else float(most.rstrip("%")) / 100 * rows


class ErrorsOptions(Options):
    """What to do about rows that fail."""

    on_error: Literal["record", "fail"] = "record"
    """record: go on without the row, and record why. fail: stop at the first one."""

    to: Literal["column", "separate"] = "column"
    """Where failed rows are recorded. column: in the part, with nulls and the reason in `_error`. separate:
    in a table beside the parts, which then hold the good rows alone and no `_error`; for Parquet whose units
    have one part each. `batchinfer errors` reads both."""

    keep_input: bool = False
    """Record a failed row's input columns too, as JSON text of at most 64 KiB in the column `_input`: bytes
    as base64, and what is too long left out. Never otherwise."""

    max: str | Annotated[int, Field(ge=0)] = neutral("0.1%")
    """Failed rows above which the run ends with exit code 3: a count, or a share of all rows (`0.1%`); those
    that earlier runs left in the output count as well. It ends early once there are too many for the whole
    input, or when none of the first 1,000 succeeded, of all or of those that one process tried, unless all
    rows may fail or more than those."""

    max_per_partition: str | Annotated[int, Field(ge=0)] | None = neutral(None)
    """Failed rows of any one hive partition of the input, or of any one folder where there are no such
    partitions, above which the run ends with exit code 3: a count, or a share of its rows."""

    retry: RetryOptions = neutral(RetryOptions)
    """Calls of steps and of the model that failed for a reason that may pass are made again, after waits that
    double from half a second to 30 s, with jitter. Passing reasons are told by an error's type, and by its
    errno, HTTP or gRPC status, never by its text."""

    check_finite: bool = False
    """Fail the rows whose results hold NaN or infinity; also where the model gave NaN, and a step that
    follows would hide it."""

    _shares = field_validator("max", "max_per_partition", mode="before")(share)

    @model_validator(mode="after")
    def _records(self) -> Self:
        if self.on_error == "fail" and (self.to == "separate" or self.keep_input):
            asked = "to: separate" if self.to == "separate" else "keep_input"
            raise ValueError(f"on_error: fail records no row, so {asked} has nothing to do: leave one out")
        return self
