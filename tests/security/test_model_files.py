"""A model file comes from a stranger: it is data, and it never runs anything."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

import batchinfer
from batchinfer import registry
from batchinfer.errors import BatchinferError, ContractError, DataError, FingerprintError, JobFileError
from tests.conftest import Run, environment, parts_of, write_shards
from tests.security.canary import Payload, malicious_pickle

SOURCE = Path(batchinfer.__file__).parent
NET = "import torch\n\ndef net():\n    return torch.nn.Linear(1, 1)\n"


def job(folder: Path, model: dict[str, Any]) -> dict[str, Any]:
    """Return a job over a few rows with this model."""
    write_shards(folder / "in", [20])
    return {
        "job": "stranger",
        "input": {"path": str(folder / "in")},
        "model": model,
        "output": {"path": str(folder / "out"), "carry": ["id"]},
    }


def load(model: dict[str, Any]) -> Any:
    """Load a model as a worker does."""
    cls = registry.load("backends", model["backend"])
    backend = cls(cls.Options.model_validate_json(json.dumps(model)))
    backend.load("cpu", threads=1)
    return backend


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An entry of the job's own, which builds a module."""
    (tmp_path / "stranger_nets.py").write_text(NET)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "stranger_nets", raising=False)
    return "stranger_nets:net"


@pytest.mark.parametrize(
    "name", ["w.pt", "w.pth", "w.bin", "w.ckpt", "w.pkl", "m.pt", "w.safetensors", "m.onnx"]
)
def test_a_pickle_is_never_loaded(tmp_path: Path, nets: str, trap: Path, name: str) -> None:
    """A pickle under any name that a model may have is refused, and not even opened as one."""
    (tmp_path / name).write_bytes(malicious_pickle(trap))
    model: dict[str, Any] = {"backend": "torch", "path": str(tmp_path / name)}
    if name.startswith("w"):
        model["entry"] = nets
    if name.endswith(".onnx"):
        model["backend"] = "onnx"
    with pytest.raises(BatchinferError) as caught:
        load(model)
    assert caught.value.exit_code in {65, 78}


def test_a_pickle_ends_the_command_with_78(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batchinfer: Run, trap: Path
) -> None:
    """The command says what the file could do, how to go on, and that the job is at fault."""
    torch.save(Payload(trap), tmp_path / "w.pth")
    (tmp_path / "stranger_nets.py").write_text(NET)
    document = job(tmp_path, {"path": str(tmp_path / "w.pth"), "entry": "stranger_nets:net"})
    (tmp_path / "job.yaml").write_text(json.dumps(document))
    done = batchinfer("run", str(tmp_path / "job.yaml"))
    assert done.returncode == 78
    assert "can run any code" in done.stderr
    assert "allow_unsafe_model: true" in done.stderr
    assert parts_of(tmp_path / "out") == {}


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_pickle_that_the_job_trusts_is_read_as_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nets: str, trap: Path, *, zipped: bool, forced: bool
) -> None:
    """Weights that a job allows are tensors: a payload among them does not run, whatever the environment
    tells torch."""
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"weight": Payload(trap)}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    model = {"backend": "torch", "path": str(tmp_path / "w.pth"), "entry": nets, "allow_unsafe_model": True}
    with pytest.raises(DataError, match="holds more than tensors"):
        load(model)


def test_a_folder_with_pickled_weights_is_refused(tmp_path: Path, trap: Path) -> None:
    """A transformers folder whose weights are a pickle, beside its config, is refused."""
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    (tmp_path / "pytorch_model.bin").write_bytes(malicious_pickle(trap))
    with pytest.raises(JobFileError, match="a pickle: it can run any code"):
        load({"backend": "transformers", "path": str(tmp_path)})


