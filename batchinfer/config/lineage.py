"""The keys of `observe.openlineage`."""

from __future__ import annotations

from typing import Annotated, Self

from batchinfer.options import Field, JobPath, Options, Secret, model_validator, neutral


class OpenLineageOptions(Options):
    """Where the run tells which data it made of which."""

    url: Annotated[str, Secret()] | None = neutral(None, repr=False)
    """The service, such as http://marquez:5000; events go to its /api/v1/lineage."""

    file: JobPath | None = neutral(None)
    """A file to which events are appended instead, one JSON object to a line."""

    api_key: Annotated[str, Secret()] | None = neutral(None, repr=False)
    """Sent as a bearer token; from `${env:NAME}`."""

    namespace: str = neutral("batchinfer")
    """The namespace that the job's name is unique in."""

    timeout: Annotated[float, Field(gt=0)] = neutral(5.0)
    """Seconds after which an event is given up."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.url is None) == (self.file is None):
            raise ValueError("needs either url or file")
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise ValueError("url must be an http:// or https:// URL")
        return self
