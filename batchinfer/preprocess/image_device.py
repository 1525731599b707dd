"""JPEGs decoded, scaled and cut by the device that runs the model, through torchvision (nvJPEG)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from batchinfer.errors import DeviceError
from batchinfer.preprocess.image_bytes import UnreadableImage, jpeg_size

if TYPE_CHECKING:
    from collections.abc import Callable

_MOST_PIXELS = 64 * 1024 * 1024
"""Pixels decoded at once: about 200 MB of the device's memory."""


class DeviceJpegs:
    """Decodes JPEGs on "cuda:N" (or on "cpu", which is for tests). Called from several threads.

    `scaled` says to which (height, width) a picture of some height and width is scaled, None for not at all,
    and raises UnreadableImage for one that must not be; `size` is what is then cut out of the middle.
    Raises DeviceError where torchvision is missing.
    """

    def __init__(
        self,
        device: str,
        *,
        scaled: Callable[[int, int], tuple[int, int] | None],
        size: tuple[int, int],
        interpolation: str,
        max_pixels: int,
    ) -> None:
        try:
            from torchvision import io
            from torchvision.transforms.v2 import functional
        except (ImportError, RuntimeError, OSError) as error:
            # One that was built for another torch, or for a GPU that is not there, fails in its own ways.
            raise DeviceError(
                f"image.decode: gpu needs torchvision, which does not load ({type(error).__name__})",
                hint="install the torchvision that belongs to this torch, or leave image.decode at cpu",
            ) from error
        self._io = io
        self._functional = functional
        self._device = device
        self._scaled = scaled
        self._size = size
        self._interpolation = functional.InterpolationMode(interpolation)
        self._max_pixels = max_pixels

    def decode(self, values: Mapping[int, bytes]) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
        """Yield the pixels of those that the device can decode, uint8 of shape (3, height, width). What is
        no JPEG, damaged or too large is left out, for the CPU to tell why."""
        for group in self._groups(values):
            try:
                pictures = self._decoded([values[at] for at in group])
            except RuntimeError:
                # One bad picture takes its group along: each is tried alone.
                pictures = [picture for at in group for picture in self._alone(values[at])]
            done = [
                (at, self._cut(picture))
                for at, picture in zip(group, pictures, strict=True)
                if picture is not None
            ]
            if done:
                pixels = self._stacked([picture for _, picture in done])
                yield from zip((at for at, _ in done), pixels, strict=True)

    def _groups(self, values: Mapping[int, bytes]) -> Iterator[list[int]]:
        """Take together what is decoded at once."""
        group: list[int] = []
        pixels = 0
        for at, data in values.items():
            size = jpeg_size(data)
            if size is None or size[0] * size[1] > self._max_pixels:
                continue
            try:
                self._scaled(size[1], size[0])
            except UnreadableImage:
                continue
            if group and pixels + size[0] * size[1] > _MOST_PIXELS:
                yield group
                group, pixels = [], 0
            group.append(at)
            pixels += size[0] * size[1]
        if group:
            yield group

    def _decoded(self, values: Sequence[bytes]) -> list[Any]:
        import torch

        # A copy: torch wants memory that it could write to.
        blobs = [torch.from_numpy(np.frombuffer(data, np.uint8).copy()) for data in values]
        mode = self._io.ImageReadMode.RGB
        pictures: list[Any] = self._io.decode_jpeg(
            blobs, mode=mode, device=self._device, apply_exif_orientation=True
        )
        return pictures

    def _alone(self, data: bytes) -> list[Any]:
        try:
            return self._decoded([data])
        except RuntimeError:
            return [None]

    def _cut(self, picture: Any) -> Any:
        """Scale a picture, and cut the middle out of it (with black around what is smaller)."""
        size = self._scaled(int(picture.shape[1]), int(picture.shape[2]))
        if size is not None:
            picture = self._functional.resize(
                picture, list(size), interpolation=self._interpolation, antialias=True
            )
        return self._functional.center_crop(picture, list(self._size))

    @staticmethod
    def _stacked(pictures: Sequence[Any]) -> np.ndarray[Any, Any]:
        import torch

        pixels: np.ndarray[Any, Any] = torch.stack(list(pictures)).cpu().numpy()
        return pixels
