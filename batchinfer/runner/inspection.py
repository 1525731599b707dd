"""An output looked at from outside: how far it is, and whether it is what its manifest says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from batchinfer import registry
from batchinfer.engine.publish import sha256
from batchinfer.engine.sidecar import SIDECAR
from batchinfer.errors import DataError, NoInputError
from batchinfer.runner.finish import MANIFEST_KEYS, files_of
from batchinfer.runner.ledger import ledger_of, plan_of
from batchinfer.runner.output import Seal, below, generations, read_control, read_plan, read_seal
from batchinfer.runner.receipts import contradictions
from batchinfer.storage import ObjectMissing, open_store

if TYPE_CHECKING:
    from batchinfer.data import Entry
    from batchinfer.protocols import Sink
    from batchinfer.runner.plan import Plan
    from batchinfer.storage import Store

Level = Literal["quick", "footer", "deep"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessStatus:
    """A process that shows signs of life. `silent_s` compares two machines' clocks: for people only. One that
    was not heard of for four times as long as it promised `is_silent`, and so is one that this machine does
    not have any more."""

    owner: str
    silent_s: float
    is_silent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputStatus:
    """How far an output is. Rows are planned rows, before `where` and `sample`."""

    job: str
    plan: str
    generation: int
    output: str
    state: str
    units_total: int
    units_done: int
    rows_total: int
    rows_done: int
    num_bytes: int
    processes: tuple[ProcessStatus, ...]
    suspects: tuple[int, ...]
    """Units that were in the hands of processes that died."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What `verify` found. No problem: the output is what the manifest says."""

    output: str
    num_parts: int
    num_rows: int
    num_errors: int
    problems: tuple[str, ...]


def status_of(
    store: Store, root: str, plan: Plan, entries: Sequence[Entry], processes: Iterable[ProcessStatus]
) -> OutputStatus:
    """Return how far an output is by a listing of it. Raises DataError where `_SUCCESS` is damaged."""
    ledger = ledger_of(entries, plan.layout(root))
    done = [plan.units[index] for index in ledger.committed]
    there = read_seal(store, root) if any(below(root, entry.uri) == "_SUCCESS" for entry in entries) else None
    state = "all units committed" if len(done) == len(plan.units) else "unfinished"
    if there is not None and there.plan == plan.plan8 and state != "unfinished":
        state = "complete"
    names = [below(root, entry.uri) for entry in entries]
    start = f"_batchinfer/{plan.plan8}/suspect/"
    suspects = {int(name.removeprefix(start).split("/")[0]) for name in names if name.startswith(start)}
    return OutputStatus(
        job=plan.job,
        plan=plan.plan8,
        generation=plan.generation,
        output=root,
        state=state,
        units_total=len(plan.units),
        units_done=len(done),
        rows_total=plan.num_rows,
        rows_done=sum(stop - start for _, start, stop in done),
        num_bytes=sum(entry.size_bytes for entry in ledger.parts.values()),
        processes=tuple(processes),
        suspects=tuple(sorted(suspects - ledger.committed)),
    )


def verify_output(root: str, options: Mapping[str, Any], *, level: Level = "quick") -> Verdict:
    """Compare an output with the manifest that `_SUCCESS` names.

    `quick`: names, sizes and ETags, from one listing. `footer`: also what every part says of itself.
    `deep`: also every byte, page checksum and row number. Raises NoInputError where there is no
    output, DataError where it was never finished or its control files are damaged.
    """
    store = open_store(root, options)
    entries = store.entries(root)
    plan = latest_plan(store, root, entries)
    seal = _seal(store, root)
    manifest = read_manifest(store, root, seal)
    check = _Check(store, root, manifest, sink_of(plan), latest=plan.plan8)
    problems = [*check.names(entries)]
    problems += check.totals()
    problems += contradictions(store, root, entries, manifest, seal)
    if level != "quick":
        problems += check.parts(check.footer if level == "footer" else check.deep)
    return Verdict(
        output=root,
        num_parts=len(manifest["parts"]),
        num_rows=manifest["rows"],
        num_errors=manifest["rows_error"],
        problems=tuple(problems),
    )


def read_manifest(store: Store, root: str, seal: Seal) -> dict[str, Any]:
    """Read the manifest that a seal names. Raises DataError where it is another one now."""
    uri = f"{root.rstrip('/')}/{seal.manifest}"
    if sha256(store.read(uri)) != seal.manifest_sha256:
        raise DataError("the manifest was changed after the run", where=uri)
    return read_control(store, uri, "manifest", *MANIFEST_KEYS)


