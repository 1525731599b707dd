"""What a job file may say: the sections, and the keys that every source, backend and sink shares.

A source, backend or sink extends its section with keys of its own (`csv` adds `delimiter`).
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated, Any, Literal, Self

from batchinfer.config.error_section import share
from batchinfer.config.lineage import OpenLineageOptions
from batchinfer.config.nested import CanaryOptions
from batchinfer.config.observe import Address, PromFile, PushgatewayOptions
from batchinfer.options import (
    Bytes,
    ByteText,
    ContentPath,
    EntryPoint,
    Field,
    JobPath,
    Options,
    Secret,
    field_validator,
    model_validator,
    neutral,
)

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]
StorageOptions = Annotated[dict[str, Any], Secret()]
SecretText = Annotated[str, Secret()]

_JOB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DEVICE = re.compile(r"cpu|(cuda|simulated):[0-9]+")
_MAX_BUCKETS = 32


def _once(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Refuse a name that is listed twice."""
    twice = sorted(name for name, count in Counter(names or ()).items() if count > 1)
    if twice:
        raise ValueError(f"names {', '.join(map(repr, twice))} more than once")
    return names


class JobHead(Options):
    """What the job is called."""

    job: str
    """The job's name: letters, digits, `.`, `_` and `-`. It stands in logs, metrics and metadata."""

    version: Literal[1] = 1
    """Version of the job file's format."""

    description: str | None = None
    """A sentence for those who find the job later."""

    labels: dict[str, str] = Field(default_factory=dict)
    """Labels of your own, such as `team: search`."""

    @field_validator("job")
    @classmethod
    def _name(cls, value: str) -> str:
        if not _JOB_NAME.fullmatch(value):
            raise ValueError(f"must be letters, digits, '.', '_' and '-', at most 63 of them, got {value!r}")
        return value


class InputOptions(Options):
    """Which rows to read, and from where."""

    path: JobPath | tuple[JobPath, ...]
    """Files, folders or globs, local or s3://, gs://, az://, memory://; one or a list."""

    format: str = "parquet"
    """parquet, jsonl, csv, arrow or files; guessed from the path's suffix where it has one."""

    storage_options: StorageOptions = neutral(dict, repr=False)
    """What the store's client needs (endpoint_url, region, key, secret, anonymous); from `${env:NAME}`."""

    partitioning: Literal["hive", "none"] = "hive"
    """Read `name=value` folders as columns, or ignore them."""

    columns: tuple[str, ...] | None = None
    """Columns the job may use; by default those that its steps, model and output name."""

    where: str | None = None
    """Keep only rows for which this holds: `country in ('DE', 'FR') and price > 10`."""

    limit: Count | None = None
    """Read at most so many rows, the first ones, after `where` and `sample`."""

    sample: str | None = None
    """Keep a stable share of the rows, such as `1%`: the same rows every time."""

    incremental: bool = neutral(default=False)
    """Once the output is complete, run only the files that came since, and keep the parts there are."""

    _sample_share = field_validator("sample", mode="before")(share)
    _columns_once = field_validator("columns")(_once)

    @model_validator(mode="after")
    def _whole_files(self) -> Self:
        if self.incremental and self.limit is not None:
            raise ValueError("limit and incremental exclude each other: files are complete or not")
        return self


