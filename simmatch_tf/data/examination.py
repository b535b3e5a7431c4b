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

Rows are about the pixels as stored. The orientation beside them is the one that
a served model reads, too (`orientation`); where viewers turn a file otherwise,
as by XMP alone, that is remarked.
Formats that TensorFlow reads otherwise in some cases are compared with
Pillow's reading file by file, so that a newer TensorFlow changes no promise.
"""

import contextlib
import io
import os
import re
import stat
import warnings
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
import PIL
import PIL.Image
import tensorflow as tf
from absl import logging

from simmatch_tf.data import fingerprint, orientation

MAX_PIXELS = 200_000_000
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")
# Grey levels between TensorFlow's and Pillow's reading of one image.
_TOLERANCE = 4
_ORIENTATION = 0x0112  # the EXIF tag
# How formats call what holds it.
_EXIF = (b"Exif", b"eXIf", b"EXIF")
_TURNS = dict(
    zip(
        range(2, 9),
        (
            PIL.Image.Transpose.FLIP_LEFT_RIGHT,
            PIL.Image.Transpose.ROTATE_180,
            PIL.Image.Transpose.FLIP_TOP_BOTTOM,
            PIL.Image.Transpose.TRANSPOSE,
            PIL.Image.Transpose.ROTATE_270,
            PIL.Image.Transpose.TRANSVERSE,
            PIL.Image.Transpose.ROTATE_90,
        ),
        strict=True,
    )
)
# Where a PNG file may keep an orientation.
_PNG_EXIF = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
# A PNG's bits a channel stand here.
_PNG_DEPTH = 24
# The upper byte of 16 bits that hold no more than 12 is below this.
_DARK = 16
# Remarks, as bits, and what they say.
TURNED, DARK = 1, 2
_REMARKS = {
    TURNED: (
        "are turned otherwise by viewers than here",
        "only the orientation in EXIF is read, by exports, too, and theirs "
        "stands elsewhere, as in XMP: they are taken as stored; save them "
        "upright, or write it into EXIF",
    ),
    DARK: (
        "have 16 bits a channel, but all values below 4096",
        "the upper 8 bits are read, so they are nearly black; multiply the "
        "values by 16, as for 12 bits, or save them with 8 bits",
    ),
}


class Examined(NamedTuple):
    """What an image file holds.

    Attributes:
        orientation: EXIF, 1 … 8.
        pixels: As stored, uint8 [H, W, 3].
        digest: Of the file; see `fingerprint.digest`.
        remarks: See `warn`.
    """

    orientation: int
    pixels: np.ndarray
    digest: bytes
    remarks: int


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


def examine_content(path: str) -> Examined:
    """The same, with all that is kept of a file.

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


def _examine(file: BinaryIO) -> Examined:
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
    turn = _counted(data)
    pixels = _decode(data)
    if image.format not in ("JPEG", "MPO", "PNG") or image.mode == "CMYK":
        _compare(image, pixels)
    remarked = _remarks(image, data, turn, pixels)
    return Examined(turn, pixels, fingerprint.digest(data), remarked)


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


@tf.function(
    input_signature=[tf.TensorSpec([], tf.string)],
    autograph=False,
)
def _read_orientation(encoded: tf.Tensor) -> tf.Tensor:
    return orientation.orientation(encoded)


def _counted(data: bytes) -> int:
    """The orientation that counts everywhere, see `orientation`."""
    if not any(mark in data for mark in _EXIF):  # most files: without a call
        return 1
    with tf.device("CPU"):
        return int(_read_orientation(tf.constant(data)))


def _shown(image: PIL.Image.Image, data: bytes) -> int:
    """The orientation by which viewers, such as Pillow, turn a file."""
    # For a PNG file Pillow decodes all of it, to see what comes behind.
    if image.format == "PNG" and not any(mark in data for mark in _PNG_EXIF):
        return 1
    try:
        return _valid(image.getexif())
    except Exception:  # viewers show an image with damaged EXIF data, too
        return 1


def _valid(exif: PIL.Image.Exif) -> int:
    value = exif.get(_ORIENTATION, 1)
    return int(value) if value in range(1, 9) else 1


def turned(image: PIL.Image.Image) -> tuple[PIL.Image.Image, bool]:
    """Turns an opened image by the rule that holds for files.

    Args:
        image: Of any origin. Of a format that is not read from files, such as
            TIFF, what Pillow says holds.

    Returns:
        It as seen, and whether viewers turn it otherwise.
    """
    image.load()  # of a PNG, EXIF may stand behind the pixels
    exif, counted, shown = PIL.Image.Exif(), 1, 1
    with contextlib.suppress(Exception):  # damaged
        shown = _valid(image.getexif())
    with contextlib.suppress(Exception):
        exif.load(image.info.get("exif"))
        counted = _valid(exif)
    if image.format not in (None, "MPO", *_FORMATS):
        counted = shown
    seen = image.transpose(_TURNS[counted]) if counted > 1 else image
    return seen, counted != shown


def _remarks(
    image: PIL.Image.Image,
    data: bytes,
    turn: int,
    pixels: np.ndarray | None = None,
) -> int:
    found = TURNED * (_shown(image, data) != turn)
    if image.format == "PNG" and data[_PNG_DEPTH] == 16:
        pixels = _decode(data) if pixels is None else pixels
        found += DARK * bool(pixels.max() < _DARK)
    return found


def remarks(path: str) -> int:
    """The remarks on a file that is decoded elsewhere; see `warn`."""
    try:
        with open(path, "rb") as file:
            data = file.read()
        image = PIL.Image.open(io.BytesIO(data), formats=_FORMATS)
        return _remarks(image, data, _counted(data))
    except Exception:  # damaged since, or whatever Pillow's parsers raise
        return 0


def small(path: str, side: int) -> PIL.Image.Image:
    """A file as training and predicting see it, for a thumbnail.

    Args:
        path: Of the file.
        side: Of a JPEG no more is decoded than has this side.

    Raises:
        Exception: Whatever Pillow's parsers and decoders do.
    """
    with open(path, "rb") as file:
        data = file.read()
    image = PIL.Image.open(io.BytesIO(data))
    image.draft("RGB", (side, side))
    if image.mode.startswith("I;16"):
        # Pillow would clip; what is read is the upper byte.
        image = PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    turn = _counted(data)
    return image.transpose(_TURNS[turn]) if turn > 1 else image


def is_marked(encoded: tf.Tensor) -> tf.Tensor:
    """Whether a file needs to be asked for `remarks`: bool, in a graph."""
    png = tf.equal(tf.strings.substr(encoded, 0, 4), b"\x89PNG")
    at = tf.minimum(_PNG_DEPTH, tf.strings.length(encoded))
    deep = tf.equal(tf.strings.substr(encoded, at, 1), b"\x10")
    # Not one pattern for all: plain texts are found several times faster.
    return tf.cond(
        png,
        lambda: (
            deep
            | orientation.holds(encoded, "Raw profile type")
            | orientation.holds(encoded, "XML:com.adobe.xmp")
        ),
        lambda: orientation.holds(encoded, "tiff:Orientation"),
    )


def warn(names: Sequence[str], remarked: np.ndarray) -> None:
    """Says what is to be known of images that can be used, a line a kind.

    Args:
        names: N names.
        remarked: Their remarks, bits [N].
    """
    for bit, (what, so) in _REMARKS.items():
        places = np.flatnonzero(np.asarray(remarked) & bit)
        if len(places):
            logging.warning(
                "%d of %d images %s (such as %s): %s",
                *(len(places), len(names), what, names[places[0]], so),
            )


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
