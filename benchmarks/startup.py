"""What does starting cost? `python benchmarks/startup.py`

The quick verbs, and whole runs over a few thousand rows of local Parquet with a small network, as ONNX and
as TorchScript. *Bare* is a process that imports the same model library and pyarrow, loads the same model
and computes the same rows, and writes nothing; what a run takes longer than that is what batchinfer adds.
Bare takes its columns through DLPack: pyarrow's `to_numpy` would import pandas where that is installed.

Every command is a process of its own, measured from its start to its exit. They take turns, round after
round, after one round that only writes bytecode and fills the page cache.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import torch

ROWS = 4_000
SHARDS = 2
WIDTH = 32
LAYERS = ((WIDTH, 128), (128, 64), (64, 1))
FEATURES = [f"f{at:02d}" for at in range(WIDTH)]
HERE = Path(__file__).parent
BARE = """
import numpy as np
import pyarrow.parquet as pq
{load}
done = 0
for path in {paths}:
    for batch in pq.ParquetFile(path).iter_batches(batch_size=8192, columns={features}):
        rows = np.stack([np.from_dlpack(column) for column in batch.columns], axis=1)
        done += len(compute(rows))
print(done)
"""
LOADS = {
    "onnx": """
import onnxruntime
model = onnxruntime.InferenceSession({model!r}, providers=["CPUExecutionProvider"])
compute = lambda rows: model.run(None, {{"features": rows}})[0]
""",
    "torch": """
