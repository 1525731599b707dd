"""`image`: JPEG, PNG or WebP bytes (or paths) to pixels: resize, crop, normalize, layout."""

from __future__ import annotations

import io
import warnings
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from batchinfer.data import Encoded, ErrorCode, Failure
from batchinfer.errors import BatchinferError, ContractError
from batchinfer.options import Field, JobPath, Options
from batchinfer.preprocess.appending import with_column, with_field

_FORMATS = ("JPEG", "PNG", "WEBP")
_MODES_WITH_ALPHA = {"RGBA", "LA", "PA"}


class ImageOptions(Options):
    """Images to pixels."""

    column: str
    """Image bytes, or paths (text): local, or URLs that a store serves."""

    root: JobPath | None = None
    """Folder or URL that relative paths in the column start from."""

    size: int | tuple[int, int] = 224
    """Side of the result in pixels, or [height, width]."""

    resize: Literal["shortest", "stretch", "none"] = "shortest"
    """Scale so that the shortest side is `resize_to`; or straight to `size`; or not at all."""

    resize_to: int | None = None
    """Length of the shortest side before the crop; by default the larger side of `size`."""

    crop: Literal["center", "none"] = "center"
    """Cut `size` out of the middle (what is smaller is padded with black)."""

    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    """How pixels are made when scaling, with antialiasing, as Pillow does."""

    dtype: Literal["float32", "uint8"] = "float32"
    """float32: pixel * scale, then (x - mean) / std. uint8: pixels as they are."""

    scale: float = 1 / 255
    """Factor for float32 pixels."""

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Subtracted per channel, red first."""

    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Divisor per channel, red first."""

    layout: Literal["chw", "hwc"] = "chw"
    """Channels first (torch) or last (TensorFlow)."""

    to: str = "pixel_values"
    """Name of the column to add."""

    max_pixels: int = Field(default=89_478_485, ge=1)
    """Larger images fail before they are decoded."""


class Image:
    """Decodes with Pillow, which needs no GIL while it decodes. RGB; transparency lies on black;
    EXIF orientation is applied."""

    Options = ImageOptions
    shorthand: ClassVar[str] = "column"

    def __init__(self, options: ImageOptions) -> None:
        self._options = options
        size = options.size
        self._size = (size, size) if isinstance(size, int) else size
        height, width = self._size
        self._shape = (3, height, width) if options.layout == "chw" else (height, width, 3)

    def input_columns(self) -> frozenset[str]:
        """The image column."""
        return frozenset({self._options.column})

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        """Add the pixels as a fixed-shape tensor column."""
        type_ = schema.field(self._options.column).type
        kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_string, pa.types.is_large_string)
        if not any(kind(type_) for kind in kinds):
            raise ContractError(
                f"column {self._options.column!r} has type {type_}: must hold image bytes or paths"
            )
        if self._options.resize == "none" and self._options.crop == "none":
            raise ContractError("resize: none and crop: none leave images of different sizes", hint="set one")
        return with_field(schema, self._field)

    def encode(self, rows: pa.RecordBatch) -> Encoded:
        """Decode each image straight into its place of the batch. One that cannot be decoded fails."""
        dtype = np.dtype(self._options.dtype)
        pixels = np.zeros((rows.num_rows, *self._shape), dtype)
        failed: dict[int, Failure] = {}
        for row, value in enumerate(rows[self._options.column]):
            try:
                pixels[row] = self._pixels(value.as_py())
            except _UnreadableError as error:
                failed[row] = Failure(ErrorCode.DECODE, str(error))
        storage = pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), int(np.prod(self._shape)))
        column = pa.ExtensionArray.from_storage(self._field.type, storage)
        return Encoded(with_column(rows, self._field, column), failed)

    @property
    def _field(self) -> pa.Field:
        value = pa.uint8() if self._options.dtype == "uint8" else pa.float32()
        return pa.field(self._options.to, pa.fixed_shape_tensor(value, self._shape))

    def _pixels(self, value: bytes | str | None) -> np.ndarray[Any, Any]:
        """Return one image as an array of the wanted shape and dtype."""
        if value is None:
            raise _UnreadableError("the image is null")
        image = self._resized(_decode(self._read(value), self._options.max_pixels))
        array = np.asarray(image)
        if self._options.dtype == "float32":
            mean = np.asarray(self._options.mean, np.float32)
            std = np.asarray(self._options.std, np.float32)
            array = (array * np.float32(self._options.scale) - mean) / std
        return array.transpose(2, 0, 1) if self._options.layout == "chw" else array

    def _read(self, value: bytes | str) -> bytes:
        if isinstance(value, bytes):
            return value
        from batchinfer.storage import open_store

        root = self._options.root
        whole = (
            value
            if root is None or "://" in value or value.startswith("/")
            else f"{root.rstrip('/')}/{value}"
        )
        try:
            return open_store(whole, {}).read(whole)
        except BatchinferError as error:
            raise _UnreadableError(f"the file cannot be read: {error.message}") from error

    def _resized(self, image: Any) -> Any:
        from PIL import Image as Pillow

        methods = {
            "bilinear": Pillow.Resampling.BILINEAR,
            "bicubic": Pillow.Resampling.BICUBIC,
            "nearest": Pillow.Resampling.NEAREST,
        }
        method = methods[self._options.interpolation]
        height, width = self._size
        if self._options.resize == "stretch":
            image = image.resize((width, height), method)
        elif self._options.resize == "shortest":
            side = self._options.resize_to or max(height, width)
            # Rounded down on the longer side, as torchvision does.
            short, long = min(image.size), max(image.size)
            other = max(int(side * long / short), 1)
            image = image.resize((side, other) if image.width <= image.height else (other, side), method)
        if self._options.crop == "center" and image.size != (width, height):
            left = round((image.width - width) / 2)
            top = round((image.height - height) / 2)
            image = image.crop((left, top, left + width, top + height))
        if image.size != (width, height):
            raise _UnreadableError(
                f"the image is {image.width}x{image.height} after resizing, not {width}x{height}"
            )
        return image


class _UnreadableError(Exception):
    """One image cannot be used; the message says why."""


def _refuse_bomb(image: Any, max_pixels: int) -> None:
    """Look at the claimed size, before anything is decoded."""
    if image.width * image.height > max_pixels:
        raise _UnreadableError(
            f"the image claims {image.width}x{image.height} pixels, above max_pixels {max_pixels}"
        )


def _decode(data: bytes, max_pixels: int) -> Any:
    """Open, check and decode an image to upright RGB. Raises _UnreadableError."""
    from PIL import Image as Pillow
    from PIL import ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Pillow warns of odd metadata, which is no news, and has a limit of its own: ours is below.
            warnings.simplefilter("ignore")
            Pillow.MAX_IMAGE_PIXELS = None
            image = Pillow.open(io.BytesIO(data), formats=_FORMATS)
            _refuse_bomb(image, max_pixels)
            upright = ImageOps.exif_transpose(image)
            if upright.mode in _MODES_WITH_ALPHA or "transparency" in upright.info:
                black = Pillow.new("RGBA", upright.size, (0, 0, 0, 255))
                return Pillow.alpha_composite(black, upright.convert("RGBA")).convert("RGB")
            return upright.convert("RGB")
    except _UnreadableError:
        raise
    except UnidentifiedImageError:
        raise _UnreadableError(f"not a JPEG, PNG or WebP image ({len(data)} bytes)") from None
    except Exception as error:
        # Decoders raise nearly anything on damaged files.
        raise _UnreadableError(f"the image is damaged: {error}") from error