class _Check:
    """The comparison of one output with its manifest."""

    def __init__(
        self, store: Store, root: str, manifest: Mapping[str, Any], sink: Sink, *, latest: str
    ) -> None:
        self._store = store
        self._root = root
        self._manifest = manifest
        self._sink = sink
        self._unsealed = latest if latest not in manifest["plans"] else None
        self._listed = files_of(manifest)
        self._apart = {sidecar["name"] for sidecar in manifest["sidecars"]}
        self._there: dict[str, Entry] = {}
        self._schema: str | None = None

    def names(self, entries: Sequence[Entry]) -> Iterator[str]:
        """Compare names, sizes and ETags."""
        for entry in entries:
            name = below(self._root, entry.uri)
            if name in self._listed:
                self._there[name] = entry
            elif not any(segment.startswith(("_", ".")) for segment in name.split("/")):
                yield f"{name}: {self._why_not(name)}"
        for name, part in self._listed.items():
            found = self._there.get(name)
            if found is None:
                yield f"{name}: is missing"
            elif found.size_bytes != part["num_bytes"]:
                yield f"{name}: has {found.size_bytes} bytes, the manifest says {part['num_bytes']}"
            elif part["etag"] and found.version != part["etag"]:
                yield f"{name}: was written again after the run (its ETag changed)"

    def _why_not(self, name: str) -> str:
        """Say why a visible file is none of the manifest's."""
        if name in self._manifest["replaced"]:
            return "a retry has replaced it; `batchinfer gc` removes it"
        if plan_of(name) in self._manifest["plans"]:
            return "is not in the manifest"
        if self._unsealed is not None and plan_of(name) == self._unsealed:
            return "is of a retry, or of a run with --force, that is not finished: the same command goes on"
        if plan_of(name) is not None:
            return "is of another generation; `batchinfer gc` removes those that are superseded"
        return "is not in the manifest, and no part of ours"

    def totals(self) -> Iterator[str]:
        """Compare the manifest with itself."""
        for key, column in (("rows", "num_rows"), ("rows_error", "num_errors")):
            total = sum(part[column] for part in self._listed.values())
            if total != self._manifest[key]:
                yield f"the manifest: its parts have {total} {key}, it says {self._manifest[key]}"

    def parts(self, check: Any) -> list[str]:
        """Look into every part that is there with the right size, several at once."""
        names = sorted(self._there)
        with ThreadPoolExecutor(min(self._store.parallel, max(len(names), 1))) as pool:
            return [problem for found in pool.map(check, names) for problem in found]

    def footer(self, name: str) -> list[str]:
        """Compare what a part says of itself with the manifest."""
        try:
            file = self._store.open(f"{self._root.rstrip('/')}/{name}")
            with file:
                said = self._sink.footer(file)
        except DataError as error:
            return [f"{name}: {error.message}"]
        return self._compare(name, said)

    def deep(self, name: str) -> list[str]:
        """Check every byte of a part, that it decodes, and that its rows are those of its unit."""
        import pyarrow as pa

        part = self._listed[name]
        try:
            data = self._store.read(f"{self._root.rstrip('/')}/{name}")
            if sha256(data) != part["sha256"]:
                return [f"{name}: its content changed (sha256 differs)"]
            said = self._sink.footer(pa.BufferReader(data))
            numbers = self._sink.row_numbers(data)
        except DataError as error:
            return [f"{name}: {error.message}"]
        problems = self._compare(name, said)
        start, _, stop = said.get("batchinfer.source_rows", "").partition("..")
        if numbers and stop:
            inside = int(start) <= numbers[0] and numbers[-1] < int(stop)
            if not inside or any(after <= before for before, after in pairwise(numbers)):
                problems.append(f"{name}: its `_row` numbers are not rows {start}..{stop} in order")
        return problems

    def _compare(self, name: str, said: Mapping[str, str]) -> list[str]:
        part, problems = self._listed[name], []
        if int(said["rows"]) != part["num_rows"]:
            problems.append(f"{name}: holds {said['rows']} rows, the manifest says {part['num_rows']}")
        if "schema" not in said:
            return problems  # a format without footers
        if name in self._apart:
            return problems + self._compare_sidecar(name, said)
        if said.get(SIDECAR, "") not in self._apart | {""}:
            problems.append(f"{name}: names {said[SIDECAR]}, which is not in the manifest")
        if said.get("batchinfer.plan") != plan_of(name):
            problems.append(f"{name}: says that it is of plan {said.get('batchinfer.plan')}")
        if f"part-{int(said.get('batchinfer.unit', -1)):05d}-" not in name:
            problems.append(f"{name}: says that it is unit {said.get('batchinfer.unit')}")
        # Any order of parts will do: all of them must have the schema of whichever was first.
        self._schema = self._schema or said["schema"]
        if said["schema"] != self._schema:
            problems.append(f"{name}: has other columns than the other parts")
        return problems

    def _compare_sidecar(self, name: str, said: Mapping[str, str]) -> list[str]:
        if (
            f"_batchinfer/{said.get('batchinfer.plan')}/errors/{int(said.get('batchinfer.unit', -1)):05d}-"
            in name
        ):
            return []
        return [f"{name}: says that it is of another unit"]


def latest_plan(store: Store, root: str, entries: Sequence[Entry]) -> Plan:
    """Return the plan that counts. Raises NoInputError where there is none."""
    numbers = generations(entries, root)
    if not numbers:
        raise NoInputError("no batchinfer output is here", where=root, hint="name the job's output.path")
    return read_plan(store, root, numbers[-1])


def sink_of(plan: Plan) -> Sink:
    """Return what reads a plan's parts."""
    factory = registry.load("sinks", "jsonl" if plan.suffix == ".jsonl" else "parquet")
    sink: Sink = factory(factory.Options.model_construct())
    return sink


def _seal(store: Store, root: str) -> Seal:
    try:
        found = read_seal(store, root)
    except ObjectMissing:
        found = None
    if found is None:
        raise DataError(
            "the output is not finished: there is no _SUCCESS",
            where=root,
            hint="run the job again: it resumes",
        )
    return found
