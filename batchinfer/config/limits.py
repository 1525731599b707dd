"""The section `limits` of a job file."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Self

from batchinfer.config.sections import Count, Seconds
from batchinfer.options import Field, Options, field_validator, model_validator, neutral


class LimitsOptions(Options):
    """What ends a run early."""

    deadline: str | Seconds | None = neutral(None)
    """When the run stops, with exit code 75: seconds after its start, or a time such as
    `2026-10-01T06:00:00+02:00`. A unit that would not be done by then is not begun."""

    max_rows: Count | None = neutral(None)
    """Rows after which it stops, at the border of a unit; the same command does the next ones."""

    max_device_hours: Annotated[float, Field(gt=0)] | None = neutral(None)
    """Hours of all its devices together after which it stops. A run that goes on counts anew."""

    price_per_device_hour: Annotated[float, Field(gt=0)] | None = neutral(None)
    """What an hour of one device costs, in any currency."""

    max_cost: Annotated[float, Field(gt=0)] | None = neutral(None)
    """Cost after which it stops, by `price_per_device_hour`. A run that goes on counts anew."""

    grace: Seconds = neutral(8.0)
    """Seconds to finish what is being committed after SIGTERM or SIGINT."""

    @field_validator("deadline")
    @classmethod
    def _time(cls, value: str | float | None) -> str | float | None:
        if isinstance(value, str):
            try:
                known = dt.datetime.fromisoformat(value)
            except ValueError:
                known = None
            if known is None or known.tzinfo is None:
                example = "2026-10-01T06:00:00+02:00"
                raise ValueError(f"must be seconds, or a time with its zone such as {example}, got {value!r}")
        return value

    @model_validator(mode="after")
    def _priced(self) -> Self:
        if self.max_cost is not None and self.price_per_device_hour is None:
            raise ValueError("max_cost needs price_per_device_hour")
        return self
