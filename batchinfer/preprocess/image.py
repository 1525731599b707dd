"""`image`: JPEG, PNG or WebP bytes (or paths) to pixels: resize, crop, normalize, layout."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from batchinfer.arrow_views import column_of
from batchinfer.config.sections import StorageOptions
from batchinfer.data import Encoded, ErrorCode, Failure
from batchinfer.errors import AccessError, BatchinferError, ContractError, LocalDiskError, UnavailableError
from batchinfer.options import Field, JobPath, Options, neutral
from batchinfer.pixels import Pixels
from batchinfer.preprocess.appending import with_column, with_field
from batchinfer.preprocess.image_bytes import UnreadableImage, decode, refuse_size
from batchinfer.preprocess.image_device import DeviceJpegs
from batchinfer.preprocess.row_values import python_values
from batchinfer.storage import open_store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image as Picture

    from batchinfer.storage.door import Store

Side = Annotated[int, Field(ge=1)]
Divisor = Annotated[float, Field(gt=0)]

_URL = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*://[^/]*)/")


class ImageOptions(Options):
    """Images to pixels."""

    column: str
    """Image bytes, or paths (text): local, or URLs that a store serves."""

    root: JobPath | None = None
    """Folder or URL that relative paths in the column start from; without it, they fail their rows."""

    storage_options: StorageOptions = neutral(dict, repr=False)
    """For paths: what the store's client needs (endpoint_url, region, key, secret); from `${env:NAME}`."""

    size: Side | tuple[Side, Side] = 224
    """Side of the result in pixels, or [height, width]."""

    resize: Literal["shortest", "stretch", "none"] = "shortest"
    """Scale so that the shortest side is `resize_to`; or straight to `size`; or not at all."""

    resize_to: Side | None = None
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

    std: tuple[Divisor, Divisor, Divisor] = (1.0, 1.0, 1.0)
    """Divisor per channel, red first."""

    layout: Literal["chw", "hwc"] = "chw"
    """Channels first (torch) or last (TensorFlow)."""

    to: str = "pixel_values"
    """Name of the column to add."""

    decode: Literal["cpu", "gpu"] = "cpu"
    """gpu: JPEGs are decoded, scaled and cut on the GPU of the model by torchvision, to be installed: pixels
    differ a little from the CPU's. What is no JPEG is decoded on the CPU."""

    draft: bool = False
    """Decode JPEGs at half, a quarter or an eighth of their size where that is still as large as is asked
    for: several times as fast, and other pixels."""

    max_pixels: int = Field(default=89_478_485, ge=1)
    """Larger images fail before they are decoded, and so do those that scaling would make larger."""


