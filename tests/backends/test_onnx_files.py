"""A model file may name other files as the place of its weights: only its own are opened."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from batchinfer.errors import DataError, JobFileError
from batchinfer.onnx_files import check_onnx_files


def external(name: str, location: str) -> onnx.TensorProto:
    """Return a tensor of 4 floats that says its data is in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    return tensor


def graph_with(tensor: onnx.TensorProto, *, name: str = "g") -> onnx.GraphProto:
    """Return y = x + tensor."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 4])
    return helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], name, [x], [y], [tensor])


def save(folder: Path, graph: onnx.GraphProto) -> str:
    """Write a model file and return its path."""
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return str(path)


def test_weights_beside_the_model_are_its_own(tmp_path: Path) -> None:
    """A regular file in the model's folder or below it passes."""
    (tmp_path / "m" / "weights").mkdir(parents=True)
    (tmp_path / "m" / "weights" / "w.bin").write_bytes(b"\0" * 16)
    check_onnx_files(save(tmp_path / "m", graph_with(external("w", "weights/w.bin"))))


def test_a_link_to_a_model_is_followed_once(tmp_path: Path) -> None:
    """The folder that counts is the real file's, and its path is given back for loading."""
    path = save(tmp_path / "m", graph_with(external("w", "w.bin")))
    (tmp_path / "m" / "w.bin").write_bytes(b"\0" * 16)
    (tmp_path / "link.onnx").symlink_to(path)
    assert check_onnx_files(str(tmp_path / "link.onnx")) == path


def _symlink(folder: Path) -> str:
    (folder / "w.bin").symlink_to(folder.parent / "secret")
    return "w.bin"


def _symlinked_folder(folder: Path) -> str:
    (folder / "sub").symlink_to(folder.parent)
    return "sub/secret"


def _hardlink(folder: Path) -> str:
    (folder / "w.bin").hardlink_to(folder.parent / "secret")
    return "w.bin"


def _folder(folder: Path) -> str:
    (folder / "w.bin").mkdir()
    return "w.bin"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda _: "../secret", "leads out of the model's folder"),
        (lambda folder: str(folder.parent / "secret"), "leads out of the model's folder"),
        (lambda _: "a/../../secret", "leads out of the model's folder"),
        (lambda _: "gone.bin", "is not there"),
        (lambda _: "", "is no file name"),
        (_symlink, "is reached through a symbolic link"),
        (_symlinked_folder, "is reached through a symbolic link"),
        (_hardlink, "has 2 hard links"),
        (_folder, "is no regular file"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, make: Callable[[Path], str], reason: str) -> None:
    """A location that is not a plain file of the model's own is refused, and the way out is said."""
    (tmp_path / "secret").write_bytes(b"\0" * 16)
    (tmp_path / "m").mkdir()
    path = save(tmp_path / "m", graph_with(external("w", make(tmp_path / "m"))))
    with pytest.raises(DataError, match=reason) as caught:
        check_onnx_files(path)
    assert path in caught.value.message
    assert "folder of their own" in str(caught.value)


def _in_a_branch() -> onnx.GraphProto:
    inner = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["z"])],
        "branch",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [4])],
        [external("w", "../secret")],
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    graph = graph_with(numpy_helper.from_array(np.zeros(4, np.float32), "w"))
    graph.node.append(node)
    return graph


def _in_a_constant() -> onnx.GraphProto:
    graph = graph_with(numpy_helper.from_array(np.zeros(4, np.float32), "w"))
    graph.node.append(helper.make_node("Constant", [], ["c"], value=external("c", "../secret")))
    return graph


def _in_a_sparse_tensor() -> onnx.GraphProto:
    graph = graph_with(numpy_helper.from_array(np.zeros(4, np.float32), "w"))
    sparse = graph.sparse_initializer.add()
    sparse.values.CopyFrom(external("v", "../secret"))
    return graph


@pytest.mark.parametrize("make", [_in_a_branch, _in_a_constant, _in_a_sparse_tensor])
def test_locations_are_found_wherever_a_tensor_can_stand(
    tmp_path: Path, make: Callable[[], onnx.GraphProto]
) -> None:
    """Branches of a node, constants and sparse tensors are searched too."""
    with pytest.raises(DataError, match="leads out"):
        check_onnx_files(save(tmp_path / "m", make()))


def test_locations_are_found_in_functions(tmp_path: Path) -> None:
    """A model's local functions are searched too."""
    model = helper.make_model(graph_with(numpy_helper.from_array(np.zeros(4, np.float32), "w")))
    function = model.functions.add(name="f", domain="d")
    function.node.append(helper.make_node("Constant", [], ["c"], value=external("c", "../secret")))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(DataError, match="leads out"):
        check_onnx_files(str(path))


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    """A file that was cut off inside its graph is refused with its name."""
    whole = Path(save(tmp_path / "m", graph_with(numpy_helper.from_array(np.ones(4, np.float32), "w"))))
    check_onnx_files(str(whole))
    data = whole.read_bytes()
    cut = tmp_path / "cut.onnx"
    graph_end = data.rindex(b"y\x12") + 1
    for stop in range(graph_end):
        cut.write_bytes(data[:stop])
        with pytest.raises(DataError, match="not a whole ONNX model"):
            check_onnx_files(str(cut))


@pytest.mark.parametrize("data", [b"", b"not a model at all", b"\xff" * 64, b"PK\x03\x04" + b"\0" * 60])
def test_other_files_are_no_models(tmp_path: Path, data: bytes) -> None:
    """Text, a zip or rubbish is refused as no ONNX model."""
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(DataError, match="not a whole ONNX model"):
        check_onnx_files(str(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A path where nothing is belongs to the job file."""
    with pytest.raises(JobFileError, match=r"there is no file .*gone\.onnx"):
        check_onnx_files(str(tmp_path / "gone.onnx"))
