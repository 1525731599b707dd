"""The torch backend computes what the module computes, and loads nothing that could run code unasked."""

import importlib
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model

from batchinfer.backends.torch_module import TorchBackend, TorchOptions, TorchSignature
from batchinfer.errors import ContractError, DataError, DeviceError, JobFileError

ROWS = np.random.default_rng(3).standard_normal((10, 4)).astype(np.float32)
X = TorchSignature(inputs={"x": "float32[?, 4]"})


@pytest.fixture(autouse=True)
def _own_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let `torch_models` be imported, as the folder of a job file is."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    yield
    torch.set_num_threads(1)


@pytest.fixture
def state(weights: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Weights of `torch_models:Linear`."""
    return {
        "linear.weight": torch.from_numpy(weights["W"].T.copy()),
        "linear.bias": torch.from_numpy(weights["b"].copy()),
    }


@pytest.fixture
def expected(weights: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Results of all ROWS."""
    result: np.ndarray[Any, Any] = ROWS @ weights["W"] + weights["b"]
    return result


def linear(state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Return a filled module."""
    module: torch.nn.Module = importlib.import_module("torch_models").Linear()
    module.load_state_dict(state)
    return module.eval()


def loaded(device: str = "cpu", **options: Any) -> TorchBackend:
    """Return a loaded backend."""
    backend = TorchBackend(TorchOptions(**options))
    backend.load(device, threads=1)
    return backend


def safetensors(folder: Path, state: dict[str, torch.Tensor]) -> str:
    """Write weights and return the path."""
    save_file(state, folder / "w.safetensors")
    return str(folder / "w.safetensors")


def exported(folder: Path, state: dict[str, torch.Tensor], *, fixed: bool = False) -> str:
    """Write an exported program and return its path."""
    dynamic = None if fixed else {"x": {0: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(linear(state), (torch.ones(4, 4),), dynamic_shapes=dynamic)
    torch.export.save(program, folder / "m.pt2")
    return str(folder / "m.pt2")


def scripted(folder: Path, state: dict[str, torch.Tensor]) -> str:
    """Write TorchScript and return its path."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(linear(state)).save(str(folder / "m.pt"))
    return str(folder / "m.pt")


def test_a_factory_with_safetensors(tmp_path: Path, state: dict[str, torch.Tensor], expected: Any) -> None:
    """The module is built, filled, put into eval mode, and its output found by a probe."""
    backend = loaded(entry="torch_models:Linear", path=safetensors(tmp_path, state), signature=X)
    assert [str(spec) for spec in backend.inputs] == ["x: float32[?, 4]"]
    assert [str(spec) for spec in backend.outputs] == ["output: float32[?, 3]"]
    result = backend.forward({"x": ROWS})
    np.testing.assert_allclose(result["output"], expected, rtol=1e-5, atol=1e-6)
    backend.close()


def test_read_only_columns_are_taken(tmp_path: Path, state: dict[str, torch.Tensor], expected: Any) -> None:
    """A view of an Arrow buffer, which may not be written to, goes in without a warning."""
    rows = ROWS.copy()
    rows.setflags(write=False)
    backend = loaded(entry="torch_models:Linear", path=safetensors(tmp_path, state), signature=X)
    np.testing.assert_allclose(backend.forward({"x": rows})["output"], expected, rtol=1e-5, atol=1e-6)


def test_weights_must_fit_exactly(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    """Missing, unexpected and misshapen weights are all named at once."""
    wrong = {"linear.bias": torch.ones(7), "head.weight": torch.ones(2)}
    with pytest.raises(JobFileError) as caught:
        loaded(entry="torch_models:Linear", path=safetensors(tmp_path, wrong), signature=X)
    assert "the file lacks linear.weight" in caught.value.message
    assert "the model has no head.weight" in caught.value.message
    assert "linear.bias [7] for [3]" in caught.value.message


def test_an_exported_program_that_takes_a_dict(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    """What the program's call was made of is put together again, also without its example inputs."""
    module = importlib.import_module("torch_models").Nested()
    module.load_state_dict(state)
    rows = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        module.eval(),
        ({"x": torch.ones(2, 4)},),
        {"scale": torch.ones(2)},
        dynamic_shapes={"given": {"x": {0: rows}}, "scale": {0: rows}},
    )
    program._example_inputs = None
    torch.export.save(program, tmp_path / "m.pt2")
    backend = loaded(path=str(tmp_path / "m.pt2"), allow_unsafe_model=True)
    first, second = (spec.name for spec in backend.inputs)
    scale = np.arange(10, dtype=np.float32)
    result = backend.forward({first: ROWS, second: scale})["output"]
    expected = linear(state)(torch.from_numpy(ROWS)).detach().numpy() * scale[:, None]
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 10])
def test_an_exported_program_with_bounds(
    tmp_path: Path, state: dict[str, torch.Tensor], expected: Any, num_rows: int
) -> None:
    """A .pt2 that was made for 2 to 3 rows gets batches of that many, whatever comes."""
    rows = torch.export.Dim("rows", min=2, max=3)
    program = torch.export.export(linear(state), (torch.ones(2, 4),), dynamic_shapes={"x": {0: rows}})
    torch.export.save(program, tmp_path / "m.pt2")
    backend = loaded(path=str(tmp_path / "m.pt2"), allow_unsafe_model=True)
    result = backend.forward({"x": ROWS[:num_rows]})["output"]
    np.testing.assert_allclose(result, expected[:num_rows], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_rows", [1, 4, 5, 10])
@pytest.mark.parametrize("fixed", [False, True])
def test_an_exported_program(
    tmp_path: Path, state: dict[str, torch.Tensor], expected: Any, num_rows: int, *, fixed: bool
) -> None:
    """A .pt2 says itself what it takes and gives; one made for 4 rows takes any number of them."""
    backend = loaded(path=exported(tmp_path, state, fixed=fixed), allow_unsafe_model=True)
    assert [str(spec) for spec in backend.inputs] == ["x: float32[?, 4]"]
    assert [str(spec) for spec in backend.outputs] == ["output: float32[?, 3]"]
    result = backend.forward({"x": ROWS[:num_rows]})["output"]
    np.testing.assert_allclose(result, expected[:num_rows], rtol=1e-5, atol=1e-6)


def test_torchscript(tmp_path: Path, state: dict[str, torch.Tensor], expected: Any) -> None:
    """A .pt of TorchScript runs, with the job's signature."""
    signature = TorchSignature(inputs={"x": "float32[?, 4]"}, outputs={"y": "float32[?, 3]"})
    backend = loaded(path=scripted(tmp_path, state), allow_unsafe_model=True, signature=signature)
    np.testing.assert_allclose(backend.forward({"x": ROWS})["y"], expected, rtol=1e-5, atol=1e-6)


class Payload:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("name", ["m.pt2", "m.pt", "w.pt", "w.pth", "w.bin", "w.ckpt"])
def test_what_can_run_code_is_refused(tmp_path: Path, name: str) -> None:
    """Programs and pickles are not even opened unless the job says that their maker is trusted."""
    target = tmp_path / "ran"
    (tmp_path / name).write_bytes(pickle.dumps(Payload(target)))
    entry = "torch_models:Linear" if name.startswith("w") else None
    with pytest.raises(JobFileError, match="can run any code") as caught:
        loaded(path=str(tmp_path / name), entry=entry, signature=X)
    assert "allow_unsafe_model: true" in str(caught.value)
    assert not target.exists()


@pytest.mark.parametrize("name", ["w.pt", "w.pth"])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_payload_among_weights_does_not_run(tmp_path: Path, name: str, *, zipped: bool) -> None:
    """Also where pickles are allowed, weights are read as data: anything else is refused unrun."""
    target = tmp_path / "ran"
    torch.save({"linear.weight": Payload(target)}, tmp_path / name, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError, match="holds more than tensors"):
        loaded(path=str(tmp_path / name), entry="torch_models:Linear", signature=X, allow_unsafe_model=True)
    assert not target.exists()


def test_pickled_weights_where_allowed(tmp_path: Path, state: dict[str, torch.Tensor], expected: Any) -> None:
    """A state dict in a .pth fills the module, if the job allows it."""
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    backend = loaded(
        path=str(tmp_path / "w.pth"), entry="torch_models:Linear", signature=X, allow_unsafe_model=True
    )
    np.testing.assert_allclose(backend.forward({"x": ROWS})["output"], expected, rtol=1e-5, atol=1e-6)


def test_damaged_files_are_named(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    """A cut-off file is a DataError with its name, whatever its format."""
    for path in (safetensors(tmp_path, state), exported(tmp_path, state), scripted(tmp_path, state)):
        data = Path(path).read_bytes()
        Path(path).write_bytes(data[: len(data) // 2])
        entry = "torch_models:Linear" if path.endswith(".safetensors") else None
        with pytest.raises(DataError, match=Path(path).name):
            loaded(path=path, entry=entry, signature=X, allow_unsafe_model=True)


def test_what_is_missing_is_named(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    """No file, no program, nothing at all: each says what to write."""
    with pytest.raises(JobFileError, match=r"there is no file .*gone\.pt2"):
        loaded(path=str(tmp_path / "gone.pt2"))
    with pytest.raises(JobFileError, match="holds weights, but no program") as caught:
        loaded(path=safetensors(tmp_path, state))
    assert "model.entry: module:factory" in str(caught.value)
    with pytest.raises(JobFileError, match=r"model\.path or model\.entry is required"):
        loaded()


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("torch_models:fail", "torch_models:fail failed: KeyError: 'config'"),
        ("torch_models:no_module", "gave dict, which is no torch.nn.Module"),
        ("torch_models:nowhere", "cannot import torch_models:nowhere: AttributeError"),
        ("no_such_module:f", "cannot import no_such_module:f: .*No module named 'no_such_module'"),
    ],
)
def test_factories_that_fail_are_told(entry: str, reason: str) -> None:
    """What is wrong with a factory is said in one line."""
    with pytest.raises(JobFileError, match=reason):
        loaded(entry=entry, signature=X)


def test_the_line_of_a_failing_factory_is_named() -> None:
    """The place of an error in the job's own code is the code's, not ours."""
    with pytest.raises(JobFileError) as caught:
        loaded(entry="torch_models:fail", signature=X)
    assert "torch_models.py:" in str(caught.value.where)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("tuple", {"output_0": "float32[?, 3]", "output_1": "int64[?]"}),
        ("dict", {"y": "float32[?, 3]", "label": "int64[?]"}),
    ],
)
def test_several_outputs_have_names(kind: str, names: dict[str, str]) -> None:
    """A tuple's results are numbered, a dict's keep their keys; what is no result of a row is left out."""
    backend = loaded(entry="torch_models:Several", args={"kind": kind}, signature=X)
    assert [str(spec) for spec in backend.outputs] == [f"{name}: {text}" for name, text in names.items()]
    results = backend.forward({"x": ROWS})
    assert list(results) == list(names)
    scores, labels = results.values()
    np.testing.assert_array_equal(scores.argmax(-1), labels)


def test_a_number_for_the_whole_batch_is_refused() -> None:
    """A model that gives nothing for each row cannot be used."""
    with pytest.raises(ContractError, match="none of it has a row for each row"):
        loaded(entry="torch_models:Several", args={"kind": "sum"}, signature=X)


def test_the_names_of_the_signature_win() -> None:
    """A declared output names what is returned at its place, or under its key."""
    signature = TorchSignature(inputs={"x": "float32[?, 4]"}, outputs={"scores": "float64[?, 3]"})
    results = loaded(entry="torch_models:Several", args={"kind": "tuple"}, signature=signature).forward(
        {"x": ROWS}
    )
    assert results["scores"].dtype == np.float64
    by_key = TorchSignature(inputs={"x": "float32[?, 4]"}, outputs={"label": "int64[?]"})
    assert list(
        loaded(entry="torch_models:Several", args={"kind": "dict"}, signature=by_key).forward({"x": ROWS})
    ) == ["label"]


def test_a_wrong_signature_is_noticed() -> None:
    """An output that is not there, and one that would lose its fractions, stop the batch."""
    for outputs, reason in (
        ({"nothing": "float32[?]"}, "gave no 'nothing', but 'y', 'label', 'loss'"),
        ({"y": "int64[?, 3]"}, "gave 'y' as float32, which is no int64"),
    ):
        signature = TorchSignature(inputs={"x": "float32[?, 4]"}, outputs=outputs)
        backend = loaded(entry="torch_models:Several", args={"kind": "dict"}, signature=signature)
        with pytest.raises(DataError, match=reason):
            backend.forward({"x": ROWS})


def test_optional_inputs_are_called_by_name() -> None:
    """An argument with a default is an input where the job names it, in whatever order."""
    signature = TorchSignature(inputs={"shift": "float32[?]", "x": "float32[?, 4]"})
    backend = loaded(entry="torch_models:Several", args={"kind": "tuple"}, signature=signature)
    shift = np.arange(10, dtype=np.float32)
    plain = backend.forward({"x": ROWS, "shift": np.zeros_like(shift)})["output_0"]
    shifted = backend.forward({"x": ROWS, "shift": shift})["output_0"]
    np.testing.assert_allclose(shifted - plain, np.repeat(shift[:, None], 3, axis=1), atol=1e-5)


def test_arguments_without_names_are_given_in_order() -> None:
    """Where forward takes no keywords, inputs go in the order of the signature."""
    signature = TorchSignature(inputs={"left": "float32[?]", "right": "float32[?]"})
    backend = loaded(entry="torch_models:Positional", signature=signature)
    five, two = np.full(3, 5, np.float32), np.full(3, 2, np.float32)
    assert backend.forward({"right": two, "left": five})["output"].tolist() == [3, 3, 3]


def test_forward_names_the_inputs_where_the_job_does_not() -> None:
    """Without a signature of inputs any dtype and shape goes to forward's arguments; outputs must be declared."""
    signature = TorchSignature(outputs={"y": "float32[?, 3]"})
    backend = loaded(entry="torch_models:Linear", signature=signature)
    assert [(spec.name, spec.dtype) for spec in backend.inputs] == [("x", "any")]
    with pytest.raises(ContractError, match="what the model gives is not known") as caught:
        loaded(entry="torch_models:Linear")
    assert "signature: {inputs" in str(caught.value)


@pytest.mark.parametrize(("precision", "close"), [("fp16", 1e-2), ("bf16", 1e-1)])
def test_half_precision_computes_so_and_gives_float32(
    tmp_path: Path, state: dict[str, torch.Tensor], expected: Any, precision: Any, close: float
) -> None:
    """Weights and inputs are rounded, results are float32."""
    backend = loaded(
        entry="torch_models:Linear", path=safetensors(tmp_path, state), signature=X, precision=precision
    )
    result = backend.forward({"x": ROWS})["output"]
    assert result.dtype == np.float32
    assert not np.allclose(result, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(result, expected, rtol=close, atol=close)


def test_an_exported_programs_precision_is_its_own(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    """Half precision cannot be wished for on a .pt2."""
    with pytest.raises(ContractError, match="has its precision in it"):
        loaded(path=exported(tmp_path, state), allow_unsafe_model=True, precision="bf16")


def test_a_batch_that_does_not_fit_says_its_shape() -> None:
    """The model's refusal comes with the shapes of the batch."""
    with pytest.raises(DataError, match=r"refused a batch of x \[10, 3\]"):
        loaded(entry="torch_models:Linear", signature=X).forward({"x": ROWS[:, :3]})


Y = TorchSignature(inputs={"x": "float32[?, 4]"}, outputs={"y": "float32[?, 3]"})


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_a_device_without_memory_is_no_fault_of_the_rows(kind: str) -> None:
    """Where memory runs out, on a GPU or on the CPU, the error is the device's, with the way out."""
    backend = loaded(entry="torch_models:Failing", args={"kind": kind}, signature=Y)
    with pytest.raises(DeviceError, match=r"failed on a batch of x \[10, 4\]") as caught:
        backend.forward({"x": ROWS})
    assert "batching.size" in str(caught.value)


def test_what_a_module_says_of_its_rows_is_not_told() -> None:
    """Of an exception that the job's own module raises, class and line are told; torch's are told whole."""
    backend = loaded(entry="torch_models:Failing", args={"kind": "value"}, signature=Y)
    with pytest.raises(DataError, match=r"refused a batch of x \[10, 4\]: ValueError\n") as caught:
        backend.forward({"x": ROWS})
    assert "cannot take" not in str(caught.value)
    assert "torch_models.py:" in str(caught.value.where)
    with pytest.raises(DataError, match="RuntimeError: mat1 and mat2 shapes cannot be multiplied"):
        loaded(entry="torch_models:Linear", signature=X).forward({"x": ROWS[:, :3]})


def test_weights_that_are_one_may_stand_once(tmp_path: Path) -> None:
    """A file in which tied weights stand under one of their names fills both; an unknown name is refused."""
    signature = TorchSignature(inputs={"x": "int64[?]"}, outputs={"y": "float32[?, 4]"})
    whole = importlib.import_module("torch_models").Tied()
    save_model(whole, str(tmp_path / "tied.safetensors"))
    backend = loaded(entry="torch_models:Tied", path=str(tmp_path / "tied.safetensors"), signature=signature)
    rows = np.array([0, 3, 2])
    expected = whole(torch.from_numpy(rows)).detach().numpy()
    np.testing.assert_allclose(backend.forward({"x": rows})["y"], expected, rtol=1e-6)
    save_file({"other": torch.ones(4, 3)}, tmp_path / "tied.safetensors")
    with pytest.raises(JobFileError, match=r"the file lacks scores\.weight, words\.weight; .* no other"):
        loaded(entry="torch_models:Tied", path=str(tmp_path / "tied.safetensors"), signature=signature)


def test_channels_last_changes_no_result() -> None:
    """Images in another memory order give the same numbers."""
    signature = TorchSignature(inputs={"x": "float32[?, 3, 2, 4]"})
    images = np.random.default_rng(0).standard_normal((2, 3, 2, 4)).astype(np.float32)
    torch.manual_seed(0)
    plain = loaded(entry="torch_models:Linear", signature=signature).forward({"x": images})
    torch.manual_seed(0)
    other = loaded(entry="torch_models:Linear", signature=signature, channels_last=True)
    np.testing.assert_allclose(other.forward({"x": images})["output"], plain["output"], rtol=1e-5, atol=1e-6)


def test_compile_is_asked_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """`compile: true` runs what torch.compile returns."""
    monkeypatch.setattr(torch, "compile", lambda module, **_: lambda **given: module(**given) * 0 + 5)
    backend = loaded(entry="torch_models:Linear", signature=X, compile=True)
    assert set(backend.forward({"x": ROWS})["output"].ravel()) == {5}


def test_a_device_that_is_not_there_is_an_error() -> None:
    """A worker told to compute on a GPU that torch cannot use stops at once."""
    with pytest.raises(DeviceError, match="cuda:63"):
        loaded("cuda:63", entry="torch_models:Linear", signature=X)


@pytest.mark.parametrize("text", ["float32[4]", "flaot32[?]", "float32[?, many]"])
def test_types_are_checked_when_the_job_is_read(text: str) -> None:
    """A type that is none, or has no batch axis, is refused with what can be written."""
    with pytest.raises(ValueError, match=r"x: .*float32"):
        TorchSignature(inputs={"x": text})


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["entry", "exported"])
def test_tensors_stay_on_the_device(
    tmp_path: Path, state: dict[str, torch.Tensor], expected: Any, form: str
) -> None:
    """On CUDA, tensors go in and come out on the device, with the numbers of the CPU."""
    if form == "entry":
        backend = loaded(
            "cuda:0", entry="torch_models:Linear", path=safetensors(tmp_path, state), signature=X
        )
    else:
        backend = loaded("cuda:0", path=exported(tmp_path, state), allow_unsafe_model=True)
    result = backend.forward({"x": torch.from_numpy(ROWS).cuda()})["output"]
    assert result.is_cuda
    np.testing.assert_allclose(result.cpu().numpy(), expected, rtol=1e-4, atol=1e-5)
