"""What every input format checks about its section when the job file is read."""

from __future__ import annotations

from batchinfer.config.sections import InputOptions
from batchinfer.options import field_validator
from batchinfer.sources.select import parse_share
from batchinfer.sources.where import parse_where


class SourceOptions(InputOptions):
    """Which rows to read, and from where."""

    @field_validator("where")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        if value is not None:
            parse_where(value)
        return value

    @field_validator("sample")
    @classmethod
    def _share(cls, value: str | None) -> str | None:
        if value is not None:
            parse_share(value)
        return value

    @property
    def patterns(self) -> tuple[str, ...]:
        """The paths and globs of `input.path`, one or more."""
        return (self.path,) if isinstance(self.path, str) else self.path
