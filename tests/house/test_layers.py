"""The rules of the house: who may import whom, and which library lives in which room."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "batchinfer"

LEVELS = [
    {"clock", "crash", "errors", "data", "events", "protocols", "options", "redact", "frames", "lifeline"},
    {
        "config",
        "storage",
        "arrow_views",
        "tensors",
        "device_faults",
        "device_health",
        "hardware",
        "xids",
        "registry",
        "transient",
        "user_code",
        "onnx_files",
        "row_errors",
        "pixels",
    },
    {"sources", "preprocess", "loader", "backends", "postprocess", "sinks", "testing"},
    {"engine"},
    {"runner", "telemetry"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
FREE_INSIDE = {0, 1}  # the two lowest levels may see their own neighbours

FENCES = {
    "fsspec": ("storage/",),
    "obstore": ("storage/",),
    "yaml": ("config/",),
    "pydantic": ("options.py", "config/", "runner/"),
    "pynvml": ("hardware.py",),
    "tokenizers": ("preprocess/", "backends/"),
    "PIL": ("preprocess/",),
    "jinja2": ("preprocess/",),
    "torch": ("backends/", "engine/", "preprocess/image_device.py"),
    "torchvision": ("preprocess/image_device.py",),
    "onnxruntime": ("backends/onnx_session.py",),
    "transformers": ("backends/hf_model.py",),
    "safetensors": ("backends/",),
    "subprocess": ("runner/", "engine/loaders.py", "cli/doctor.py"),
    "prometheus_client": ("telemetry/",),
    "openlineage": ("telemetry/lineage.py",),
    "rich": ("telemetry/", "cli/"),
    "typer": ("cli/",),
    "click": (),
    "multiprocessing": (),
    "pickle": (),
}


def files() -> list[Path]:
    """Return every module of the package."""
    return sorted(ROOT.rglob("*.py"))


def imports(node: ast.AST) -> Iterator[str]:
    """Yield every import that can run, wherever it stands; TYPE_CHECKING blocks cannot."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "absolute imports only"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        yield from imports(child)


def room_of(where: str) -> str:
    """Return the room a file is in."""
    return where.split("/", maxsplit=1)[0].removesuffix(".py")


def is_allowed(here: str, there: str) -> bool:
    """Tell whether one room may import another."""
    if here == there:
        return True
    if LEVEL[here] == LEVEL[there]:
        return LEVEL[here] in FREE_INSIDE
    return LEVEL[there] < LEVEL[here]


def looking_up(where: str, source: str) -> list[str]:
    """Return the imports of a file that its room may not make."""
    here = room_of(where)
    wrong = []
    for name in imports(ast.parse(source)):
        package, _, rest = name.partition(".")
        there = rest.split(".")[0]
        if package == "batchinfer" and there in LEVEL and not is_allowed(here, there):
            wrong.append(f"{where} imports {name}")
    return wrong


def out_of_room(where: str, source: str) -> list[str]:
    """Return the libraries that a file imports outside the rooms that own them."""
    wrong = []
    for name in imports(ast.parse(source)):
        rooms = FENCES.get(name.split(".")[0])
        if rooms is not None and not where.startswith(rooms):
            wrong.append(f"{where} imports {name}")
    return wrong


def test_rooms_only_look_down() -> None:
    """A room imports its own files and rooms below it, and never a sibling trade."""
    assert [
        line
        for path in files()
        if room_of(where := path.relative_to(ROOT).as_posix()) in LEVEL
        for line in looking_up(where, path.read_text())
    ] == []


def test_each_library_has_its_rooms() -> None:
    """A third-party library is imported in the rooms that own it and nowhere else."""
    assert [
        line for path in files() for line in out_of_room(path.relative_to(ROOT).as_posix(), path.read_text())
    ] == []


def test_every_room_has_a_place() -> None:
    """A new room must be given a level before it may exist."""
    rooms = {room_of(path.name) for path in ROOT.iterdir() if not path.name.startswith(("__", "py.typed"))}
    assert rooms - LEVEL.keys() == set()


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("storage/posix.py", "from batchinfer.sources.parquet import ParquetSource"),
        ("sources/csv_text.py", "def f():\n    import batchinfer.sinks.parquet"),
        ("engine/unit.py", "from batchinfer.runner import job"),
    ],
)
def test_the_rule_catches_a_break(where: str, source: str) -> None:
    """An import upwards or sideways is found, also inside a function."""
    assert looking_up(where, source)


def test_the_fence_catches_a_break() -> None:
    """A library outside its room is found; a typing-only import is not one."""
    assert out_of_room("runner/job.py", "import torch") == ["runner/job.py imports torch"]
    assert out_of_room("runner/job.py", "if TYPE_CHECKING:\n    import torch") == []