def test_an_exported_program_is_refused(tmp_path: Path, trap: Path) -> None:
    """A .pt2, whose records may be pickles, needs the job's word, and is not opened without it."""
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
        archive.writestr("m/archive_format", "pt2")
        archive.writestr("m/models/model.json", "{}")
        for record in ("data/weights/weight_0", "data/constants/opaque_0", "data/sample_inputs/model.pt"):
            archive.writestr(f"m/{record}", malicious_pickle(trap))
    with pytest.raises(JobFileError, match=r"an exported program \(\.pt2\) can run any code") as caught:
        load({"backend": "torch", "path": str(tmp_path / "m.pt2")})
    assert caught.value.exit_code == 78


def test_nothing_turns_the_guard_of_torch_off(tmp_path: Path, trap: Path) -> None:
    """After every component and its libraries are imported, torch still refuses a pickle by default."""
    torch.save(Payload(trap), tmp_path / "w.pt")
    code = (
        "import json, sys, torch, onnxruntime, transformers, safetensors.torch\n"
        "from batchinfer import registry\n"
        "for kind, names in registry.BUILT_IN.items():\n"
        "    for name in names: registry.load(kind, name)\n"
        "try: torch.load(sys.argv[1])\n"
        "except Exception as error: print(type(error).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "w.pt")],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env=environment(),
    )
    assert done.stdout.strip() == "UnpicklingError"


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_no_line_of_ours_unpickles_or_evaluates() -> None:
    """In the whole package nothing is unpickled or evaluated, no shell is started, and torch.load is
    called once, for weights only."""
    loads = []
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        names = {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        }
        names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not names & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}, path
        for call in calls(tree):
            name = ast.unparse(call.func)
            words = {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert name not in {"eval", "exec", "compile", "os.system", "os.popen", "yaml.load", "np.load"}, (
                path
            )
            assert words.get("shell", "False") == "False", path
            assert words.get("allow_pickle", "False") == "False", path
            assert words.get("trust_remote_code", "False") == "False", path
            assert "pickle_module" not in words, path
            if name == "torch.load":
                loads.append(words)
    assert [words["weights_only"] for words in loads] == ["True"]


def outside(folder: Path) -> str:
    (folder.parent / "secret").write_bytes(b"\0" * 16)
    return "../secret"


def absolute(folder: Path) -> str:
    (folder.parent / "secret").write_bytes(b"\0" * 16)
    return str(folder.parent / "secret")


def symbolic_link(folder: Path) -> str:
    (folder / "w.bin").symlink_to(folder.parent / outside(folder)[3:])
    return "w.bin"


def linked_folder(folder: Path) -> str:
    outside(folder)
    (folder / "sub").symlink_to(folder.parent)
    return "sub/secret"


def hard_link(folder: Path) -> str:
    outside(folder)
    (folder / "w.bin").hardlink_to(folder.parent / "secret")
    return "w.bin"


def no_name(folder: Path) -> str:
    return ""


@pytest.mark.parametrize("place", [outside, absolute, symbolic_link, linked_folder, hard_link, no_name])
@pytest.mark.parametrize("from_inside", [False, True])
def test_weights_of_an_onnx_model_lie_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Callable[[Path], str], *, from_inside: bool
) -> None:
    """A model that names another file as its weights is refused, however it leads there, and also where
    its own path has no folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", place(folder)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 4])
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [tensor])
    (folder / "m.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    monkeypatch.chdir(folder)
    with pytest.raises(DataError, match="it is not loaded"):
        load({"backend": "onnx", "path": "m.onnx" if from_inside else str(folder / "m.onnx")})


@pytest.mark.parametrize("key", ["trust_remote_code", "custom_ops", "custom_op_library", "session_options"])
def test_no_key_of_a_job_loads_foreign_code(tmp_path: Path, key: str) -> None:
    """There is no key that would run a folder's code or load a library of operators."""
    for backend in ("onnx", "transformers"):
        with pytest.raises(JobFileError, match=f"model.{key}: unknown key"):
            batchinfer.run_job(job(tmp_path, {"backend": backend, "path": "m", key: True}))


