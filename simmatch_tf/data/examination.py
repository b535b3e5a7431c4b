"""One image file: whether training can use it, and what it holds.

What TensorFlow 2.21 reads, against what viewers show (Pillow's
`ImageOps.exif_transpose(image).convert("RGB")`):

  JPEG, RGB or grey, baseline or progressive   the same, exactly
  JPEG, CMYK as Adobe writes it                the same within 4 grey levels
  JPEG, CMYK without Adobe's mark              refused: colours are inverted
  PNG, 1 to 8 bits, palette, interlaced        the same, exactly
  PNG, 16 bits                                 the upper byte
  PNG, alpha or a transparent colour           alpha is dropped, as by Pillow
  PNG, animated                                its still image
  GIF, opaque                                  the first frame, exactly
  GIF, first frame transparent or too small    refused: black there
  BMP, 24 or 32 bits, 8 bits of grey           the same, exactly
  BMP, palette of colours                      refused: indices taken for grey
  BMP, 1, 4 or 16 bits, OS/2                   refused: cannot be decoded
  WebP, opaque, not animated                   the same, exactly
  WebP, alpha or animated                      refused: cannot be decoded
  one of these under another's name            by content, as above
  1×1 pixel                                    the same, exactly
  truncated, empty, text, any other format     refused
  more than 200 megapixels                     refused by its header

Rows are about the pixels as stored: the EXIF orientation is noted beside them.
Formats that TensorFlow reads otherwise in some cases are compared with
Pillow's reading file by file, so that a newer TensorFlow changes no promise.
"""

import contextlib
import os
import re
import stat
import warnings
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import PIL
import PIL.Image
import tensorflow as tf

from simmatch_tf.data import fingerprint

MAX_PIXELS = 200_000_000
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")
# Grey levels between TensorFlow's and Pillow's reading of one image.
_TOLERANCE = 4
_ORIENTATION = 0x0112  # the EXIF tag
# Where a PNG file may keep an orientation.
_PNG_EXIF = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")


def examine(path: str) -> tuple[int, np.ndarray]:
    """Reads one image as training does.

    Args:
        path: Of the file.

    Returns:
        Its EXIF orientation, 1 … 8, and its pixels as stored, uint8 [H, W, 3].

    Raises:
        ValueError: It cannot be used; says why.
    """
    return examine_content(path)[:2]


def examine_content(path: str) -> tuple[int, np.ndarray, bytes]:
    """The same, and the digest of the file; see `fingerprint.digest`.

    Raises:
        ValueError: It cannot be used; says why.
    """
    try:
        # A named pipe would wait for ever.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("is no regular file")
        with open(path, "rb") as file:
            return _examine(file)
    except OSError as error:
        reason = error.strerror or str(error)
        if isinstance(error, FileNotFoundError) and os.path.islink(path):
            reason = "a symbolic link to a file that is not there"
        raise ValueError(reason) from None


def _examine(file: BinaryIO) -> tuple[int, np.ndarray, bytes]:
    if not os.fstat(file.fileno()).st_size:
        raise ValueError("the file is empty")
    try:
        image = PIL.Image.open(file, formats=_FORMATS)
    except PIL.UnidentifiedImageError:
        raise ValueError("is no JPEG, PNG, GIF, BMP or WebP image") from None
    except Exception as error:  # Pillow's parsers may raise anything
        raise ValueError(f"its header cannot be read ({error!r})") from None
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"has {image.width}×{image.height} pixels, more than "
            f"{MAX_PIXELS // 10**6} megapixels"
        )
    file.seek(0)
    data = file.read()
    orientation = _orientation(image, data)
    pixels = _decode(data)
    if image.format not in ("JPEG", "MPO", "PNG") or image.mode == "CMYK":
        _compare(image, pixels)
    return orientation, pixels, fingerprint.digest(data)


def _decode(data: bytes) -> np.ndarray:
    try:
        if data.startswith(b"\xff\xd8"):
            # As viewers do it; the default is faster and less exact.
            pixels = tf.io.decode_jpeg(
                data, channels=3, dct_method="INTEGER_ACCURATE"
            )
        else:
            pixels = tf.io.decode_image(
                data, channels=3, expand_animations=False
            )
    except tf.errors.OpError as error:
        message = re.sub(r"\{\{.*?\}\} | \[Op:\w+\]", "", error.message)
        raise ValueError(f"TensorFlow cannot decode it ({message})") from None
    return pixels.numpy()


def _compare(image: PIL.Image.Image, pixels: np.ndarray) -> None:
    """Refuses what TensorFlow reads otherwise than Pillow."""
    try:
        shown = np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow's decoders may raise anything
        raise ValueError(f"Pillow cannot decode it ({error!r})") from None
    if shown.shape == pixels.shape:
        apart = np.maximum(shown, pixels) - np.minimum(shown, pixels)
        if apart.max() <= _TOLERANCE:
            return
    raise ValueError(
        f"TensorFlow reads this {image.format} image (mode {image.mode}) "
        "otherwise than viewers show it; save it as an RGB PNG"
    )


def _orientation(image: PIL.Image.Image, data: bytes) -> int:
    """The EXIF orientation, 1 where none is given."""
    # For a PNG file Pillow decodes all of it, to see what comes behind.
    if image.format == "PNG" and not any(mark in data for mark in _PNG_EXIF):
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # viewers show an image with damaged EXIF data, too
        return 1
    return int(value) if value in range(1, 9) else 1


def sums(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of values and of squares [3]: exact, in little memory."""
    flat = pixels.reshape(-1)
    width, height = 3 * 4096, 256  # a block's squares fill 6 MB
    whole = len(flat) // width * width
    rows = flat[:whole].reshape(-1, width)
    blocks = [rows[i : i + height] for i in range(0, len(rows), height)]
    sums, squares = np.zeros([2, 3], np.uint64)
    for block in (*blocks, flat[None, whole:]):
        square = np.multiply(block, block, dtype=np.uint16)
        for total, values in ((sums, block), (squares, square)):
            columns = values.sum(axis=0, dtype=np.uint32)
            total += columns.reshape(-1, 3).sum(axis=0, dtype=np.uint64)
    return sums, squares


@contextlib.contextmanager
def silent_pillow() -> Iterator[None]:
    """Neither Pillow's limit of pixels nor its warnings: we have our own."""
    PIL.Image.init()  # once, before the threads
    limit = PIL.Image.MAX_IMAGE_PIXELS
    PIL.Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        PIL.Image.MAX_IMAGE_PIXELS = limit
