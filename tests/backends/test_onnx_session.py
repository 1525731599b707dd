"""The ONNX backend gives what onnxruntime gives, says what a model takes, and never changes the provider."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest
from onnx import TensorProto, helper

from batchinfer.backends.onnx_session import OnnxBackend, OnnxOptions
from batchinfer.errors import ContractError, DataError, DeviceError

ROWS = np.random.default_rng(3).standard_normal((10, 4)).astype(np.float32)


def loaded(path: str, device: str = "cpu", **options: Any) -> OnnxBackend:
    """Return a loaded backend."""
    backend = OnnxBackend(OnnxOptions(path=path, **options))
    backend.load(device, threads=1)
    return backend


def save(path: Path, graph: onnx.GraphProto) -> str:
    """Write a graph as a model file."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return str(path)


@pytest.mark.parametrize("external", [False, True])
def test_results_are_the_models(make_onnx: Any, weights: dict[str, Any], *, external: bool) -> None:
    """A batch gives x @ W + b, with the weights in the file or beside it."""
    backend = loaded(make_onnx(external=external))
    results = backend.forward({"x": ROWS})
    assert list(results) == ["y"]
    np.testing.assert_allclose(results["y"], ROWS @ weights["W"] + weights["b"], rtol=1e-5, atol=1e-6)
    backend.close()


def test_the_signature_is_the_files(make_onnx: Any) -> None:
    """Names, dtypes and sizes come from the file; the batch axis is always open."""
    backend = loaded(make_onnx())
    assert [str(spec) for spec in backend.inputs] == ["x: float32[?, 4]"]
    assert [str(spec) for spec in backend.outputs] == ["y: float32[?, 3]"]


def test_sizes_that_inputs_tell_are_known_before_the_run(make_onnx: Any) -> None:
    """An output's shape follows from the inputs' where their axes have the same names, else not."""
    known = loaded(make_onnx())._signature
    assert known.output_shape("y", {"x": (7, 4)}) == (7, 3)
    assert loaded(make_onnx(out="other"))._signature.output_shape("y", {"x": (7, 4)}) is None
    assert loaded(make_onnx(batch=4))._signature.output_shape("y", {"x": (4, 4)}) == (4, 3)


@pytest.mark.parametrize("num_rows", [1, 3, 4, 5, 8, 10])
def test_a_fixed_batch_axis_is_filled_up(make_onnx: Any, weights: dict[str, Any], num_rows: int) -> None:
    """A model made for 4 rows takes any number of them and gives as many results."""
    backend = loaded(make_onnx(batch=4))
    assert backend.inputs[0].shape == (None, 4)
    results = backend.forward({"x": ROWS[:num_rows]})["y"]
    expected = ROWS[:num_rows] @ weights["W"] + weights["b"]
    np.testing.assert_allclose(results, expected, rtol=1e-5, atol=1e-6)


def test_results_outlive_the_next_batch(make_onnx: Any) -> None:
    """What one batch gave is not overwritten by the next."""
    backend = loaded(make_onnx())
    first = backend.forward({"x": ROWS})["y"]
    before = first.copy()
    backend.forward({"x": ROWS * 100})
    np.testing.assert_array_equal(first, before)


@pytest.mark.parametrize(("sizes", "shown"), [(["n"], "?"), (["n", 1], "?, 1")])
def test_text_goes_in_and_out(tmp_path: Path, sizes: list[Any], shown: str) -> None:
    """A model over strings takes an Arrow column and gives one, also as a vector of one per row."""
    x = helper.make_tensor_value_info("x", TensorProto.STRING, sizes)
    y = helper.make_tensor_value_info("y", TensorProto.STRING, sizes)
    path = save(
        tmp_path / "m.onnx", helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    )
    backend = loaded(path)
    assert [str(spec) for spec in backend.inputs] == [f"x: string[{shown}]"]
    assert backend.forward({"x": pa.array(["é", ""])})["y"].to_pylist() == ["é", ""]


def test_outputs_without_a_row_axis_are_left_out(tmp_path: Path) -> None:
    """A number for the whole batch is no result of a row; alone, it is refused."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    mean = helper.make_tensor_value_info("mean", TensorProto.FLOAT, [])
    nodes = [
        helper.make_node("Identity", ["x"], ["y"]),
        helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0),
    ]
    both = loaded(save(tmp_path / "m.onnx", helper.make_graph(nodes, "g", [x], [y, mean])))
    assert [spec.name for spec in both.outputs] == ["y"]
    assert list(both.forward({"x": ROWS})) == ["y"]
    with pytest.raises(ContractError, match=r"no output .'mean'. has a batch axis"):
        loaded(save(tmp_path / "n.onnx", helper.make_graph(nodes[1:], "g", [x], [mean])))


def test_results_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    """A list of maps, as scikit-learn converters write it, is named with the way out."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    y = helper.make_value_info(
        "y", helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, ["n"]))
    )
    graph = helper.make_graph([helper.make_node("SplitToSequence", ["x"], ["y"], axis=1)], "g", [x], [y])
    with pytest.raises(ContractError, match=r"seq\(tensor\(float\)\).*(?s:.*)zipmap"):
        loaded(save(tmp_path / "m.onnx", graph))


