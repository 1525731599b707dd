"""`image` gives the pixels that Pillow gives by hand, and refuses what is no picture."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image as Pillow

from batchinfer import tensors
from batchinfer.errors import ContractError
from batchinfer.preprocess.image import Image, ImageOptions


def step(**options: Any) -> Image:
    return Image(ImageOptions.model_validate_json(json.dumps({"column": "bytes", **options})))


def picture(width: int, height: int, kind: str = "PNG", mode: str = "RGB", **more: Any) -> bytes:
    """Return an encoded picture of random pixels."""
    seed = np.random.default_rng(width * 1000 + height)
    pixels = Pillow.fromarray(seed.integers(0, 255, (height, width, 3), np.uint8)).convert(mode)
    out = io.BytesIO()
    pixels.save(out, kind, **more)
    return out.getvalue()


def encode(made: Image, values: list[Any], type_: pa.DataType | None = None) -> Any:
    rows = pa.RecordBatch.from_pydict({"bytes": pa.array(values, type_ or pa.binary())})
    made.output_schema(rows.schema)
    return made.encode(rows)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_resize_crop_normalize(kind: str) -> None:
    """The shortest side is scaled, the middle is cut out, channels come first, then (x - mean) / std."""
    data = picture(80, 50, kind)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    encoded = encode(step(size=[24, 32], resize_to=40, mean=mean, std=std), [data])
    by_hand = Pillow.open(io.BytesIO(data)).convert("RGB").resize((64, 40), Pillow.Resampling.BILINEAR)
    by_hand = by_hand.crop((16, 8, 48, 32))
    expected = (np.asarray(by_hand) / np.float32(255) - np.array(mean, np.float32)) / np.array(
        std, np.float32
    )
    np.testing.assert_allclose(
        tensors.to_numpy(encoded.rows["pixel_values"])[0], expected.transpose(2, 0, 1), atol=1e-6
    )


def test_stretch_hwc_uint8() -> None:
    """Stretch ignores the aspect, hwc keeps channels last, uint8 keeps pixels."""
    data = picture(30, 60)
    encoded = encode(
        step(size=16, resize="stretch", layout="hwc", dtype="uint8", interpolation="bicubic"), [data]
    )
    expected = np.asarray(Pillow.open(io.BytesIO(data)).resize((16, 16), Pillow.Resampling.BICUBIC))
    np.testing.assert_array_equal(tensors.to_numpy(encoded.rows["pixel_values"])[0], expected)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    """Grey, palette and transparent pictures have three channels like any other."""
    encoded = encode(step(size=8), [picture(20, 20, "PNG", mode)])
    assert encoded.failed == {}
    assert encoded.rows["pixel_values"].type.shape == [3, 8, 8]


def test_orientation_is_applied() -> None:
    """A photo that says it lies on its side is turned upright."""
    tags = Pillow.Exif()
    tags[0x0112] = 6
    data = picture(40, 20, "JPEG", exif=tags.tobytes())
    upright = step(size=[40, 20], resize="stretch")
    turned = np.asarray(Pillow.open(io.BytesIO(data)).transpose(Pillow.Transpose.ROTATE_270))
    found = tensors.to_numpy(encode(upright, [data]).rows["pixel_values"])[0]
    np.testing.assert_allclose(found, turned.transpose(2, 0, 1) / 255, atol=1e-6)


def test_paths_are_read(tmp_path: Path) -> None:
    """A text column holds paths; one that is not there fails its row."""
    (tmp_path / "a.png").write_bytes(picture(9, 9))
    made = step(size=4, root=str(tmp_path))
    encoded = encode(made, ["a.png", "b.png"], pa.string())
    assert list(encoded.failed) == [1]
    assert encoded.failed[1].message == "the file cannot be read: there is no such file"


def claimed(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and holds nothing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(b""), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


def test_what_is_no_picture_fails_its_row() -> None:
    """Null, garbage, a truncated file, a bomb and a format that was not asked for: each costs its row."""
    gif = io.BytesIO()
    Pillow.new("RGB", (4, 4)).save(gif, "GIF")
    values = [
        picture(9, 9),
        None,
        b"garbage",
        picture(64, 64)[:-200],
        claimed(60_000, 60_000),
        gif.getvalue(),
    ]
    encoded = encode(step(size=4), values)
    messages = {row: failure.message for row, failure in encoded.failed.items()}
    assert messages[1] == "the image is null"
    assert messages[2] == "not a JPEG, PNG or WebP image (7 bytes)"
    assert messages[3].startswith("the image is damaged")
    assert messages[4] == "the image claims 60000x60000 pixels, above max_pixels 89478485"
    assert messages[5].startswith("not a JPEG, PNG or WebP image")
    assert 0 not in messages
    assert {failure.code for failure in encoded.failed.values()} == {"decode"}


def test_refusals() -> None:
    """A column of numbers holds no pictures, and pictures of different sizes make no batch."""
    with pytest.raises(ContractError, match="must hold image bytes or paths"):
        step().output_schema(pa.schema([("bytes", pa.int64())]))
    with pytest.raises(ContractError, match="leave images of different sizes"):
        step(resize="none", crop="none").output_schema(pa.schema([("bytes", pa.binary())]))
