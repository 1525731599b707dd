"""The ways in which a pipeline loses data without a word: is each mistake seen, and is there no false alarm?

On a GPU by the suite's own tests that are marked `gpu`; where pytest is missing, the mistakes are tried from
here. In host memory, on the lazy device, they are tried from here everywhere.
"""

from __future__ import annotations

import importlib.util
import random
import re
import subprocess
import sys
from collections.abc import Callable
from unittest import mock

from gpu_checks.bench import Bench
from gpu_checks.running import ROOT, environment
from gpu_checks.same_rows import on_gpu_by_onnx

DRAWS = 100
_GPU_DRAWS = 12
_OUTCOME = re.compile(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)", re.MULTILINE)
_WORDS = ("PASSED", "FAILED", "ERROR", "SKIPPED")
_RINGS = "test_rings_gpu"
_SAID = 2000
_LEAST_S = 10.0


def try_all(bench: Bench) -> None:
    """Try the mistakes."""
    sys.path.insert(0, str(ROOT))
    on_lazy_device(bench)
    if not bench.on_gpu:
        bench.needs_gpu("suite", "cuda")
    elif importlib.util.find_spec("pytest") is None or not by_pytest(bench):
        on_cuda(bench)


def on_lazy_device(bench: Bench) -> None:
    """Try each mistake on the device that does everything as late as it may."""
    from batchinfer.testing import LazyDevice
    from tests.engine.bugs import BUGS
    from tests.engine.harness import Model, ReusingModel, num_wrong, run

    def wrong(seed: int, name: str | None, *, reuse: bool) -> bool:
        """Tell whether a draw gives wrong results."""
        model = ReusingModel() if reuse else Model()
        device = LazyDevice if name is None else BUGS[name].device
        return num_wrong(run(random.Random(seed), model=model, device=device)) > 0

    tried(bench, "lazy device", wrong, draws=DRAWS // 4 if bench.tiny else DRAWS, most=DRAWS)


def on_cuda(bench: Bench) -> None:
    """Try each mistake on a GPU that is slow in one of its streams."""
    import torch

    from batchinfer.engine.ring_pipeline import RingPipeline
    from tests.engine.harness import draw_sizes, drive, make_batches, num_wrong
    from tests.engine.torch_harness import (
        Delayed,
        ElsewhereOnCuda,
        KeptElsewhereOnCuda,
        ReusingTorchModel,
        TorchModel,
        draw_slow,
    )

    devices = {
        "8 freed memory used by another stream": ElsewhereOnCuda,
        "5 results downloaded from a graph's memory": KeptElsewhereOnCuda,
    }

    def wrong(seed: int, name: str | None, *, reuse: bool) -> bool:
        """Tell whether a draw gives wrong results."""
        rng = random.Random(seed)
        sizes, batches = draw_sizes(rng), make_batches(rng, 16)
        device = devices.get(name or "", Delayed)(draw_slow(rng))
        pipeline = RingPipeline(ReusingTorchModel() if reuse else TorchModel(), device, sizes)
        ahead, flying = rng.randint(0, sizes.pinned_in - 1), rng.randint(0, sizes.pinned_out - 1)
        outputs = drive(pipeline, batches, ahead=ahead, flying=flying)
        torch.cuda.synchronize()
        return num_wrong(list(zip(batches, outputs, strict=True))) > 0

    tried(bench, "cuda", wrong, draws=_GPU_DRAWS, most=4 * _GPU_DRAWS)


def tried(bench: Bench, where: str, wrong: Callable[..., bool], *, draws: int, most: int) -> None:
    """Note after how many draws each mistake is seen, and how many false alarms there are without one."""
    from batchinfer.engine import rings
    from tests.engine.bugs import BUGS

    alarms = sum(wrong(seed, None, reuse=reuse) for seed in range(draws) for reuse in (False, True))
    seen: dict[str, int | None] = {}
    for name, bug in BUGS.items():
        bench.left_s()
        with mock.patch.object(rings, "Slot", bug.slots()):
            draw = (seed for seed in range(most) if wrong(seed, name, reuse=bug.needs_reuse))
            first = next(draw, None)
        seen[name] = None if first is None else first + 1
    bench.note(where, {"draws": 2 * draws, "false_alarms": alarms, "seen_after_draws": seen})
    if alarms:
        bench.wrong(f"{where}: {alarms} of {2 * draws} draws without a mistake gave wrong results")
    for name in [name for name, draw in seen.items() if draw is None]:
        bench.wrong(f"{where}: the mistake `{name}` was not seen in {most} draws")


def by_pytest(bench: Bench) -> bool:
    """Run the tests that are marked `gpu`; tell whether those of the rings could be run at all."""
    onnx = on_gpu_by_onnx()
    if not onnx:
        bench.note("suite, onnx", "needs onnxruntime-gpu")
    marked = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if "mark.gpu" in path.read_text(encoding="utf-8") and (onnx or "onnx" not in path.name)
    ]
    # The rings' first: there may not be time for all.
    files = sorted(marked, key=lambda path: (_RINGS not in path, path))
    # Without the options of pyproject.toml, some of which belong to plugins that may be missing.
    words = ["-m", "pytest", "-m", "gpu", "-v", "-ra", "-p", "no:cacheprovider", "--import-mode=importlib"]
    words += ["-o", "addopts=", "-o", "filterwarnings=default", "--continue-on-collection-errors"]
    log = bench.folder / "suite.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *words, *files],
            cwd=ROOT,
            env=environment(bench),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
        try:
            code: int | str = process.wait(bench.left_s(at_least=_LEAST_S) - _LEAST_S / 2)
        except subprocess.TimeoutExpired:
            process.kill()
            code = "out of time"
    said = log.read_text(errors="replace")
    outcomes = dict(_OUTCOME.findall(said))
    found = {word: [name for name, way in outcomes.items() if way == word] for word in _WORDS}
    counts = {word.lower(): len(names) for word, names in found.items()}
    others = [name for name, way in outcomes.items() if way != "PASSED"]
    bench.note("suite", {**counts, "exit_code": code, "not_passed": others})
    if found["FAILED"] or (found["PASSED"] and code == "out of time"):
        bench.wrong(f"the tests marked gpu: {counts}, {code}: {said[-_SAID:]}")
    return any(_RINGS in name for name in found["PASSED"])