def test_a_provider_that_does_not_load_is_an_error(
    make_onnx: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A provider that is left out (onnxruntime raises nothing then) ends the load, and the reason is said."""
    import onnxruntime

    class Lame(onnxruntime.InferenceSession):  # type: ignore[misc]
        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    path = make_onnx()
    backend = OnnxBackend(OnnxOptions(path=path, providers=("XnnpackExecutionProvider", "cpu")))
    available = ["XnnpackExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, settings, **_: Lame(path, settings, providers=["CPUExecutionProvider"]),
    )
    with pytest.raises(DeviceError, match="could not load XnnpackExecutionProvider") as caught:
        backend.load("cpu", threads=1)
    assert "batchinfer doctor" in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_gpu_is_not_replaced_by_the_cpu(make_onnx: Any) -> None:
    """Asking for cuda where the worker has the CPU is an error with both ways out, whatever else is listed."""
    with pytest.raises(DeviceError, match="asks for CUDAExecutionProvider") as caught:
        loaded(make_onnx(), providers=("cuda", "cpu"))
    assert "model.providers: [cpu]" in str(caught.value)
    assert "batchinfer doctor" in str(caught.value)


def test_a_device_that_is_not_there_is_an_error(make_onnx: Any) -> None:
    """A worker told to compute on a GPU that torch cannot use stops at once."""
    with pytest.raises(DeviceError, match="cuda:63"):
        loaded(make_onnx(), "cuda:63")


def test_an_unknown_provider_is_listed_against_the_known(make_onnx: Any) -> None:
    """A provider that this build does not have is named, with those that it has."""
    with pytest.raises(DeviceError, match=r"no FancyExecutionProvider; it has .*CPUExecutionProvider"):
        loaded(make_onnx(), providers=("FancyExecutionProvider",))
    with pytest.raises(ValueError, match="must be cpu, cuda, tensorrt or end in"):
        OnnxOptions(providers=("gpu",))


def test_damaged_models_are_named(make_onnx: Any, tmp_path: Path) -> None:
    """Truncated weights and a graph that makes no sense are DataErrors with the file's name."""
    path = make_onnx(external=True)
    os.truncate(tmp_path / "model.data", 5)
    with pytest.raises(DataError, match=r"model\.onnx is no model that onnxruntime can load"):
        loaded(path)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph([helper.make_node("Identity", ["nowhere"], ["y"])], "g", [], [y])
    with pytest.raises(DataError, match=r"senseless\.onnx is no model that onnxruntime can load"):
        loaded(save(tmp_path / "senseless.onnx", graph))


def test_a_batch_that_does_not_fit_says_its_shape(make_onnx: Any) -> None:
    """The model's refusal comes with the shapes of the batch, not with its values."""
    with pytest.raises(DataError, match=r"refused a batch of x \[10, 3\]"):
        loaded(make_onnx()).forward({"x": np.ascontiguousarray(ROWS[:, :3])})


def test_precision_is_the_files(make_onnx: Any) -> None:
    """Half precision cannot be wished for on a file that is fp32."""
    with pytest.raises(ContractError, match="an ONNX file has its precision in it"):
        loaded(make_onnx(), precision="fp16")


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("batch", "out"), [("rows", None), ("rows", "unknown"), (4, None)], ids=["known", "open", "fixed"]
)
def test_tensors_stay_on_the_device(make_onnx: Any, weights: dict[str, Any], batch: Any, out: Any) -> None:
    """On CUDA, tensors go in and come out on the device, with the numbers of the CPU."""
    import onnxruntime
    import torch

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime is the one for CPUs")
    backend = loaded(make_onnx(batch=batch, out=out), "cuda:0")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        result = backend.forward({"x": torch.from_numpy(ROWS).cuda()})["y"]
    stream.synchronize()
    assert result.is_cuda
    expected = ROWS @ weights["W"] + weights["b"]
    np.testing.assert_allclose(result.cpu().numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_the_cpu_can_be_asked_for_on_a_gpu(make_onnx: Any, weights: dict[str, Any]) -> None:
    """`providers: [cpu]` takes the device's tensors and gives host arrays."""
    import torch

    result = loaded(make_onnx(), "cuda:0", providers=("cpu",)).forward({"x": torch.from_numpy(ROWS).cuda()})
    np.testing.assert_allclose(result["y"], ROWS @ weights["W"] + weights["b"], rtol=1e-5, atol=1e-6)