class ModelOptions(Options):
    """Which model runs, and how its inputs and outputs are named."""

    backend: str
    """onnx, torch, transformers, python or simulated; guessed from the path where that is certain."""

    path: ContentPath | None = None
    """The model file or folder."""

    entry: EntryPoint | None = None
    """`module:name` of a factory (torch) or class (python)."""

    version: str | None = None
    """Your name for this model, recorded in the output's metadata."""

    sha256: str | None = neutral(None)
    """Refuse the model unless its file has this sha256."""

    inputs: dict[str, str] = Field(default_factory=dict)
    """Model input -> column, where the names differ."""

    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Number format of the computation. Half precision is for GPUs."""

    canary: CanaryOptions | None = neutral(None)
    """A golden batch, which every worker computes once its model is loaded: a device that gives other results
    gets no work."""

    forbid_nan: bool = False
    """Refuse rows whose float inputs hold NaN or infinity."""

    allow_unsafe_model: bool = neutral(default=False)
    """Load model formats that can run code (pickles, .pt2, TorchScript). Only for files you trust."""

    @field_validator("sha256")
    @classmethod
    def _hex(cls, value: str | None) -> str | None:
        if value is not None and not _SHA256.fullmatch(value):
            raise ValueError("must be 64 lower-case hex digits")
        return value


class BatchingOptions(Options):
    """How rows are put together for one forward pass."""

    size: Count | ByteText | Literal["auto"] = "auto"
    """Rows of a batch; or padded tokens, or bytes, see `by`. Text such as 8MiB counts bytes. auto: what
    `batchinfer tune` measured for this model on this device, else by rule. An output that has begun keeps
    its size."""

    by: Literal["auto", "rows", "tokens", "bytes"] = "auto"
    """What `size` counts. rows; tokens, padding included; bytes of the model's inputs as they reach the
    device, padding included (a row larger than that is a batch of its own). auto: bytes where `size` is text
    such as 8MiB, rows where it is a number; else tokens where an input is ragged."""

    window_rows: Count | Literal["auto"] = "auto"
    """Rows within which ragged inputs are sorted by length. The output keeps the source order. auto: some
    hundred batches, 4,096 rows at least and 32,768 at most."""

    buckets: Literal["auto", "none"] | Count | tuple[Count, ...] = "auto"
    """Give batches one of few shapes, so that what is compiled or captured for a shape is used again: ragged
    inputs are padded to one of so many lengths (32 at most), or to those of a list in ascending order, and
    missing rows are made up. auto: 32 where the model is prepared for each shape (`model.compile`,
    `model.cuda_graphs`), else none."""

    packed: bool | Literal["auto"] = "auto"
    """Put rows one after the other into one sequence, without padding, where the model can be told where they
    begin: transformers encoders that embed, with `inputs_are: tokens`. auto: on a GPU, where that gives the
    same vectors and no postprocess step runs code of yours."""

    @field_validator("buckets")
    @classmethod
    def _few_buckets(cls, value: str | int | tuple[int, ...]) -> str | int | tuple[int, ...]:
        count = len(value) if isinstance(value, tuple) else value
        if isinstance(count, int) and not 1 <= count <= _MAX_BUCKETS:
            raise ValueError(f"must be 1 to {_MAX_BUCKETS} lengths, got {count}")
        if isinstance(value, tuple) and list(value) != sorted(set(value)):
            raise ValueError(f"must be lengths in ascending order, got {list(value)}")
        return value

    @model_validator(mode="after")
    def _text_means_bytes(self) -> Self:
        if self.size != "auto" and isinstance(self.size, str) and self.by not in {"auto", "bytes"}:
            raise ValueError(
                f"size {self.size!r} counts bytes, and by says {self.by}: write a number, or by: bytes"
            )
        return self


class OutputOptions(Options):
    """Where results go, and what they hold."""

    path: JobPath = neutral(...)
    """An empty folder, or one that this very job has begun."""

    format: str = "parquet"
    """parquet or jsonl."""

    storage_options: StorageOptions = neutral(dict, repr=False)
    """What the store's client needs; from `${env:NAME}`."""

    carry: tuple[str, ...] = ()
    """Input columns to copy into the output."""

    columns: dict[str, str] | None = None
    """Result columns and their types (`embedding: "float32[384]"`); by default every result, typed
    as the model and the steps say."""

    partition_by: tuple[str, ...] = ()
    """Carried columns that become hive folders (`dt=2026-10-01/`)."""

    meta: tuple[Literal["_source", "_row", "_model_version", "_run"], ...] = ()
    """Provenance columns to add: source file, row in it, model version, run id."""

    commit: Literal["conditional", "deterministic", "single-writer"] = neutral("conditional")
    """How a unit becomes visible. The other two are for stores without conditional writes."""

    _names_once = field_validator("carry", "partition_by", "meta")(_once)


class CheckpointOptions(Options):
    """How much work a crash can cost."""

    unit_rows: Count | Literal["auto"] = neutral("auto")
    """Rows of a unit, the piece that is published and restarted as one. auto: about 128 MiB of
    input, or an eighth of a worker's `compute.host_memory`; at most 65,536 rows."""

    every: Seconds | None = neutral(60.0)
    """Seconds after which the finished batches of a unit that takes longer are put aside, so that a
    restart goes on from them; null never does."""

    spill_bytes: Count = neutral(256 * 1024 * 1024)
    """Bytes that are put aside for one unit, at most."""