class Image:
    """Decodes with Pillow, which needs no GIL while it decodes. RGB; transparency lies on black; EXIF
    orientation is applied; of moving images the first frame, of 16-bit grey the high byte."""

    Options = ImageOptions
    shorthand: ClassVar[str] = "column"

    def __init__(self, options: ImageOptions) -> None:
        self._options = options
        size = options.size
        self._size = (size, size) if isinstance(size, int) else size
        height, width = self._size
        self._shape = (3, height, width) if options.layout == "chw" else (height, width, 3)
        # What becomes of each of the 256 values of a channel.
        mean, std = np.asarray(options.mean, np.float32), np.asarray(options.std, np.float32)
        values = np.arange(256, dtype=np.uint8)[:, None]
        self._normalized = np.ascontiguousarray(((values * np.float32(options.scale) - mean) / std).T)
        self._stores: dict[str, Store] = {}
        self._is_raw = options.dtype == "uint8"
        self._on_device: DeviceJpegs | None = None

    def place(self, device: str, *, alone: bool, in_loader: bool) -> None:
        """Leave to a GPU what it does better: normalizing, where nobody else reads the pixels; and decoding,
        where that is asked for. Raises ContractError where it cannot be done."""
        is_gpu = device.startswith("cuda")
        self._is_raw |= is_gpu and alone
        if self._options.decode == "cpu":
            return
        if not is_gpu:
            raise ContractError(
                f"decode: gpu needs a GPU, and the model runs on {device}", hint="decode: cpu"
            )
        if in_loader:
            raise ContractError(
                "decode: gpu cannot be done in loader processes", hint="compute: {loaders: threads}"
            )
        self.decode_on(device)

    def decode_on(self, device: str) -> None:
        """Have JPEGs decoded by a device, "cuda:N"; "cpu" is for tests. Raises DeviceError."""
        self._on_device = DeviceJpegs(
            device,
            scaled=self._scaled,
            size=self._size,
            interpolation=self._options.interpolation,
            max_pixels=self._options.max_pixels,
        )

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
        """Decode each image straight into its place of the batch. One that cannot be decoded fails.

        Raises UnavailableError, AccessError or LocalDiskError where the store of a path gives out: that
        is no fault of the row.
        """
        pixels = np.zeros((rows.num_rows, *self._shape), np.uint8 if self._is_raw else np.float32)
        values, unread = python_values(self._options.column, rows[self._options.column])
        failed: dict[int, Failure] = dict(unread)
        done = self._decode_there(pixels, values) if self._on_device is not None else set()
        for row, value in enumerate(values):
            if row in unread or row in done:
                continue
            try:
                self._fill(pixels[row], value)
            except UnreadableImage as error:
                failed[row] = Failure(ErrorCode.DECODE, str(error))
        storage = pa.FixedSizeListArray.from_arrays(column_of(pixels.reshape(-1)), int(np.prod(self._shape)))
        column = pa.ExtensionArray.from_storage(self._field.type, storage)
        return Encoded(with_column(rows, self._field, column), failed)

    @property
    def _field(self) -> pa.Field:
        options = self._options
        value = pa.uint8() if self._is_raw else pa.float32()
        later = None
        if self._is_raw and options.dtype == "float32":
            later = Pixels(options.scale, options.mean, options.std, channels_last=options.layout == "hwc")
        return pa.field(
            options.to, pa.fixed_shape_tensor(value, self._shape), metadata=later and later.to_metadata()
        )

    def _fill(self, pixels: np.ndarray[Any, Any], value: bytes | str | None) -> None:
        """Decode one image into its place, which has the wanted shape and dtype."""
        if value is None:
            raise UnreadableImage("the image is null")
        data = value if isinstance(value, bytes) else self._read(value)
        image = decode(data, max_pixels=self._options.max_pixels, at_least=self._least_side())
        array = np.asarray(self._cropped(self._resized(image)))
        self._put(pixels, array.transpose(2, 0, 1))

    def _put(self, pixels: np.ndarray[Any, Any], array: np.ndarray[Any, Any]) -> None:
        """Put the pixels of an image, uint8 of shape (3, height, width), into its place."""
        channels = pixels if self._options.layout == "chw" else pixels.transpose(2, 0, 1)
        if self._is_raw:
            channels[...] = array
            return
        for channel, normalized in enumerate(self._normalized):
            np.take(normalized, array[channel], out=channels[channel], mode="clip")

    def _decode_there(self, pixels: np.ndarray[Any, Any], values: Sequence[Any]) -> set[int]:
        """Fill in what the device decodes, and return which those are."""
        assert self._on_device is not None
        done = set()
        for row, array in self._on_device.decode(
            {row: value for row, value in enumerate(values) if isinstance(value, bytes)}
        ):
            self._put(pixels[row], array)
            done.add(row)
        return done

    def _least_side(self) -> int | None:
        """Return the side that decoding must leave, None for all there is."""
        if not self._options.draft or self._options.resize == "none":
            return None
        stretch = self._options.resize == "stretch"
        return max(self._size) if stretch else self._options.resize_to or max(self._size)

    def _read(self, path: str) -> bytes:
        """Read a file, from the store of its scheme and bucket, which is opened once."""
        if not (path.startswith("/") or _URL.match(path)):
            if self._options.root is None:
                raise UnreadableImage("the path is relative, and image.root does not say to what")
            path = f"{self._options.root.rstrip('/')}/{path}"
        found = _URL.match(path)
        bucket = found.group(1) if found else "/"
        try:
            if bucket not in self._stores:
                self._stores[bucket] = open_store(path, self._options.storage_options)
            return self._stores[bucket].read(path)
        except (AccessError, UnavailableError, LocalDiskError):
            raise
        except BatchinferError as error:
            raise UnreadableImage(f"the file cannot be read: {error.message}") from error
        except (TypeError, ValueError) as error:
            # What a store's client makes of a URL that it cannot take apart.
            raise UnreadableImage("the file cannot be read: no store serves such a URL") from error

    def _resized(self, image: Picture) -> Picture:
        from PIL.Image import Resampling

        size = self._scaled(image.height, image.width)
        if size is None:
            return image
        return image.resize(size[::-1], Resampling[self._options.interpolation.upper()])

    def _scaled(self, height: int, width: int) -> tuple[int, int] | None:
        """Return the height and width to which an image is scaled; None for not at all."""
        if self._options.resize == "none":
            return None
        size = self._size
        if self._options.resize == "shortest":
            side = self._options.resize_to or max(size)
            # Rounded down on the longer side, as torchvision does.
            other = int(side * max(height, width) / min(height, width))
            size = (other, side) if width <= height else (side, other)
        # A thin line of an image is small, and its scaled copy is not.
        refuse_size("would be scaled to", size[1], size[0], self._options.max_pixels)
        return size

    def _cropped(self, image: Picture) -> Picture:
        height, width = self._size
        if self._options.crop == "center":
            left, top = _margin(image.width, width), _margin(image.height, height)
            image = image.crop((left, top, left + width, top + height))
        if image.size != (width, height):
            raise UnreadableImage(
                f"the image is {image.width}x{image.height} after resizing, not {width}x{height}"
            )
        return image


def _margin(given: int, wanted: int) -> int:
    """Return where the middle begins; below zero where black is added. Rounded as torchvision does."""
    return -((wanted - given) // 2) if given < wanted else round((given - wanted) / 2)
