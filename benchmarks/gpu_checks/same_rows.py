"""Are the rows right? Each network in each precision of the device, against the same job on the CPU in fp32;
and that one against the network called directly, row by row."""

from __future__ import annotations

import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow.dataset as ds
from gpu_checks import works
from gpu_checks.bench import Bench
from gpu_checks.inputs import ROWS
from gpu_checks.running import ROOT, Array, compared, counted, require_close, run, values

_ENCODER = {"fp32": 1e-2, "fp16": 3e-2, "bf16": 2e-1}
BANDS = {
    "resnet": {"fp32": 3e-2, "fp16": 5e-2, "bf16": 5e-1},
    "minilm": _ENCODER,
    "bge-base": _ENCODER,
}
"""By how much a row may be off, as a share of what tells it from the mean row: two to three times what the
same network in that precision is off on a CPU. Convolutions in fp32 may be TF32 on a GPU."""

_DIRECT = 1e-3
_DIRECT_ROWS = 48
_AT_ONCE = 6
_EXPORT_S = 25.0


def compare(bench: Bench) -> None:
    """Run all jobs, several at once on a GPU, and compare."""
    names = ["resnet", "minilm"] if bench.tiny else ["resnet", "minilm", "bge-base"]
    ways = variants(bench, names) if bench.on_gpu else {}
    wanted: dict[str, Array] = {}
    with ThreadPoolExecutor(_AT_ONCE if bench.on_gpu else 1) as pool:
        on_cpu = {name: pool.submit(reference, bench, name) for name in names}
        found = {way: pool.submit(results, bench, way, job) for way, job in ways.items()}
        for name, future in on_cpu.items():
            wanted[name] = future.result()
            rows = wanted[name][:_DIRECT_ROWS]
            judge(bench, f"{name} cpu, direct", rows, direct(bench, name, len(rows)), _DIRECT)
        for way, future in found.items():
            name, precision, *_ = way.split()
            with bench.attempt(way):
                judge(bench, way, future.result(), wanted[name], BANDS[name][precision])
    if not bench.on_gpu:
        bench.needs_gpu(*(f"{name} {precision}" for name in names for precision in BANDS[name]))
    onnx(bench, wanted["resnet"])


def reference(bench: Bench, name: str) -> Array:
    """Return the results of a network on the CPU, on a few of its cores."""
    job = {**work(bench, name, "fp32"), "compute": {"threads": 1 if bench.tiny else 4}}
    return results(bench, f"{name} fp32 cpu", job, device="cpu")


def work(bench: Bench, name: str, precision: str, **model: Any) -> dict[str, Any]:
    """Return the sections of the job of a network."""
    if name == "resnet":
        found = works.pixels_work(bench, precision, "pixels-few", **model)
        return {**found, "batching": {"size": 48}}
    return works.text_work(name, precision, "texts-few", **model)


def variants(bench: Bench, names: list[str]) -> dict[str, dict[str, Any]]:
    """Return what is run on a GPU, by name and precision."""
    found = {
        f"{name} {precision}": work(bench, name, precision) for name in names for precision in BANDS[name]
    }
    for name in names:
        found[f"{name} fp16 graphs"] = work(bench, name, "fp16", cuda_graphs=True)
    padded = {"batching": {"packed": False}}
    found["minilm fp16 padded"] = {**work(bench, "minilm", "fp16"), **padded}
    return found


def results(bench: Bench, way: str, job: dict[str, Any], device: str | None = None) -> Array:
    """Run a job, count its rows, and return its results in source order."""
    source = job["input"]["path"].rstrip("/")
    ran = run(bench, f"same-{way.replace(' ', '-')}", job, device=device)
    counted(bench, ran, ROWS[source][bench.tiny])
    return values(ran.output, "logits" if source.startswith("pixels") else "embedding")


def judge(bench: Bench, what: str, found: Array, wanted: Array, most: float) -> None:
    """Compare, and note how far off the rows are."""
    figures = compared(found, wanted)
    bench.note(what, {**figures, "band": most})
    require_close(bench, what, figures, most)


def direct(bench: Bench, name: str, rows: int) -> Array:
    """Return what a network gives when it is called row by row, with nothing around it."""
    import torch

    source = "pixels-few" if name == "resnet" else "texts-few"
    table = ds.dataset(bench.folder / source, format="parquet").head(rows)
    with torch.inference_mode():
        if name == "resnet":
            return _logits(bench, table["pixels"].to_pylist())
        return _vectors(bench, name, table["text"].to_pylist())


def _logits(bench: Bench, images: list[bytes]) -> Array:
    """Return the results of the convolutional network."""
    import torch

    network = network_of(bench)
    side = works.SIDES[bench.tiny]
    found = []
    for image in images:
        pixels = torch.from_numpy(np.frombuffer(image, np.uint8).copy()).view(1, 3, side, side)
        found.append(network(pixels)[0].double().numpy())
    return np.stack(found)


def _vectors(bench: Bench, name: str, texts: list[str]) -> Array:
    """Return the mean vectors of an encoder, by the tokenizers library and without padding."""
    import torch
    import transformers
    from tokenizers import Tokenizer

    transformers.logging.disable_progress_bar()
    tokenizer = Tokenizer.from_file(str(bench.folder / "tokenizer.json"))
    tokenizer.enable_truncation(works.LONGEST)
    model = transformers.BertModel.from_pretrained(bench.folder / name, add_pooling_layer=False).eval()
    found = []
    for text in texts:
        ids = torch.tensor([tokenizer.encode(text).ids])
        found.append(model(input_ids=ids).last_hidden_state[0].mean(0).double().numpy())
    return np.stack(found)


def network_of(bench: Bench) -> Any:
    """Return the convolutional network with its weights."""
    from safetensors.torch import load_file

    sys.path.insert(0, str(bench.folder))
    import networks

    network = networks.resnet(**works.RESNET[bench.tiny]).eval()
    network.load_state_dict(load_file(bench.folder / "resnet.safetensors"))
    return network


def onnx(bench: Bench, wanted: Array) -> None:
    """Export the convolutional network, and run it by onnxruntime on each device that it has here."""
    absent = [name for name in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(name)]
    if bench.tiny or absent:
        bench.note("resnet onnx", f"needs {', '.join(absent)}" if absent else "left out of a tiny run")
        return
    bench.left_s(at_least=_EXPORT_S)
    import torch

    sys.path.insert(0, str(ROOT / "jobs"))
    import onnx_export

    side = works.SIDES[bench.tiny]
    onnx_export.export(
        network_of(bench),
        bench.folder / "resnet.onnx",
        inputs={"pixels": torch.zeros(2, 3, side, side, dtype=torch.uint8)},
        outputs=["logits"],
        shapes={"pixels": {0: torch.export.Dim("batch", min=1, max=4096)}},
    )
    job = {**work(bench, "resnet", "fp32"), "model": {"backend": "onnx", "path": "resnet.onnx"}}
    band = BANDS["resnet"]["fp32"]
    judge(bench, "resnet onnx cpu", results(bench, "resnet onnx cpu", job, device="cpu"), wanted, band)
    if not bench.on_gpu:
        bench.needs_gpu("resnet onnx cuda")
    elif not on_gpu_by_onnx():
        bench.note("resnet onnx cuda", "needs onnxruntime-gpu")
    else:
        judge(bench, "resnet onnx cuda", results(bench, "resnet onnx cuda", job), wanted, band)


def on_gpu_by_onnx() -> bool:
    """Tell whether onnxruntime is there, and has what it needs for a GPU."""
    if not importlib.util.find_spec("onnxruntime"):
        return False
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()
