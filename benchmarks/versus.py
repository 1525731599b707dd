"""batchinfer against its peers: `python benchmarks/versus.py WORK --python PEERS_VENV/bin/python`

WORK is text, images, table, device25 or device51. Every runner is a process of its own, at its best
settings, from the same Parquet to a Parquet of its own; the runners take turns, round after round. The
rows that came out are counted and their results checked, one by one. What is done is kept in the cache
folder: the same command goes on where it was interrupted. `peers/` has the runners, README.md the rest.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PEERS = HERE / "peers"
sys.path.insert(0, str(PEERS))

import measure  # noqa: E402 - beside this file
import numpy as np  # noqa: E402
import plans  # noqa: E402
import pyarrow.dataset as ds  # noqa: E402
import works  # noqa: E402

LIMIT_S = 900
NOISE = 0.02
ENOUGH = 3  # rounds, to know how far the limit moves by itself
VERSIONS: tuple[str, ...] = (
    "onnxruntime",
    "onnxruntime-gpu",
    "pyarrow",
    "numpy",
    "tokenizers",
    "torch",
    "pillow",
    "ray",
    "daft",
)
VERSIONS += ("python", "pyspark", "datasets", "sentence-transformers", "transformers", "batchinfer-pipeline")


@dataclass
class Bench:
    """One work at one size: where its data lie and which Python runs whom."""

    work: str
    rows: int
    cache: Path
    tree: Path
    peers_python: str
    sentence_python: str | None

    @property
    def plan(self) -> plans.Plan:
        """What is to be run."""
        return plans.PLANS[self.work]

    @property
    def data(self) -> Path:
        """The input, shared by both devices."""
        return self.cache / f"{self.work.rstrip('0123456789')}-{self.rows}"

    def python(self, runner: str) -> str:
        """Return the interpreter of a runner: the limits use what batchinfer uses."""
        if runner == "sentence":
            return self.sentence_python or self.peers_python
        return sys.executable if runner in {"batchinfer", "limit"} else self.peers_python

    def identity(self, runner: str, settings: plans.Settings) -> str:
        """Return what a figure belongs to: the settings, and for batchinfer its commit."""
        said = json.dumps(settings, sort_keys=True)
        if runner != "batchinfer":
            return said
        asked = ["git", "-C", str(self.tree), "describe", "--always", "--dirty"]
        commit = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
        return f"{said} {commit}"

    def make_data(self) -> None:
        """Write the input and the model, unless they are there."""
        command = [sys.executable, str(PEERS / "data.py"), self.work, str(self.rows), str(self.data)]
        subprocess.run(command, check=True, env=self._env(None))

    def run(self, runner: str, settings: plans.Settings) -> dict[str, Any]:
        """Run a runner once, check what it wrote, and return its figures."""
        folder = self._fresh()
        file = [str(PEERS / plans.FILES[runner])]
        figures = self._measured(runner, file, settings, folder)
        self._check(runner, folder / "out")
        shutil.rmtree(folder)
        return {**figures, "rows_per_s": self.rows / figures["steady_s"]}

    def limit(self, settings: plans.Settings) -> dict[str, Any]:
        """Measure what no pipeline can beat."""
        kind = self.plan.limit.split()
        if kind[0] == "device":
            return {"rows_per_s": float(kind[1])}
        folder = self._fresh()
        self._measured("limit", [str(PEERS / "limits.py"), kind[0]], settings, folder)
        found: dict[str, Any] = json.loads((folder / "log").read_text().splitlines()[-1])
        if "stages" in found:
            found["rows_per_s"] = plans.CORES / sum(found["stages"].values())
        shutil.rmtree(folder)
        return found

    def _fresh(self) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="run-", dir=self.cache))
        (folder / "stamps").mkdir()
        return folder

    def _measured(
        self, runner: str, file: list[str], settings: plans.Settings, folder: Path
    ) -> dict[str, Any]:
        order = [self.work, str(self.data), str(folder / "out"), json.dumps(settings)]
        return measure.measure(
            [self.python(runner), *file, *order],
            env=self._env(folder / "stamps"),
            folder=folder,
            log=folder / "log",
            limit_s=LIMIT_S,
        )

    def _env(self, stamps: Path | None) -> dict[str, str]:
        left = {"PYTHONDONTWRITEBYTECODE", "STAMPS"}
        env = {key: value for key, value in os.environ.items() if key not in left}
        if stamps is not None:
            env["STAMPS"] = str(stamps)
        path = os.pathsep.join([str(PEERS), str(self.tree)])
        return {**env, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}

    def _check(self, runner: str, out: Path) -> None:
        """Fail unless every row came out once, with its own result."""
        wanted = np.load(self.data / "expected.npy")
        seen = np.zeros(len(wanted), np.int64)
        for batch in ds.dataset(out, format="parquet").to_batches(columns=["id", "y"]):
            ids = batch["id"].to_numpy()
            np.add.at(seen, ids, 1)
            off = np.abs(works.checksums(batch["y"]) - wanted[ids]).max(initial=0)
            if not off <= self.plan.tolerance:
                raise SystemExit(f"{runner}: a result is off by {off}")
        if not (seen == 1).all():
            raise SystemExit(f"{runner}: {len(wanted)} rows went in, {seen.sum()} came out")


def _anywhere(argument: str) -> str:
    """Return an argument without the folders of this machine."""
    return Path(argument).name if argument.startswith("/") else argument


def main() -> None:
    """Run the rounds that are missing, print the table, write the result."""
    given = arguments()
    plan = plans.PLANS[given.work]
    rows = given.rows or (plan.rows if given.scale == "full" else plan.small_rows)
    bench = Bench(given.work, rows, given.cache, given.tree.resolve(), given.python, given.sentence_python)
    given.cache.mkdir(parents=True, exist_ok=True)
    compileall.compile_dir(bench.tree / "batchinfer", quiet=1)
    measure.adopt_orphans()
    bench.make_data()
    if given.tune:
        tune(bench, given.tune)
        return
    everyone = [name for name in plan.best if name != "sentence" or given.sentence_python]
    runners = given.runners.split(",") if given.runners else everyone
    state = rounds(bench, runners, given)
    result = summary(bench, runners, state, given)
    show(result)
    # A smoke test, or a part of the runners, is no result.
    whole = given.scale == "full" and runners == everyone
    target = HERE / "results" if whole else given.cache
    (target / f"versus_{given.work}.json").write_text(json.dumps(result, indent=1) + "\n")
    judge(result)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", choices=plans.PLANS)
    parser.add_argument("--python", default=sys.executable, help="of the peers' virtual environment")
    parser.add_argument(
        "--sentence-python", help="the same for sentence-transformers; without it, it is left out"
    )
    parser.add_argument("--tree", type=Path, default=HERE.parent, help="whose batchinfer runs")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir(), "batchinfer-versus"))
    parser.add_argument("--scale", choices=("full", "small"), default="full", help="small: a smoke test")
    parser.add_argument("--rows", type=int, help="instead of the scale's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runners", help="some of them, with commas")
    parser.add_argument("--tune", metavar="RUNNER", help="try this runner's grid of settings instead")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier commands have measured")
    return parser.parse_args()


def tune(bench: Bench, runner: str) -> None:
    """Try each combination of settings once; print the fastest first."""
    tried = []
    for settings in bench.plan.grid(runner):
        try:
            figures = bench.run(runner, settings)
        except RuntimeError as error:
            print(f"failed: {settings}: {str(error)[-300:]}")
            continue
        tried.append((figures["whole_s"], figures["rows_per_s"], settings))
        print(
            f"{figures['whole_s']:7.2f} s whole {figures['rows_per_s']:12.1f} rows/s steady  {settings}",
            flush=True,
        )
    print("fastest:", min(tried, key=lambda one: one[0])[2])


def rounds(bench: Bench, runners: list[str], given: argparse.Namespace) -> dict[str, Any]:
    """Do what is missing, in turns, and keep each figure as soon as it is there."""
    path = bench.cache / f"{bench.work}-{bench.rows}.progress.json"
    state: dict[str, Any] = {"runs": {}}
    if path.exists() and not given.fresh:
        state = json.loads(path.read_text())
    if bench.plan.limit == "compute" and "search" not in state:
        state["search"] = bench.limit({"search": True, "cores": plans.CORES})
    settings = state.get("search", {}).get("best", {})
    for number in range(given.rounds):
        for runner in ["limit", *runners]:
            chosen = settings if runner == "limit" else bench.plan.best[runner]
            kept = state["runs"].setdefault(runner, {})
            # Figures of other settings, or of another batchinfer, are not mixed with these.
            if kept.get("of") != bench.identity(runner, chosen):
                kept |= {"of": bench.identity(runner, chosen), "done": []}
            done = kept["done"]
            if len(done) > number:
                continue
            done.append(bench.limit(chosen) if runner == "limit" else bench.run(runner, chosen))
            print(f"round {number + 1}  {runner:<11} {done[-1]['rows_per_s']:12.1f} rows/s", flush=True)
            path.write_text(json.dumps(state))
    return state


def summary(
    bench: Bench, runners: list[str], state: dict[str, Any], given: argparse.Namespace
) -> dict[str, Any]:
    """Put medians and spreads together."""
    alone = state["runs"]["limit"]["done"][: given.rounds]
    limit = statistics.median(run["rows_per_s"] for run in alone)
    measured: dict[str, Any] = {}
    for runner in runners:
        runs = state["runs"][runner]["done"][: given.rounds]
        columns = {key: [round(run[key], 3) for run in runs] for key in runs[0]}
        measured[runner] = {key: {"median": statistics.median(v), "all": v} for key, v in columns.items()}
        # Each round against the limit of its own round: what disturbed one disturbed the other.
        ratios = [run["rows_per_s"] / best["rows_per_s"] for run, best in zip(runs, alone, strict=True)]
        measured[runner]["of_limit"] = {
            "median": round(statistics.median(ratios), 4),
            "all": [round(ratio, 4) for ratio in ratios],
        }
        measured[runner]["settings"] = bench.plan.best[runner]
    pythons = {"batchinfer": sys.executable, "peers": given.python}
    if given.sentence_python:
        pythons["sentence"] = given.sentence_python
    return {
        "command": "python " + " ".join(["benchmarks/versus.py", *map(_anywhere, sys.argv[1:])]),
        "work": bench.work,
        "rows": bench.rows,
        "rounds": given.rounds,
        "cores": plans.CORES,
        "limit": {"kind": bench.plan.limit, "rows_per_s": limit, "runs": alone, **state.get("search", {})},
        "runners": measured,
        "batchinfer_commit": state["runs"].get("batchinfer", {}).get("of", "").rpartition(" ")[2],
        "versions": {who: versions(python) for who, python in pythons.items()},
    }


def versions(python: str) -> dict[str, str]:
    """Ask an interpreter what it has."""
    code = (
        "import importlib.metadata as m, json, platform\n"
        "have = {d.name.lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps({'python': platform.python_version(), **have}))"
    )
    said = subprocess.run([python, "-c", code], capture_output=True, check=True).stdout
    return {name: version for name, version in json.loads(said).items() if name in VERSIONS}


def show(result: dict[str, Any]) -> None:
    """Print one line per runner, medians, the fastest whole run first."""
    limit = f"limit {result['limit']['rows_per_s']:,.1f} rows/s"
    print(f"\n{result['work']}: {result['rows']:,} rows, {result['rounds']} rounds, {limit}")
    print(
        f"{'':<11}{'whole s':>9}{'steady rows/s':>15}{'of limit':>10}{'  (spread)':<16}"
        f"{'USS MB':>8}{'PSS MB':>8}{'CPU s':>8}"
    )
    for runner, figures in sorted(result["runners"].items(), key=lambda one: one[1]["whole_s"]["median"]):
        ratios = figures["of_limit"]
        print(
            f"{runner:<11}{figures['whole_s']['median']:9.2f}{figures['rows_per_s']['median']:15,.1f}"
            f"{ratios['median']:10.3f}  ({min(ratios['all']):.3f}-{max(ratios['all']):.3f})"
            f"{figures['uss_mb']['median']:8.0f}{figures['pss_mb']['median']:8.0f}{figures['cpu_s']['median']:8.1f}"
        )


def judge(result: dict[str, Any]) -> None:
    """Fail where a runner was faster than its limit by more than the limit's own noise."""
    alone = [run["rows_per_s"] for run in result["limit"]["runs"]]
    noise = max(NOISE, (max(alone) - min(alone)) / min(alone) / 2)
    for runner, figures in result["runners"].items():
        share = figures["of_limit"]["median"]
        if share > 1 + noise and result["limit"]["kind"] == "sum" and runner != "batchinfer":
            print(f"{runner}: {share:.3f} of the limit: it had read ahead before its first batch")
        elif share > 1 + noise and len(alone) < ENOUGH:
            print(f"{runner}: {share:.3f} of the limit; {len(alone)} rounds do not tell the noise")
        elif share > 1 + noise:
            raise SystemExit(
                f"{runner}: {share:.3f} of the limit, whose noise is {noise:.3f}: "
                "an efficiency above 1 is a mistake of the benchmark"
            )


if __name__ == "__main__":
    main()
