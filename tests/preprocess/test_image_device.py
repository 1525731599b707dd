"""Images that a GPU decodes, and pixels that it normalizes.

torchvision's own decoder needs a GPU. Here a stand-in decodes with Pillow and scales with torch, behind the
same three functions, with the same arguments.
"""

from __future__ import annotations

import io
import itertools
import json
import random
import sys
import types
from enum import Enum
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image as Pillow

import batchinfer
from batchinfer import tensors
from batchinfer.engine.ring_pipeline import RingPipeline
from batchinfer.engine.steps import load_steps
from batchinfer.errors import ContractError, DeviceError
from batchinfer.preprocess.image import Image, ImageOptions
from batchinfer.runner import assemble
from batchinfer.storage import open_store
from batchinfer.testing import LazyDevice
from tests.engine.test_traps_whole import on_device

_spaces = itertools.count()


class Mode(Enum):
    """torchvision.io.ImageReadMode."""

    RGB = 3


class Interpolation(Enum):
    """torchvision.transforms.v2.functional.InterpolationMode."""

    BILINEAR = "bilinear"


class Decoder:
    """Counts its calls, and fails whole where one picture is bad, as torchvision does."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def decode_jpeg(
        self, blobs: list[torch.Tensor], mode: Mode, device: str, apply_exif_orientation: bool
    ) -> list[torch.Tensor]:
        """Decode with Pillow."""
        assert (mode, device, apply_exif_orientation) == (Mode.RGB, "cpu", True)
        self.calls.append(len(blobs))
        pictures = []
        for blob in blobs:
            try:
                picture = Pillow.open(io.BytesIO(blob.numpy().tobytes())).convert("RGB")
            except OSError as error:
                raise RuntimeError("nvjpegDecode failed") from error
            pictures.append(torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy()))
        return pictures


def resize(picture: torch.Tensor, size: list[int], *, interpolation: Interpolation, antialias: bool) -> Any:
    """Scale with torch."""
    scaled = torch.nn.functional.interpolate(
        picture[None].float(), size=size, mode=interpolation.value, antialias=antialias
    )
    return scaled[0].round().clamp(0, 255).to(torch.uint8)


def center_crop(picture: torch.Tensor, size: list[int]) -> torch.Tensor:
    """Cut the middle out."""
    top, left = ((picture.shape[axis + 1] - size[axis]) // 2 for axis in (0, 1))
    return picture[:, top : top + size[0], left : left + size[1]]


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> Decoder:
    """Put the stand-in where torchvision would be."""
    made = Decoder()
    modules = {
        "torchvision": {},
        "torchvision.io": {"decode_jpeg": made.decode_jpeg, "ImageReadMode": Mode},
        "torchvision.transforms": {},
        "torchvision.transforms.v2": {},
        "torchvision.transforms.v2.functional": {
            "InterpolationMode": Interpolation,
            "resize": resize,
            "center_crop": center_crop,
        },
    }
    for name, members in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)
    return made


def step(**options: Any) -> Image:
    """Make the step."""
    return Image(ImageOptions.model_validate_json(json.dumps({"column": "bytes", **options})))


def picture(width: int, height: int, kind: str = "JPEG") -> bytes:
    """Return a smooth picture, which scales alike whoever scales it."""
    x, y = np.meshgrid(np.linspace(0, 250, width), np.linspace(0, 250, height))
    pixels = np.stack([x, y, (x + y) / 2], axis=2).astype(np.uint8)
    out = io.BytesIO()
    Pillow.fromarray(pixels).save(out, kind)
    return out.getvalue()


def encoded(made: Image, values: list[bytes]) -> Any:
    """Run the step."""
    rows = pa.RecordBatch.from_pydict({"bytes": pa.array(values, pa.binary())})
    made.output_schema(rows.schema)
    return made.encode(rows)


@pytest.mark.parametrize("layout", ["chw", "hwc"])
def test_what_the_device_decodes_is_what_the_cpu_decodes(decoder: Decoder, layout: str) -> None:
    """All JPEGs of a chunk are decoded in one call; what the device cannot decode, the CPU does, or says
    why it cannot."""
    values = [
        picture(80, 50),
        picture(50, 80),
        picture(60, 60, "PNG"),
        b"\xff\xd8\xff damaged",
        b"no picture",
        picture(64, 64),
    ]
    options = {"size": [24, 32], "resize_to": 40, "layout": layout, "mean": [0.4, 0.5, 0.6]}
    on_cpu = encoded(step(**options), values)
    made = step(**options)
    made.decode_on("cpu")
    there = encoded(made, values)
    assert decoder.calls == [3]
    assert there.failed == on_cpu.failed
    assert sorted(there.failed) == [3, 4]
    good = [0, 1, 2, 5]
    ours, theirs = (tensors.to_numpy(found.rows["pixel_values"])[good] for found in (there, on_cpu))
    np.testing.assert_allclose(ours, theirs, atol=3 / 255)
    assert (ours[2] == theirs[2]).all()


def test_one_that_the_device_refuses_takes_no_other_along(decoder: Decoder) -> None:
    """A JPEG that is cut off looks well until it is decoded: it fails alone."""
    whole = picture(300, 300)
    values = [picture(80, 50), whole[: len(whole) // 3], picture(70, 70)]
    made = step(size=16)
    made.decode_on("cpu")
    found = encoded(made, values)
    assert decoder.calls == [3, 1, 1, 1]
    assert sorted(found.failed) == [1]
    assert "damaged" in found.failed[1].message


def test_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch, decoder: Decoder) -> None:
    """`decode: gpu` is refused without a GPU, in loader processes, and without torchvision."""
    with pytest.raises(ContractError, match="needs a GPU, and the model runs on cpu"):
        step(decode="gpu").place("cpu", alone=True, in_loader=False)
    with pytest.raises(ContractError, match="loader processes"):
        step(decode="gpu").place("cuda:0", alone=True, in_loader=True)
    step(decode="gpu").place("cuda:0", alone=True, in_loader=False)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(DeviceError, match="torchvision"):
        step(decode="gpu").place("cuda:0", alone=True, in_loader=False)


def keep(rows: pa.RecordBatch) -> dict[str, Any]:
    """Read the pixels, and change nothing."""
    assert tensors.to_numpy(rows["pixel_values"]).dtype == np.float32
    return {"seen": pa.array([True] * rows.num_rows)}


def run_images(layout: str, values: list[bytes], *later: dict[str, Any]) -> pa.Table:
    """Run pictures through a model that keeps their pixels, and return the output."""
    root = f"memory://pixels-{next(_spaces)}"
    out = pa.BufferOutputStream()
    pq.write_table(pa.table({"bytes": pa.array(values, pa.binary())}), out)
    store = open_store(root, {})
    store.put(f"{root}/in/rows.parquet", out.getvalue())
    shape = "3, 8, 8" if layout == "chw" else "8, 8, 3"
    signature = {
        "inputs": {"pixel_values": f"float32[?, {shape}]"},
        "outputs": {"kept": f"float32[?, {shape}]"},
    }
    image = {"column": "bytes", "size": 8, "layout": layout, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.7]}
    batchinfer.run_job(
        {
            "job": "t",
            "input": {"path": f"{root}/in/"},
            "preprocess": [{"image": image}, *later],
            "model": {"backend": "simulated", "seconds_per_batch": 0, "signature": signature},
            "batching": {"size": 5},
            "compute": {"concurrency": 1, "loaders": "threads"},
            "output": {"path": f"{root}/out/"},
        }
    )
    (part,) = store.glob(f"{root}/out/**/*.parquet")
    return pq.read_table(pa.BufferReader(store.read(part.uri)))


@pytest.mark.parametrize("layout", ["chw", "hwc"])
def test_pixels_travel_as_bytes(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a GPU, pixels are bytes in every buffer up to the device, which normalizes them: to the very
    numbers that the CPU would have sent. Not where a later step reads them."""
    rng = np.random.default_rng(7)
    values = [picture(int(size), 40) for size in rng.integers(20, 60, 23)]
    expected = run_images(layout, values)
    staged: list[np.dtype[Any]] = []

    class Watched(RingPipeline):
        """Notes what is staged."""

        def stage(self, batch: Any) -> Any:
            """Note, and stage."""
            staged.extend(column.dtype for column in batch.tensors.values())
            return super().stage(batch)

    monkeypatch.setattr("tests.engine.test_traps_whole.RingPipeline", Watched)
    monkeypatch.setattr(assemble, "load_steps", lambda job, _: load_steps(job, "cuda:0"))
    on_device(monkeypatch, LazyDevice(), random.Random(3))
    assert run_images(layout, values).equals(expected)
    assert staged
    assert set(staged) == {np.dtype(np.uint8)}
    staged.clear()
    again = {
        "python": {"function": f"{__name__}:keep", "columns": ["pixel_values"], "output": {"seen": "bool"}}
    }
    assert run_images(layout, values, again).equals(expected)
    assert set(staged) == {np.dtype(np.float32)}
