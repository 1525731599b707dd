"""Bytes to upright RGB pixels. Nothing is decoded before its size is known, nothing of Pillow's is set.

Three formats and no other: each decoder is code that reads what strangers wrote.
"""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image, Transpose

_WITH_ALPHA = {"RGBA", "LA", "PA", "La", "RGBa"}
_ORIENTATION = 0x0112
_RIFF_HEAD = 30
_JPEG = b"\xff\xd8\xff"
_REASON_CHARS = 200


class UnreadableImage(Exception):
    """One image cannot be used; the message says why, and is the same wherever it is decoded."""


def decode(data: bytes, *, max_pixels: int, at_least: int | None = None) -> Image:
    """Decode JPEG, PNG or WebP bytes to an upright RGB image; the first frame of a moving one.

    Transparency lies on black, of 16-bit grey the high byte is kept. A JPEG of which both sides are to be
    `at_least` so long may come smaller than it is. Raises UnreadableImage.
    """
    from PIL import Image as Pillow

    try:
        image = _opened(data, max_pixels)
        refuse_size("claims", image.width, image.height, max_pixels)
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        image.load()
        return _rgb(_upright(image))
    except (UnreadableImage, MemoryError):
        raise
    except Pillow.DecompressionBombError:
        raise UnreadableImage("the image claims more pixels than Pillow decodes") from None
    except Exception as error:
        # Decoders raise nearly anything on damaged files.
        raise UnreadableImage(f"the image is damaged: {str(error)[:_REASON_CHARS]}") from error


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return the width and height that a JPEG claims; None for what is none."""
    if not data.startswith(_JPEG):
        return None
    try:
        image = _opened(data, 0)
    except Exception:  # noqa: BLE001 - whatever is wrong with it, it is said where it is decoded
        return None
    return image.width, image.height


def refuse_size(verb: str, width: int, height: int, max_pixels: int) -> None:
    """Raise UnreadableImage for more pixels than allowed."""
    if width * height > max_pixels:
        raise UnreadableImage(f"the image {verb} {width}x{height} pixels, above max_pixels {max_pixels}")


def _opened(data: bytes, max_pixels: int) -> Image:
    """Read the header with the decoder that the first bytes ask for.

    Not by `Image.open`: it warns of large images by its own bound, which is the process's.
    """
    from PIL import JpegImagePlugin, PngImagePlugin, WebPImagePlugin

    if data.startswith(_JPEG):
        return JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImagePlugin.PngImageFile(io.BytesIO(data))
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        # The WebP decoder takes memory for the whole canvas as soon as it is made.
        refuse_size("claims", *_webp_size(data), max_pixels)
        return WebPImagePlugin.WebPImageFile(io.BytesIO(data))
    raise UnreadableImage(f"not a JPEG, PNG or WebP image ({len(data)} bytes)")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Return the width and height that a WebP file claims (RFC 9649, section 2)."""
    head, kind = data[:_RIFF_HEAD], data[12:16]
    if len(head) < _RIFF_HEAD:
        raise UnreadableImage(f"the image is damaged: {len(data)} bytes are too few")
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack("<HH", head[26:30])
    return width & 0x3FFF, height & 0x3FFF


def _upright(image: Image) -> Image:
    """Turn an image as its EXIF orientation says. Damaged EXIF is no reason to lose the picture."""
    try:
        turn = _turn(image.getexif().get(_ORIENTATION))
    except Exception:  # noqa: BLE001 - see above: EXIF readers raise nearly anything
        return image
    return image if turn is None else image.transpose(turn)


def _turn(orientation: Any) -> Transpose | None:
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return turns.get(orientation)


def _rgb(image: Image) -> Image:
    from PIL import Image as Pillow

    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16 bits at 255: all but the darkest would be white.
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return Pillow.fromarray(grey).convert("RGB")
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        black = Pillow.new("RGBA", image.size, (0, 0, 0, 255))
        return Pillow.alpha_composite(black, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
