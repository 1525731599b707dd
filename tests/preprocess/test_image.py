"""`image` gives the pixels that Pillow gives by hand, and refuses what is no picture."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import WebPImagePlugin

from batchinfer import tensors
from batchinfer.errors import ContractError, UnavailableError
from batchinfer.preprocess import image as image_step
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


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("resize", ["shortest", "stretch", "none"])
def test_draft(kind: str, resize: str) -> None:
    """A draft is a JPEG decoded at a fraction of its size, still at least as large as asked for; it is
    not the default, and nothing else has drafts."""
    data = picture(640, 400, kind)
    options = {"size": 64, "resize": resize, "resize_to": 90, "dtype": "uint8", "layout": "hwc"}
    drafted, full = (encode(step(**options, draft=draft), [data]) for draft in (True, False))
    image: Pillow.Image = Pillow.open(io.BytesIO(data))
    if resize != "none":
        image.draft(None, (90, 90) if resize == "shortest" else (64, 64))
    assert min(image.size) == (100 if kind == "JPEG" and resize != "none" else 400)
    side = 90 if resize == "shortest" else 64
    if resize != "none":
        width = int(side * max(image.size) / min(image.size)) if resize == "shortest" else side
        image = image.resize((width, side), Pillow.Resampling.BILINEAR)
    left, top = round((image.width - 64) / 2), round((image.height - 64) / 2)
    expected = np.asarray(image.crop((left, top, left + 64, top + 64)))
    found = tensors.to_numpy(drafted.rows["pixel_values"])[0]
    np.testing.assert_array_equal(found, expected)
    same = np.array_equal(found, tensors.to_numpy(full.rows["pixel_values"])[0])
    assert same == (kind == "PNG" or resize == "none")


def test_stretch_hwc_uint8() -> None:
    """Stretch ignores the aspect, hwc keeps channels last, uint8 keeps pixels."""
    data = picture(30, 60)
    encoded = encode(
        step(size=16, resize="stretch", layout="hwc", dtype="uint8", interpolation="bicubic"), [data]
    )
    expected = np.asarray(Pillow.open(io.BytesIO(data)).resize((16, 16), Pillow.Resampling.BICUBIC))
    np.testing.assert_array_equal(tensors.to_numpy(encoded.rows["pixel_values"])[0], expected)


def by_torchvision_rules(data: bytes, side: int, height: int, width: int) -> Any:
    """Resize the shortest side, pad and crop as torchvision's transforms are documented, on whole arrays."""
    image = Pillow.open(io.BytesIO(data)).convert("RGB")
    short, long = min(image.size), max(image.size)
    other = int(side * long / short)
    image = image.resize(
        (side, other) if image.width <= image.height else (other, side), Pillow.Resampling.BILINEAR
    )
    pixels = np.asarray(image)
    more_y, more_x = max(height - image.height, 0), max(width - image.width, 0)
    pixels = np.pad(
        pixels, ((more_y // 2, (more_y + 1) // 2), (more_x // 2, (more_x + 1) // 2), (0, 0)), "constant"
    )
    top, left = round((pixels.shape[0] - height) / 2), round((pixels.shape[1] - width) / 2)
    return pixels[top : top + height, left : left + width]


@given(*[st.integers(1, 40)] * 5)
def test_equals_torchvision(width: int, height: int, side: int, to_height: int, to_width: int) -> None:
    """Of any size to any size: rounding, cropping and padding fall as torchvision's do, to the pixel."""
    data = picture(width, height)
    made = step(size=[to_height, to_width], resize_to=side, layout="hwc", dtype="uint8")
    encoded = encode(made, [data])
    assert encoded.failed == {}
    np.testing.assert_array_equal(
        tensors.to_numpy(encoded.rows["pixel_values"])[0],
        by_torchvision_rules(data, side, to_height, to_width),
    )


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "RGBX", "CMYK"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    """Grey, palette and transparent pictures have three channels like any other."""
    kind = "JPEG" if mode in {"CMYK", "RGBX"} else "PNG"
    encoded = encode(step(size=8), [picture(20, 20, kind, mode)])
    assert encoded.failed == {}
    assert encoded.rows["pixel_values"].type.shape == [3, 8, 8]


def test_deep_grey_keeps_its_high_byte() -> None:
    """16-bit grey is scaled down to 8 bits, not clipped to white."""
    out = io.BytesIO()
    Pillow.fromarray(np.array([[0, 0x1234], [0x80FF, 0xFFFF]], np.uint16)).save(out, "PNG")
    encoded = encode(step(size=2, resize="none", dtype="uint8", layout="hwc"), [out.getvalue()])
    assert tensors.to_numpy(encoded.rows["pixel_values"])[0, ..., 0].tolist() == [[0, 0x12], [0x80, 0xFF]]


def test_transparency_lies_on_black() -> None:
    """What cannot be seen is black, whatever colour is written below it; half is half."""
    out = io.BytesIO()
    Pillow.fromarray(np.array([[[200, 100, 50, 0], [200, 100, 50, 128]]], np.uint8), "RGBA").save(out, "PNG")
    encoded = encode(step(size=[1, 2], resize="none", dtype="uint8", layout="hwc"), [out.getvalue()])
    assert tensors.to_numpy(encoded.rows["pixel_values"])[0].tolist() == [[[0, 0, 0], [100, 50, 25]]]


def test_orientation_is_applied() -> None:
    """A photo that says it lies on its side is turned upright."""
    tags = Pillow.Exif()
    tags[0x0112] = 6
    data = picture(40, 20, "JPEG", exif=tags.tobytes())
    upright = step(size=[40, 20], resize="stretch")
    turned = np.asarray(Pillow.open(io.BytesIO(data)).transpose(Pillow.Transpose.ROTATE_270))
    found = tensors.to_numpy(encode(upright, [data]).rows["pixel_values"])[0]
    np.testing.assert_allclose(found, turned.transpose(2, 0, 1) / 255, atol=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(orientation: int) -> None:
    """All eight orientations end as Pillow's own transposition says."""
    from PIL import ImageOps

    tags = Pillow.Exif()
    tags[0x0112] = orientation
    data = picture(12, 8, "JPEG", exif=tags.tobytes())
    upright = ImageOps.exif_transpose(Pillow.open(io.BytesIO(data)))
    made = step(
        size=[upright.height, upright.width], resize="none", crop="center", layout="hwc", dtype="uint8"
    )
    found = tensors.to_numpy(encode(made, [data]).rows["pixel_values"])[0]
    np.testing.assert_array_equal(found, np.asarray(upright))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_costs_nothing() -> None:
    """A picture whose EXIF is cut short is decoded all the same."""
    tags = Pillow.Exif()
    tags[0x0112] = 6
    assert encode(step(size=4), [picture(8, 8, "JPEG", exif=tags.tobytes()[:-6])]).failed == {}


def test_paths_are_read(tmp_path: Path) -> None:
    """A text column holds paths; one that is not there fails its row."""
    (tmp_path / "a.png").write_bytes(picture(9, 9))
    made = step(size=4, root=str(tmp_path))
    encoded = encode(made, ["a.png", "b.png"], pa.string())
    assert list(encoded.failed) == [1]
    assert encoded.failed[1].message == "the file cannot be read: there is no such file"


def test_a_relative_path_without_a_root() -> None:
    """Where the command was started is no part of a job: such a path fails its row."""
    encoded = encode(step(), ["a.png", None], pa.string())
    assert encoded.failed[0].message == "the path is relative, and image.root does not say to what"
    assert encoded.failed[1].message == "the image is null"


class Shelf:
    """A store of one picture, that may be out of reach."""

    def __init__(self, *, reachable: bool) -> None:
        self.reachable = reachable

    def read(self, uri: str) -> bytes:
        """Return the picture, whatever it is called."""
        if not self.reachable:
            raise UnavailableError("the network is down", where=uri)
        return picture(9, 9)


def test_one_store_for_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pictures a bucket holds, its client is made once, with the job's options."""
    opened = []

    def opening(url: str, options: dict[str, Any]) -> Shelf:
        opened.append((url, options))
        return Shelf(reachable=True)

    monkeypatch.setattr(image_step, "open_store", opening)
    made = step(root="s3://a/b/", storage_options={"region": "x"})
    paths = ["1.png", "s3://a/2.png", "s3://c/3.png", "4.png", "/local/5.png", "/6.png"]
    assert encode(made, paths, pa.string()).failed == {}
    assert opened == [
        ("s3://a/b/1.png", {"region": "x"}),
        ("s3://c/3.png", {"region": "x"}),
        ("/local/5.png", {"region": "x"}),
    ]


def test_a_store_that_gives_out_fails_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage ends the run, which can be resumed; recorded as failed rows it would be lost data."""
    monkeypatch.setattr(image_step, "open_store", lambda *_: Shelf(reachable=False))
    with pytest.raises(UnavailableError, match="the network is down"):
        encode(step(), ["s3://a/1.png"], pa.string())


def test_a_url_that_nothing_serves() -> None:
    """A row with a scheme that nobody knows fails alone."""
    encoded = encode(step(), ["nope://x/1.png"], pa.string())
    assert encoded.failed[0].message.startswith("the file cannot be read")


def test_a_path_that_is_no_utf8(tmp_path: Path) -> None:
    """Its row fails, and its neighbour is read."""
    (tmp_path / "a.png").write_bytes(picture(9, 9))
    paths = pa.array([b"\xff", b"a.png"]).view(pa.string())
    made = step(size=4, root=str(tmp_path))
    encoded = made.encode(pa.RecordBatch.from_pydict({"bytes": paths}))
    assert {row: failure.message for row, failure in encoded.failed.items()} == {
        0: "column 'bytes' is not valid UTF-8"
    }


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
        picture(64, 64, "JPEG")[:400],
        picture(64, 64, "WEBP")[:25],
        picture(64, 64, "WEBP")[:200],
        b"",
        b"\x89PNG\r\n\x1a\n",
    ]
    encoded = encode(step(size=4), values)
    messages = {row: failure.message for row, failure in encoded.failed.items()}
    assert messages[1] == "the image is null"
    assert messages[2] == "not a JPEG, PNG or WebP image (7 bytes)"
    assert messages[3].startswith("the image is damaged")
    assert messages[4] == "the image claims 60000x60000 pixels, above max_pixels 89478485"
    assert messages[5].startswith("not a JPEG, PNG or WebP image")
    for row in (6, 7, 8, 10):
        assert messages[row].startswith("the image is damaged: ")
        assert " at 0x" not in messages[row]
    assert messages[9] == "not a JPEG, PNG or WebP image (0 bytes)"
    assert 0 not in messages
    assert {failure.code for failure in encoded.failed.values()} == {"decode"}


def claimed_webp(width: int, height: int) -> bytes:
    """Return a lossless WebP that claims a size and holds nothing."""
    bits = (width - 1) | (height - 1) << 14
    body = b"WEBPVP8L" + struct.pack("<I", 10) + b"\x2f" + struct.pack("<I", bits) + bytes(5)
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_webp_of_any_kind(lossless: bool, mode: str) -> None:
    """The three ways in which WebP writes its size are read as its decoder reads them."""
    data = picture(33, 17, "WEBP", mode, lossless=lossless, exif=b"x" if mode == "RGBA" else b"")
    for max_pixels, fails in ((33 * 17, False), (33 * 17 - 1, True)):
        encoded = encode(step(size=4, max_pixels=max_pixels), [data])
        assert bool(encoded.failed) is fails
    assert encoded.failed[0].message == "the image claims 33x17 pixels, above max_pixels 560"


def test_a_webp_bomb_is_refused_unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its decoder, which takes memory for what the file claims, is never made."""
    monkeypatch.setattr(WebPImagePlugin, "WebPImageFile", None)
    message = encode(step(size=4), [claimed_webp(16_000, 16_000)]).failed[0].message
    assert message == "the image claims 16000x16000 pixels, above max_pixels 89478485"


def test_a_line_is_not_blown_up() -> None:
    """A picture of few pixels whose scaled copy would fill the memory is refused before it is scaled."""
    out = io.BytesIO()
    Pillow.new("L", (60_000, 1)).save(out, "PNG")
    message = encode(step(), [out.getvalue()]).failed[0].message
    assert message == "the image would be scaled to 13440000x224 pixels, above max_pixels 89478485"
    assert encode(step(resize="stretch"), [out.getvalue()]).failed == {}


def test_nothing_of_the_process_is_changed() -> None:
    """Threads decode side by side, and leave Pillow's own limit and the warning filters alone."""
    before = (Pillow.MAX_IMAGE_PIXELS, list(warnings.filters))
    made = step(size=8)
    pictures = [picture(20 + n, 30) for n in range(16)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda data: encode(made, [data, b"x"]), pictures))
    assert (Pillow.MAX_IMAGE_PIXELS, list(warnings.filters)) == before
    for data, encoded in zip(pictures, found, strict=True):
        assert list(encoded.failed) == [1]
        np.testing.assert_array_equal(
            tensors.to_numpy(encoded.rows["pixel_values"]),
            tensors.to_numpy(encode(made, [data, b"x"]).rows["pixel_values"]),
        )


def test_the_tensor_column_can_be_cut_and_joined() -> None:
    """Rows are dropped, taken, cut and joined on their way: pixels stay with their row."""
    rows = encode(step(size=2), [picture(4 + n, 5) for n in range(4)]).rows
    column, whole = rows["pixel_values"], tensors.to_numpy(rows["pixel_values"])
    for found, expected in (
        (rows.filter(pa.array([True, False, False, True]))["pixel_values"], whole[[0, 3]]),
        (rows.take(pa.array([3, 0, 0]))["pixel_values"], whole[[3, 0, 0]]),
        (rows.slice(1, 2)["pixel_values"], whole[1:3]),
        (pa.concat_arrays([column.slice(3), column]), whole[[3, 0, 1, 2, 3]]),
    ):
        assert found.type == column.type
        np.testing.assert_array_equal(tensors.to_numpy(found), expected)
    assert encode(step(size=2), []).rows.num_rows == 0


@pytest.mark.parametrize(
    "options", [{"size": 0}, {"size": [4, 0]}, {"resize_to": 0}, {"std": [1, 0, 1]}, {"max_pixels": 0}]
)
def test_numbers_that_make_no_picture(options: dict[str, Any]) -> None:
    """Sizes are at least one, and nothing is divided by zero."""
    with pytest.raises(ValueError, match="greater than"):
        step(**options)


def test_refusals() -> None:
    """A column of numbers holds no pictures, and pictures of different sizes make no batch."""
    with pytest.raises(ContractError, match="must hold image bytes or paths"):
        step().output_schema(pa.schema([("bytes", pa.int64())]))
    with pytest.raises(ContractError, match="leave images of different sizes"):
        step(resize="none", crop="none").output_schema(pa.schema([("bytes", pa.binary())]))
