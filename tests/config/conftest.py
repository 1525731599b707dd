"""Stand-ins for the components that a job file names: this room is tested without the others."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest

from batchinfer import registry
from batchinfer.config.sections import InputOptions, ModelOptions, OutputOptions
from batchinfer.options import (
    ContentPath,
    EntryPoint,
    Field,
    JobPath,
    Options,
    Secret,
    field_validator,
    neutral,
)

MINIMAL = """\
job: product-embeddings
input:
  path: data/*.parquet
model:
  path: model.onnx
output:
  path: out
"""


class CsvOptions(InputOptions):
    """Rows of a text table."""

    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    """The character between two fields."""


class OnnxOptions(ModelOptions):
    """An ONNX model."""

    providers: tuple[Literal["cuda", "cpu"], ...] | None = None
    """Providers in the order in which they are tried."""


class EndpointOptions(ModelOptions):
    """A model behind a URL, whose checks repeat what they got."""

    api_key: Annotated[str, Secret()] = neutral("", repr=False)
    """Comes from `${env:NAME}`."""

    @field_validator("api_key")
    @classmethod
    def _long(cls, value: str) -> str:
        if value.startswith("bad"):
            raise ValueError(f"is no key: {value!r}")
        return value


class JsonlOutputOptions(OutputOptions):
    """JSON lines."""

    compression: Literal["zstd", "gzip", "none"] = "zstd"
    """How a part is compressed."""


class TokenizeOptions(Options):
    """Text to token ids."""

    column: str
    """The text column."""

    tokenizer: ContentPath
    """A tokenizer.json."""

    max_length: Annotated[int, Field(ge=1, le=8192)] = 256
    """Longest row in tokens; the rest is cut."""

    truncate: bool = True
    """Cut rows that are longer; else they fail."""

    processes: int = neutral(0)
    """Processes that tokenize."""


class PythonOptions(Options):
    """A function of the user's."""

    shorthand: ClassVar[str] = "function"
    function: EntryPoint
    """`module:name`."""


class CropOptions(Options):
    """Part of an image."""

    width: int
    height: int = 224


class ImageOptions(Options):
    """Pixels."""

    column: str = "image"
    crops: tuple[CropOptions, ...] = ()
    """Crops, several to an image."""

    cache: JobPath | None = None
    """Where decoded images are kept."""


class RenameOptions(Options):
    """New names for results."""

    shorthand: ClassVar[str] = "names"
    names: dict[str, str]
    """Old name -> new name."""


class SoftmaxOptions(Options):
    """Probabilities."""

    shorthand: ClassVar[str] = "from"
    from_: str | None = Field(default=None, alias="from")
    temperature: Annotated[float, Field(gt=0)] = 1.0


COMPONENTS: dict[str, dict[str, type[Options]]] = {
    "sources": {"parquet": InputOptions, "csv": CsvOptions},
    "preprocessors": {"tokenize": TokenizeOptions, "python": PythonOptions, "image": ImageOptions},
    "backends": {
        "endpoint": EndpointOptions,
        "onnx": OnnxOptions,
        "torch": ModelOptions,
        "transformers": ModelOptions,
        "python": ModelOptions,
    },
    "postprocessors": {"rename": RenameOptions, "softmax": SoftmaxOptions, "python": PythonOptions},
    "sinks": {"parquet": OutputOptions, "jsonl": JsonlOutputOptions},
}


@pytest.fixture(autouse=True)
def _components(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if getattr(request.module, "REAL_COMPONENTS", False):
        return
    module = types.ModuleType("config_stand_ins")
    built_in: dict[str, dict[str, str]] = {}
    for kind, classes in COMPONENTS.items():
        for name, options in classes.items():
            setattr(module, f"{kind}_{name}", type(name, (), {"Options": options}))
            built_in.setdefault(kind, {})[name] = f"config_stand_ins:{kind}_{name}"
    monkeypatch.setitem(sys.modules, "config_stand_ins", module)
    monkeypatch.setattr(registry, "BUILT_IN", built_in)


@pytest.fixture
def minimal() -> str:
    """Return the smallest job file."""
    return MINIMAL


@pytest.fixture
def job_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str | bytes], str]:
    """Write `job.yaml` in an empty folder, make it the working directory, and return its name."""
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes) -> str:
        data = text.encode() if isinstance(text, str) else text
        (tmp_path / "job.yaml").write_bytes(data)
        return "job.yaml"

    return write