class ComputeOptions(Options):
    """What the run may use of this machine. Changes nothing in the output."""

    devices: Literal["auto", "cpu"] | Count | tuple[str, ...] = neutral("auto")
    """auto: every GPU, else the CPU; `cpu`; a number of GPUs; or a list such as [cuda:0, cuda:1]. The
    simulated backend has as many devices as a list names: [simulated:0, simulated:1]."""

    workers_per_device: Count | Literal["auto"] = neutral("auto")
    """Worker processes that share a device. auto: what `batchinfer tune` measured, where `concurrency` and
    `threads` are left open as well; else 1."""

    concurrency: Count | Literal["auto"] = neutral("auto")
    """Batches that a worker computes at once on a CPU, by a model that several threads may call. auto: as
    many as it has cores for an ONNX model, else 1."""

    threads: Count | Literal["auto"] = neutral("auto")
    """Intra-op threads of each batch. auto: the cores, divided by the workers and their concurrency."""

    readers: Count | Literal["auto"] = neutral("auto")
    """Threads, or processes (see `loaders`), that encode rows in each worker."""

    loaders: Literal["auto", "threads", "processes"] = neutral("auto")
    """Where the preprocessing steps run. threads: in the worker. processes: in `readers` processes of
    their own, which do not hold up the worker, and whose death costs no more than the rows that caused it.
    auto: processes where a step runs code of yours."""

    host_memory: Bytes | Literal["auto"] = neutral("auto")
    """Memory for the rows on their way, all workers together: bytes, or text such as 4GiB. The model and
    its libraries come on top. auto: 512 MiB for each worker on a CPU, 1 GiB on a GPU."""

    affinity: Literal["auto", "none"] = neutral("auto")
    """auto: a GPU's worker and its loaders stay on the CPU cores next to it, where the machine has several
    NUMA nodes and those cores are enough for its readers."""

    determinism: Literal["rows", "bit"] = neutral("rows")
    """What the rows beside one that fails may count on. rows: their results, computed in smaller batches, as
    equal as those of any other batch size. bit: the very bits of a batch in which nothing failed; that
    takes one forward pass more, and a batch that does not fit into memory ends the run."""

    claims: Literal["auto", "static", "lease"] = neutral("auto")
    """How several processes on one output share it. static: every n-th unit, by `--shard i/n`.
    lease: blocks of units, claimed as they are needed and taken over from the dead. auto: static
    with `--shard`; in a Kubernetes Job whose completions are not known, lease."""

    heartbeat: Seconds = neutral(15.0)
    """Seconds between two signs of life of a process; one that gave none for four times as long is
    taken for dead by the others."""

    stall_timeout: Seconds | Literal["auto"] = neutral("auto")
    """Seconds without a batch after which a worker is taken for hung, and replaced; always at least
    ten times the slow batches of the run. auto: 360, longer than a store may keep it waiting."""

    @field_validator("devices")
    @classmethod
    def _known_devices(cls, value: str | int | tuple[str, ...]) -> str | int | tuple[str, ...]:
        if isinstance(value, tuple):
            wrong = [name for name in value if not _DEVICE.fullmatch(name)]
            if wrong or not value:
                named = f", got {wrong[0]!r}" if wrong else ""
                raise ValueError(f"must list 'cpu' or devices such as 'cuda:0'{named}")
            _once(value)
        return value


class ObserveOptions(Options):
    """How the run shows itself. Changes nothing in the output."""

    interval: Seconds = neutral(30.0)
    """Seconds between two progress lines where the output is no terminal."""

    log_file: JobPath | None = neutral(None)
    """A local file to which the run is appended as lines of JSON, beside what the terminal shows;
    `run --log-file` takes its place."""

    pushgateway: PushgatewayOptions | None = neutral(None)
    """Push metrics to a Prometheus Pushgateway."""

    listen: Address | None = neutral(None)
    """HOST:PORT on which this process answers `/metrics`, `/healthz` and `/readyz`, such as 127.0.0.1:9400;
    with port 0, on one that is free."""

    textfile: PromFile | None = neutral(None)
    """A file NAME.prom for the textfile collector of node_exporter, written anew at every `interval`."""

    compat_names: bool = neutral(False)
    """Give the metrics under common names without a prefix too, such as `inference_requests_total`."""
    openlineage: OpenLineageOptions | None = neutral(None)
    """Send OpenLineage events: START, and COMPLETE, ABORT or FAIL, with the input and output paths. Needs
    `pip install 'batchinfer-pipeline[openlineage]'`."""
