"""A class of the job's own is a model; what goes wrong in it is told as its own."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batchinfer.backends.type_text import Signature
from batchinfer.backends.user_class import PythonBackend, PythonOptions
from batchinfer.errors import ContractError, DataError, DeviceError, JobFileError

BATCH = {"x": np.arange(3, dtype=np.float32), "name": pa.array(["a", "b", "é"])}
XY = Signature(inputs={"x": "float32[?]"}, outputs={"y": "float32[?]"})


@pytest.fixture(autouse=True)
def _own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `own_models` be imported, as the folder of a job file is."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def loaded(entry: str | None, **options: Any) -> PythonBackend:
    """Return a loaded backend."""
    backend = PythonBackend(PythonOptions(entry=entry, **options))
    backend.load("cpu", threads=1)
    return backend


def test_a_class_is_created_loaded_called_and_closed() -> None:
    """The object gets its arguments and the device, computes, and is closed once."""
    backend = loaded("own_models:Doubler", args={"factor": 3.0})
    assert [str(spec) for spec in backend.inputs] == ["x: float32[?]", "name: string[?]"]
    assert [str(spec) for spec in backend.outputs] == ["y: float32[?]", "greeting: string[?]"]
    results = backend.forward(BATCH)
    assert list(results) == ["y", "greeting"]
    assert results["y"].tolist() == [0, 3, 6]
    assert results["greeting"].to_pylist() == ["hi a", "hi b", "hi é"]
    own = backend._object
    backend.close()
    backend.close()
    assert own.events == ["cpu", "closed"]


def test_a_class_with_a_file_gets_its_path(tmp_path: Path) -> None:
    """`model.path`, whose content counts for the fingerprint, is an argument of the class."""
    assert loaded("own_models:Doubler", path=str(tmp_path))._object.path == str(tmp_path)


def test_results_outlive_the_next_batch() -> None:
    """A class may return the same buffer every time: earlier results keep their values."""
    backend = loaded("own_models:Doubler")
    first = backend.forward(BATCH)["y"]
    backend.forward({**BATCH, "x": np.full(3, 9, np.float32)})
    assert first.tolist() == [0, 2, 4]


def test_the_job_may_say_what_a_class_takes() -> None:
    """`signature` stands in for attributes that are not there; without either, both ways out are told."""
    assert loaded("own_models:Plain", signature=XY).forward(BATCH)["y"].tolist() == [0, 1, 2]
    with pytest.raises(ContractError, match="does not say its inputs") as caught:
        loaded("own_models:Plain")
    assert "model.signature" in str(caught.value)


def test_an_error_in_the_class_is_its_own() -> None:
    """Class, file and line of the user's error come through; its text, which may quote rows, does not."""
    backend = loaded("own_models:Plain", args={"kind": "fail"}, signature=XY)
    with pytest.raises(DataError, match="own_models:Plain raised ValueError\n") as caught:
        backend.forward(BATCH)
    assert "cannot do that" not in str(caught.value)
    file, _, line = str(caught.value.where).rpartition(":")
    assert Path(file).name == "own_models.py"
    assert "cannot do that" in Path(file).read_text().splitlines()[int(line) - 1]


@pytest.mark.parametrize("kind", ["memory", "torch"])
def test_a_device_without_memory_is_no_fault_of_the_rows(kind: str) -> None:
    """Where memory runs out, in NumPy or in torch, the error is the device's, with the way out."""
    backend = loaded("own_models:Plain", args={"kind": kind}, signature=XY)
    with pytest.raises(DeviceError, match="own_models:Plain raised") as caught:
        backend.forward(BATCH)
    assert "batching.size" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("list", "must return a dict of columns, but returned list"), ("other", "returned no 'y', but 'z'")],
)
def test_results_of_another_shape_are_told(kind: str, reason: str) -> None:
    """What is no dict, or lacks an output, is a DataError."""
    with pytest.raises(DataError, match=reason):
        loaded("own_models:Plain", args={"kind": kind}, signature=XY).forward(BATCH)


@pytest.mark.parametrize(
    ("entry", "args", "reason"),
    [
        (None, {}, r"model\.entry is required"),
        ("own_models:Nothing", {}, "gave Nothing, which has no __call__"),
        ("own_models:Plain", {"size": 1}, "TypeError.*size"),
        ("own_models:np", {}, "own_models:np failed: TypeError: 'module' object is not callable"),
        ("own_models:Broken", {}, "own_models:Broken: load failed: OSError: no weights"),
    ],
)
def test_what_is_no_model_is_told(entry: str | None, args: dict[str, Any], reason: str) -> None:
    """An entry that cannot be created or called is the job file's mistake."""
    with pytest.raises(JobFileError, match=reason):
        loaded(entry, args=args, signature=XY)
