"""Image files as viewers show them, decoded by Pillow alone.

Training reads files by TensorFlow; `data.files` compares the two. Nothing here
imports TensorFlow.
"""

import contextlib
import io
import os
import stat
import warnings
from collections.abc import Iterator

import numpy as np
import PIL
import PIL.Image

MAX_PIXELS = 200_000_000
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")
_ORIENTATION = 0x0112  # the EXIF tag
# What marks an orientation in a PNG, as Pillow reads it.
_PNG_EXIF = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
_TURN = PIL.Image.Transpose
_TURNS = {
    2: _TURN.FLIP_LEFT_RIGHT,
    3: _TURN.ROTATE_180,
    4: _TURN.FLIP_TOP_BOTTOM,
    5: _TURN.TRANSPOSE,
    6: _TURN.ROTATE_270,
    7: _TURN.TRANSVERSE,
    8: _TURN.ROTATE_90,
}


@contextlib.contextmanager
def silent_pillow() -> Iterator[None]:
    """Turns off Pillow's pixel limit and warnings; callers have their own."""
    PIL.Image.init()  # once, before the threads
    limit = PIL.Image.MAX_IMAGE_PIXELS
    PIL.Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        PIL.Image.MAX_IMAGE_PIXELS = limit


def header(file: io.BufferedIOBase) -> PIL.Image.Image:
    """Opens an image without decoding it.

    Args:
        file: Its content.

    Raises:
        ValueError: It cannot be used; the message says why.
    """
    try:
        image = PIL.Image.open(file, formats=FORMATS)
    except PIL.UnidentifiedImageError:
        raise ValueError("is no JPEG, PNG, GIF, BMP or WebP image") from None
    except Exception as error:  # Pillow's parsers may raise anything
        raise ValueError(f"its header cannot be read ({error!r})") from None
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"has {image.width}×{image.height} pixels, more than "
            f"{MAX_PIXELS // 10**6} megapixels"
        )
    return image


def orientation(image: PIL.Image.Image, data: bytes) -> int:
    """Returns the orientation by which viewers (Pillow) turn a file, 1 … 8.

    Args:
        image: As Pillow opened it.
        data: The file's content.
    """
    # For a PNG file Pillow decodes all of it, as EXIF may stand at its end.
    if image.format == "PNG" and not any(mark in data for mark in _PNG_EXIF):
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
        return int(value) if value in range(1, 9) else 1
    except Exception:  # viewers show an image with damaged EXIF data, too
        return 1


def turned(image: PIL.Image.Image, orientation: int) -> PIL.Image.Image:
    """Returns an image turned by an EXIF orientation, 1 … 8."""
    if orientation == 1:
        return image
    return image.transpose(_TURNS[orientation])


def draft(image: PIL.Image.Image, side: int) -> PIL.Image.Image:
    """Prepares an image that was opened for a smaller picture.

    Args:
        image: As Pillow opened it.
        side: A JPEG is decoded at a size that is at least this, if possible.

    Returns:
        The image, with at most 8 bits a channel: the upper byte is read, where
        Pillow would clip.
    """
    image.draft("RGB", (side, side))
    if not image.mode.startswith("I;16"):
        return image
    return PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def picture(path: str, side: int) -> PIL.Image.Image:
    """Decodes a file as viewers show it: upright, in RGB, and not too large.

    Args:
        path: The file.
        side: Longest side of the result; smaller images stay as they are.

    Raises:
        ValueError: It cannot be used; the message says why.
    """
    try:
        # A named pipe would wait for ever.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("is no regular file")
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    if not data:
        raise ValueError("the file is empty")
    image = header(io.BytesIO(data))
    turn = orientation(image, data)
    try:
        image = draft(image, side).convert("RGB")
        image.thumbnail((side, side), PIL.Image.Resampling.BICUBIC)
    except Exception as error:  # Pillow's decoders may raise anything
        raise ValueError(f"cannot be decoded ({error})") from None
    return turned(image, turn)
