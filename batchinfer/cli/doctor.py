"""`batchinfer doctor`: what this machine has, what is missing, and what to do about it."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from typing import Any

import typer

from batchinfer.cli.arguments import AsJson

NAME = "doctor"

_PACKAGES = {
    "torch": "torch models, CUDA copies",
    "onnxruntime-gpu": "ONNX models on GPU and CPU",
    "onnxruntime": "ONNX models on CPU",
    "transformers": "backend: transformers (pip install 'batchinfer-pipeline[transformers]')",
    "tokenizers": "preprocess: tokenize",
    "Pillow": "preprocess: image",
    "pyarrow": "Parquet, Arrow",
    "obstore": "s3://, gs://, az://",
}
_MIN_FILES = 1024

# Asked in a process of its own: this one never loads a model library.
_PROBE = (
    "import json\n"
    "try:\n"
    "    import onnxruntime as o; p = o.get_available_providers()\n"
    "except Exception as e: p = [f'not importable: {e}']\n"
    "try:\n"
    "    import torch as t; c = t.version.cuda or 'none'; n = t.cuda.device_count()\n"
    "except Exception as e: c, n = f'not importable: {e}', 0\n"
    "print(json.dumps({'providers': p, 'torch_cuda': c, 'torch_devices': n}))"
)


def command(*, as_json: AsJson = False) -> None:
    """Show versions, devices and limits of this machine. Changes nothing, sends nothing."""
    facts = _facts()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    typer.echo(f"batchinfer {facts['batchinfer']}   Python {facts['python']}   {facts['system']}")
    typer.echo(
        f"  cores {facts['cores']}   memory {facts['memory_gib']} GiB   disk {facts['disk_gib']} GiB free"
    )
    gpus = facts["gpus"]
    typer.echo(f"  GPUs  {', '.join(gpus) if gpus else 'none that NVML can see: jobs run on the CPU'}")
    for name, version in facts["packages"].items():
        typer.echo(f"  {name:<16} {version or 'not installed':<14} {_PACKAGES[name]}")
    typer.echo(f"  onnxruntime providers: {', '.join(facts['providers'])}")
    typer.echo(f"  torch CUDA: {facts['torch_cuda']}, {facts['torch_devices']} devices")
    for warning in facts["warnings"]:
        typer.echo(f"  ! {warning}")


def _facts() -> dict[str, Any]:
    from batchinfer.config import usable_cores
    from batchinfer.hardware import gpus, problem

    packages = {name: _version(name) for name in _PACKAGES}
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    names = [gpu.name for gpu in gpus()]
    probe = _probe()
    warnings = []
    if packages["onnxruntime"] and packages["onnxruntime-gpu"]:
        warnings.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: remove one"
        )
    if files < _MIN_FILES:
        warnings.append(f"only {files} open files are allowed: raise it with ulimit -n")
    if trouble := problem():
        warnings.append(trouble)
    if names and not probe["torch_devices"]:
        warnings.append("there is a GPU, but torch cannot use it: install a torch build with CUDA")
    return {
        "batchinfer": _version("batchinfer-pipeline"),
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "cores": usable_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "disk_gib": round(shutil.disk_usage(".").free / 2**30, 1),
        "gpus": names,
        "packages": packages,
        "warnings": warnings,
        **probe,
    }


def _probe() -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False)  # noqa: S603 - our own text
    try:
        found: dict[str, object] = json.loads(done.stdout)
    except ValueError:
        return {"providers": ["could not be asked"], "torch_cuda": "could not be asked", "torch_devices": 0}
    return found


def _version(name: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
