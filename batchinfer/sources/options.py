"""What every input format checks about its section when the job file is read."""

from __future__ import annotations

from batchinfer import tensors
from batchinfer.config.sections import InputOptions
from batchinfer.options import field_validator
from batchinfer.sources.sampling import parse_share
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
        """The paths and globs of `input.path`, one or more; local ones as plain paths."""
        paths = (self.path,) if isinstance(self.path, str) else self.path
        return tuple(path.removeprefix("file://") for path in paths)


class TextOptions(SourceOptions):
    """Files whose types are guessed."""

    types: dict[str, str] = {}
    """Types of columns (`zip: string`) where the first 4 MiB of a file do not tell."""

    @field_validator("types")
    @classmethod
    def _known(cls, value: dict[str, str]) -> dict[str, str]:
        for text in value.values():
            tensors.parse_type(text)
        return value