import torch
model = torch.jit.load({model!r})
compute = lambda rows: model(torch.from_numpy(rows)).detach().numpy()
""",
}


def prepare(folder: Path) -> None:
    """Write the rows, one network as ONNX and as TorchScript, and a job for each."""
    rng = np.random.default_rng(14)
    (folder / "in").mkdir()
    for at, ids in enumerate(np.array_split(np.arange(ROWS), SHARDS)):
        columns = {name: rng.random(len(ids), dtype=np.float32) for name in FEATURES}
        pq.write_table(pa.table({"id": ids, **columns}), folder / "in" / f"{at}.parquet")
    weights = [
        ((rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32), np.zeros(shape[1], np.float32))
        for shape in LAYERS
    ]
    save_onnx(folder / "model.onnx", weights)
    save_script(folder / "model.pt", weights)
    models: dict[str, dict[str, Any]] = {
        "onnx": {"path": "model.onnx"},
        "torch": {
            "path": "model.pt",
            "allow_unsafe_model": True,
            "signature": {"inputs": {"features": f"float32[?, {WIDTH}]"}, "outputs": {"y": "float32[?, 1]"}},
        },
    }
    for name, model in models.items():
        job = {
            "job": f"startup-{name}",
            "input": {"path": "in"},
            "preprocess": [{"columns": {"columns": FEATURES, "to": "features"}}],
            "model": model,
            "output": {"path": f"out-{name}", "carry": ["id"]},
        }
        (folder / f"{name}.yaml").write_text(json.dumps(job))


def save_onnx(path: Path, weights: list[tuple[Any, Any]]) -> None:
    """Write the network as ONNX: float32[rows, 32] to float32[rows, 1]."""
    from onnx import TensorProto, helper, numpy_helper, save

    nodes, constants, name = [], [], "features"
    for at, (matrix, bias) in enumerate(weights):
        is_last = at == len(weights) - 1
        constants += [numpy_helper.from_array(matrix, f"w{at}"), numpy_helper.from_array(bias, f"b{at}")]
        result = "y" if is_last else f"g{at}"
        nodes.append(helper.make_node("Gemm", [name, f"w{at}", f"b{at}"], [result]))
        if not is_last:
            name = f"h{at}"
            nodes.append(helper.make_node("Relu", [result], [name]))
    graph = helper.make_graph(
        nodes,
        "startup",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 1])],
        constants,
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def save_script(path: Path, weights: list[tuple[Any, Any]]) -> None:
    """Write the same network as TorchScript."""
    layers: list[torch.nn.Module] = []
    for matrix, bias in weights:
        layer = torch.nn.Linear(*matrix.shape)
        layer.weight.data, layer.bias.data = torch.from_numpy(matrix.T.copy()), torch.from_numpy(bias)
        layers += [layer, torch.nn.ReLU()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script = torch.jit.trace(torch.nn.Sequential(*layers[:-1]).eval(), torch.ones(2, WIDTH))
        torch.jit.save(script, path)


def commands(folder: Path) -> dict[str, list[str]]:
    """Return what is measured, by its name in the result."""
    cli = [sys.executable, "-m", "batchinfer"]
    found = {
        "help": [*cli, "--help"],
        "validate --no-model": [*cli, "validate", "--no-model", str(folder / "onnx.yaml")],
        "validate": [*cli, "validate", str(folder / "onnx.yaml")],
    }
    paths = [str(folder / "in" / f"{at}.parquet") for at in range(SHARDS)]
    for name, load in LOADS.items():
        model = str(folder / ("model.onnx" if name == "onnx" else "model.pt"))
        text = BARE.format(load=load.format(model=model), paths=paths, features=FEATURES)
        found[f"run {name}"] = [*cli, "run", str(folder / f"{name}.yaml")]
        found[f"bare {name}"] = [sys.executable, "-W", "ignore", "-c", text]
    return found


def measured(name: str, command: list[str], folder: Path) -> dict[str, float]:
    """Run one command and return the seconds that it took; fail where rows are missing."""
    verb, _, backend = name.partition(" ")
    output = folder / f"out-{backend}"
    shutil.rmtree(output, ignore_errors=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{name} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    if verb == "run":
        ids = ds.dataset(output).to_table(columns=["id"])["id"].to_numpy()
        if not np.array_equal(np.sort(ids), np.arange(ROWS)):
            raise SystemExit(f"{name}: {ROWS} rows went in, others came out")
    if verb == "bare" and int(done.stdout) != ROWS:
        raise SystemExit(f"{name}: {ROWS} rows went in, {done.stdout.strip()} came out")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu_s": cpu_s}


def spread(values: list[float]) -> dict[str, Any]:
    """Return the median of some figures, and all of them."""
    return {
        "median": round(statistics.median(values), 3),
        "all": sorted(round(value, 3) for value in values),
    }


def report(rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Print the figures and return them as they are stored."""
    result: dict[str, Any] = {
        "command": "python " + " ".join(["benchmarks/startup.py", *sys.argv[1:]]),
        "rounds": len(rounds),
        "rows": ROWS,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("batchinfer-pipeline", "pyarrow", "numpy", "pydantic", "typer", "torch")
        },
    }
    runtime = "onnxruntime-gpu" if platform.machine() == "x86_64" else "onnxruntime"
    result["versions"][runtime] = importlib.metadata.version(runtime)
    print(f"{'':<22}{'seconds':>9}{'cpu':>9}")
    for name in rounds[0]:
        result[name] = {key: spread([one[name][key] for one in rounds]) for key in ("seconds", "cpu_s")}
        print(f"{name:<22}{result[name]['seconds']['median']:>9.3f}{result[name]['cpu_s']['median']:>9.3f}")
    for backend in LOADS:
        more = {
            key: spread([one[f"run {backend}"][key] - one[f"bare {backend}"][key] for one in rounds])
            for key in ("seconds", "cpu_s")
        }
        result[f"added {backend}"] = more
        print(f"{'added ' + backend:<22}{more['seconds']['median']:>9.3f}{more['cpu_s']['median']:>9.3f}")
    return result


def main() -> None:
    """Run the rounds, print them, and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="one round, and no result file")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        todo = commands(folder)
        for what, command in todo.items():
            measured(what, command, folder)
        rounds = [
            {what: measured(what, command, folder) for what, command in todo.items()}
            for _ in range(1 if chosen.tiny else chosen.rounds)
        ]
    result = report(rounds)
    if not chosen.tiny:
        (HERE / "results" / "startup.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
