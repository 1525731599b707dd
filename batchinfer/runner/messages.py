"""What parent and worker say to each other: JSON in frames, over two pipes. No pickles cross the border."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, TypeAdapter

from batchinfer.data import Poison, Receipt, Suspect, TensorSpec, Unit
from batchinfer.frames import Unframer, frame


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Parent to worker, once: the job, the plan's frame, and the worker's place on this machine.

    To `check` is to load the model and try the contract, to `describe` only to load the model, to `try` is to
    measure how fast batches are computed; for a `canary`, the first rows of the one unit are computed and
    written to the file of that name. `model_hash` names what the model and its libraries are; `is_sound` says
    that rows of the job went well in an earlier run.
    """

    job: dict[str, Any]
    schema: str
    run: str
    worker: int
    device: str
    threads: int
    concurrency: int
    memory_bytes: int
    layout: dict[str, Any]
    metadata: dict[str, str]
    model_state: dict[str, str] = field(default_factory=dict)
    measure: bool = False
    purpose: Literal["run", "check", "describe", "canary", "try"] = "run"
    canary: str = ""
    model_hash: str = ""
    is_sound: bool = False
    kind: Literal["start"] = "start"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expect:
    """Parent to worker, before `Start` if at all: what it will need, to be imported while the plan is made.

    `environment` are variables that libraries read when they are imported, `components` are kinds and
    names as the registry has them.
    """

    environment: dict[str, str]
    components: tuple[tuple[str, str], ...]
    device: str
    kind: Literal["expect"] = "expect"


@dataclass(frozen=True, slots=True, kw_only=True)
class Assign:
    """Parent to worker: do this unit after those before it. `spilled`: some of it may be done already;
    `is_sound`: rows of the run went well by now.

    `suspects` and `poison` are what the deaths of earlier workers have shown of its rows.
    """

    unit: Unit
    spilled: bool = False
    is_sound: bool = False
    suspects: tuple[Suspect, ...] = ()
    poison: tuple[Poison, ...] = ()
    kind: Literal["assign"] = "assign"


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """Parent to worker: the plan stands. What is computed may be written to the output from now on."""

    kind: Literal["publish"] = "publish"


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """Parent to worker: compute batches that are cut so, for so many seconds; for none, only get ready for
    it. `settings` are keys of the job's `batching`."""

    settings: dict[str, int | str]
    seconds: float
    kind: Literal["try"] = "try"


@dataclass(frozen=True, slots=True)
class Computing:
    """A batch that was computed: from when to when, by a clock that all processes share, its rows, and its
    tokens without padding."""

    began: float
    ended: float
    rows: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """Worker to parent: what came of it. `memory` is the share of the device's memory that was needed,
    at most; None where nobody knows. `is_whole`: there are no rows for larger batches."""

    began: float = 0.0
    ended: float = 0.0
    batches: tuple[Computing, ...] = ()
    memory: float | None = None
    out_of_memory: bool = False
    is_whole: bool = False
    kind: Literal["tried"] = "tried"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Parent to worker: finish (`drain`) what was assigned, or drop what is not yet being committed."""

    drain: bool
    kind: Literal["stop"] = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """Worker to parent: the model is loaded and the job's parts fit each other."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    output_schema: str | None
    settings: dict[str, str]
    load_s: float
    lanes: int = 1
    hints: tuple[str, ...] = ()
    kind: Literal["ready"] = "ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchNote:
    """One forward pass, as it travels."""

    rows: int
    compute_s: float
    real_tokens: int
    padded_tokens: int
    split: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """Worker to parent: the forward passes since the last such message.

    `stages` are the seconds of each stage since the worker's start, `peak_bytes` its resident memory
    at most, `retries` the calls that were tried again since the last message, by reason; `queues` the bytes
    that wait in each queue now.
    """

    notes: tuple[BatchNote, ...]
    stages: dict[str, float]
    peak_bytes: int
    retries: dict[str, int] = field(default_factory=dict)
    queues: dict[str, int] = field(default_factory=dict)
    kind: Literal["batches"] = "batches"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Worker to parent, at the end: how long its rows took, and how long the model alone would have."""

    rows: int
    seconds: float
    model_s: float
    kind: Literal["measured"] = "measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """Worker to parent: the rows of a unit are all there, and it is being committed."""

    unit: int
    kind: Literal["computed"] = "computed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """Worker to parent: a unit is committed."""

    receipt: Receipt
    kind: Literal["done"] = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """Worker to parent: an error that ends the worker; `exit_code` names its class, `fault` what CUDA
    calls it."""

    exit_code: int
    message: str
    where: str | None
    hint: str | None
    details: str
    fault: str = ""
    kind: Literal["failed"] = "failed"


Message: TypeAlias = (
    Start
    | Expect
    | Assign
    | Publish
    | Try
    | Stop
    | Ready
    | Batches
    | Measured
    | Tried
    | Computed
    | Done
    | Failed
)

_CODEC: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


class Channel:
    """One end of a pipe pair. Sending is safe from several threads."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self.read_fd = read_fd
        self._write_fd = write_fd
        self._frames = Unframer()
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        """Send one message. Raises BrokenPipeError when the other side is gone."""
        data = frame(_CODEC.dump_json(message))
        with self._lock:
            view = memoryview(data)
            while view:
                view = view[os.write(self._write_fd, view) :]

    def receive(self) -> list[Message] | None:
        """Wait for bytes and return the messages they complete; None at the end of the pipe."""
        data = os.read(self.read_fd, 1 << 16)
        return [_CODEC.validate_json(body) for body in self._frames.feed(data)] if data else None

    def close(self) -> None:
        """Close both directions."""
        for fd in (self.read_fd, self._write_fd):
            os.close(fd)