def test_code_in_a_model_folder_is_not_run(tmp_path: Path, trap: Path) -> None:
    """A folder that brings classes of its own, for its model and its tokenizer, is refused with them unrun."""
    code = f"import os\nos.mkdir({str(trap)!r})\nclass Config: ...\nclass Model: ...\nclass Words: ...\n"
    (tmp_path / "own.py").write_text(code)
    classes = {"AutoConfig": "own.Config", "AutoModel": "own.Model", "AutoTokenizer": ["own.Words", None]}
    config = {"model_type": "own", "architectures": ["Model"], "auto_map": classes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": classes}))
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ContractError, match="brings code of its own, which is not run"):
        load({"backend": "transformers", "path": str(tmp_path)})


def test_a_module_of_a_sentence_folder_is_not_run(tmp_path: Path, trap: Path) -> None:
    """A sentence-transformers folder may name any class in its modules.json: an unknown one is refused."""
    (tmp_path / "own.py").write_text(f"import os\nos.mkdir({str(trap)!r})\nclass Step: ...\n")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    steps = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "", "type": "own.Step"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(steps))
    with pytest.raises(ContractError, match="embeds with Step, which this backend does not compute"):
        load({"backend": "transformers", "path": str(tmp_path)})


def test_an_operator_that_onnxruntime_lacks_is_an_error(tmp_path: Path) -> None:
    """A model that needs a library of operators does not find one."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])
    graph = helper.make_graph([helper.make_node("Own", ["x"], ["y"], domain="own")], "g", [x], [y])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    (tmp_path / "m.onnx").write_bytes(
        helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    )
    with pytest.raises(DataError, match="no model that onnxruntime can load"):
        load({"backend": "onnx", "path": str(tmp_path / "m.onnx")})


@pytest.mark.parametrize("changed", ["m.onnx", "w.data"])
def test_a_model_that_changed_by_a_bit_is_another_one(tmp_path: Path, changed: str) -> None:
    """One bit of a model or of the weights beside it is enough: the output belongs to another job."""
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "m.onnx"
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    weights = numpy_helper.from_array(np.full(1, 2, np.float32), "w")
    graph = helper.make_graph([helper.make_node("Mul", ["x", "w"], ["y"])], "g", [x], [y], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path, save_as_external_data=True, location="w.data", size_threshold=0)
    document = job(tmp_path, {"path": str(path)})
    assert batchinfer.run_job(document).rows_ok == 20
    data = bytearray((path.parent / changed).read_bytes())
    data[data.index(b"w") if changed == "m.onnx" else 2] ^= 1
    (path.parent / changed).write_bytes(bytes(data))
    with pytest.raises(FingerprintError, match=r"model\.path") as caught:
        batchinfer.run_job(document)
    assert caught.value.exit_code == 67


def test_a_pinned_model_is_this_one(tmp_path: Path) -> None:
    """`model.sha256` refuses any other file before it is loaded."""
    (tmp_path / "m.onnx").write_bytes(b"anything")
    model = {"path": str(tmp_path / "m.onnx"), "sha256": "0" * 64}
    with pytest.raises(FingerprintError, match=r"model\.sha256 asks for 0000"):
        batchinfer.run_job(job(tmp_path, model))


def test_the_libraries_are_not_those_with_known_holes() -> None:
    """The lowest versions that may be installed are above those whose loaders could be made to run code."""
    import tomllib

    project = tomllib.loads((SOURCE.parent / "pyproject.toml").read_text())["project"]
    floors = {}
    for line in [*project["dependencies"], *project["optional-dependencies"]["transformers"]]:
        name, _, version = line.partition(";")[0].strip().partition(">=")
        floors[name] = tuple(int(part) for part in version.split("."))
    # The holes are CVE-2025-32434, CVE-2023-47248, CVE-2023-50447 and CVE-2025-27516.
    safe = {"torch": (2, 6), "pyarrow": (14, 0, 1), "Pillow": (10, 2), "Jinja2": (3, 1, 6)}
    assert {name: floors[name] >= version for name, version in safe.items()} == dict.fromkeys(safe, True)
