"""From encoded images to pixels: decoded, cropped and resized as Pillow does.

Everything works on one image at a time, as part of a graph. Sizes and boxes
are those of the image as seen, its EXIF orientation applied.
"""

import math

import tensorflow as tf

from simmatch_tf.data import branches, resampling

# Numbers in [0, 1) that one random crop needs: area and ratio of ten tries,
# and the place.
BOX_DRAWS = 22
_TRIES = 10

_JPEG = b"\xff\xd8\xff"
_BMP = b"BM"
# How Pillow decodes.
_EXACT = {
    "dct_method": "INTEGER_ACCURATE",
    "fancy_upscaling": True,
}
# Pillow's weights of red, green and blue in grey, and what they sum to.
_GREY, _GREY_SUM = (19595.0, 38470.0, 7471.0), 2.0**16
# Chroma is interpolated from neighbours, which a crop lacks at its sides; so
# this many pixels more are decoded, and cut off.
_MARGIN = 1


def decode(
    encoded: tf.Tensor, orientation: tf.Tensor, *, channels: int = 3
) -> tf.Tensor:
    """Decodes a JPEG, PNG, BMP, WebP or the first frame of a GIF.

    Args:
        encoded: The file's bytes, scalar string.
        orientation: The EXIF orientation 1 … 8, int32; anything else is 1.
        channels: 3 for RGB; 1 for grey: of a JPEG its luma, of others what
            Pillow makes of the colours.

    Returns:
        uint8 [h, w, channels], as seen. Alpha is dropped; of 16 bits, the
        upper 8 are kept.
    """

    def other() -> tf.Tensor:
        pixels = _decode_other(encoded)
        return grey(pixels) if channels == 1 else pixels

    pixels = tf.cond(
        _starts_with(encoded, _JPEG),
        lambda: tf.io.decode_jpeg(encoded, channels, **_EXACT),
        other,
    )
    return _orient(pixels, orientation, channels)


def grey(pixels: tf.Tensor) -> tf.Tensor:
    """Grey [..., 1] of RGB [..., 3], as Pillow has it, uint8."""
    weighted = [
        weight * color
        for weight, color in zip(
            _GREY, tf.unstack(tf.cast(pixels, tf.float32), axis=-1), strict=True
        )
    ]
    # Whole numbers below 2^24, so exact.
    total = tf.add_n(weighted) + _GREY_SUM / 2
    return tf.cast(total / _GREY_SUM, tf.uint8)[..., None]


def image_size(encoded: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Height and width as seen; of a JPEG, only the header is read.

    Args:
        encoded: The file's bytes, scalar string.
        orientation: The EXIF orientation, int32.

    Returns:
        int32 [2].
    """
    size = tf.cond(
        _starts_with(encoded, _JPEG),
        lambda: tf.io.extract_jpeg_shape(encoded)[:2],
        lambda: tf.shape(_decode_other(encoded))[:2],
    )
    return tf.where(_swaps(orientation), size[::-1], size)


def resize(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Resizes bilinearly, with antialias where it shrinks.

    Equals Pillow's BILINEAR, which rounds once more, within one grey level.

    Args:
        image: uint8 [h, w, C], C static.
        size: Height and width of the result.

    Returns:
        uint8 [*size, C].
    """
    shape = tf.shape(image)[:2]
    scale = tf.constant(size, tf.float32) / tf.cast(shape, tf.float32)
    return resampling.sample(image, shape, scale, tf.zeros([2]), size)


def fit(
    image: tf.Tensor, *, resize: int, side: int, kernel: str = "triangle"
) -> tf.Tensor:
    """Resizes the shorter side and crops the centre, as torchvision does.

    Args:
        image: uint8 [h, w, C], C static.
        resize: Length of the shorter side.
        side: Of the square that is cropped, at most `resize`.
        kernel: "triangle" (bilinear) or "keyscubic" (bicubic), with antialias.

    Returns:
        uint8 [side, side, C].

    Raises:
        ValueError: `side` is above `resize`.
    """
    if side > resize:
        raise ValueError(
            f"side={side} is above resize={resize}, but the crop must lie "
            "within the resized image"
        )
    shape = tf.shape(image)[:2]
    whole = resize * shape // tf.reduce_min(shape)
    scale = tf.cast(whole, tf.float32) / tf.cast(shape, tf.float32)
    # Python's round, which torchvision takes: halves to the even number.
    start = tf.round(tf.cast(whole - side, tf.float32) / 2)
    return resampling.sample(image, shape, scale, -start, (side, side), kernel)


def crop_box(
    draws: tf.Tensor,
    size: tf.Tensor,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tf.Tensor:
    """A random crop: area uniform in `scale`, ratio log-uniform in `ratio`.

    The first of ten tries that fits into the image; if none does, the largest
    crop at the centre whose ratio is allowed.

    Args:
        draws: Numbers in [0, 1), float32 [..., BOX_DRAWS].
        size: Height and width of the image, int32 [2].
        scale: Least and greatest share of the image's area.
        ratio: Least and greatest width over height.

    Returns:
        Top, left, height and width, int32 [..., 4].
    """
    return _crop_box(
        tf.convert_to_tensor(draws),
        tf.convert_to_tensor(size),
        tf.constant([scale, [math.log(r) for r in ratio]], tf.float32),
    )


@tf.function(autograph=False, jit_compile=True)
def _crop_box(
    draws: tf.Tensor, size: tf.Tensor, limits: tf.Tensor
) -> tf.Tensor:
    """`crop_box`, compiled: its forty small operations are one call."""
    low, high = limits[:, 0], limits[:, 1]
    height, width = size[0], size[1]
    numbers = tf.reshape(draws[..., :-2], [*draws.shape[:-1], _TRIES, 2])
    numbers = low + (high - low) * numbers
    area = tf.cast(height, tf.float32) * tf.cast(width, tf.float32)
    area *= numbers[..., 0]
    aspect = tf.exp(numbers[..., 1])
    tries = tf.stack([tf.sqrt(area / aspect), tf.sqrt(area * aspect)], axis=-1)
    tries = tf.cast(tf.round(tries), tf.int32)  # [..., 10, 2]
    fits = tf.reduce_all((tries > 0) & (tries <= size), axis=-1)
    first = tf.argmax(tf.cast(fits, tf.int32), axis=-1, output_type=tf.int32)
    found = tf.gather(tries, first, axis=-2, batch_dims=len(first.shape))
    room = size - found + 1  # [..., 2]
    place = tf.cast(draws[..., -2:] * tf.cast(room, tf.float32), tf.int32)

    narrow, wide = tf.exp(low[1]), tf.exp(high[1])
    whole = tf.cast(size, tf.float32)
    fallback = tf.stack(
        [
            tf.minimum(whole[0], tf.round(whole[1] / narrow)),
            tf.minimum(whole[1], tf.round(whole[0] * wide)),
        ]
    )
    fallback = tf.maximum(tf.cast(fallback, tf.int32), 1)
    any_fits = tf.reduce_any(fits, axis=-1)[..., None]
    return tf.concat(
        [
            tf.where(any_fits, place, (size - fallback) // 2),
            tf.where(any_fits, found, fallback),
        ],
        axis=-1,
    )


def resized_crop(image: tf.Tensor, box: tf.Tensor, side: int) -> tf.Tensor:
    """Crops and resizes.

    Args:
        image: uint8 [h, w, C], C static.
        box: Top, left, height and width, int32 [4], within the image.
        side: Of the result.

    Returns:
        uint8 [side, side, C].
    """
    start = tf.concat([box[:2], [0]], axis=0)
    shape = tf.concat([box[2:], [image.shape[-1]]], axis=0)
    return resize(tf.slice(image, start, shape), (side, side))


def resized_crops(
    encoded: tf.Tensor,
    orientation: tf.Tensor,
    boxes: tf.Tensor,
    side: int,
    *,
    size: tf.Tensor | None = None,
) -> list[tf.Tensor]:
    """Crops of one encoded image, resized.

    Of a JPEG, only the smallest box around all crops is decoded: one that
    reaches further down costs more, but two decodings cost more still. The
    result is that of the whole image, bit for bit.

    Args:
        encoded: The file's bytes, scalar string.
        orientation: The EXIF orientation, int32.
        boxes: Of each crop top, left, height and width, int32 [k, 4].
        side: Of the results.
        size: `image_size`, where it is known.

    Returns:
        k uint8 [side, side, 3].
    """
    if size is None:
        size = image_size(encoded, orientation)

    def part() -> tuple[tf.Tensor, tf.Tensor]:
        start = tf.reduce_min(boxes[:, :2], axis=0)
        stop = tf.reduce_max(boxes[:, :2] + boxes[:, 2:], axis=0)
        start = tf.maximum(start - _MARGIN, 0)
        stop = tf.minimum(stop + _MARGIN, size)
        window = _unorient(start, stop - start, size, orientation)
        return tf.io.decode_and_crop_jpeg(encoded, window, 3, **_EXACT), start

    pixels, start = tf.cond(
        _starts_with(encoded, _JPEG),
        part,
        lambda: (_decode_other(encoded), tf.zeros([2], tf.int32)),
    )
    pixels = _orient(pixels, orientation)
    boxes -= tf.concat([start, [0, 0]], axis=0)
    return [resized_crop(pixels, box, side) for box in tf.unstack(boxes)]


def _starts_with(encoded: tf.Tensor, magic: bytes) -> tf.Tensor:
    return tf.equal(tf.strings.substr(encoded, 0, len(magic)), magic)


def _decode_other(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes what is not a JPEG: uint8 [h, w, 3]."""
    pixels = tf.cond(
        _starts_with(encoded, _BMP),
        lambda: _decode_bmp(encoded),
        lambda: tf.io.decode_image(
            encoded, channels=3, expand_animations=False
        ),
    )
    return tf.ensure_shape(pixels, [None, None, 3])


@branches.seldom
def _decode_bmp(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes a BMP: uint8 [h, w, 3]."""
    # The op neither changes the number of channels nor knows palettes.
    pixels = tf.io.decode_bmp(encoded)

    def number(place: int) -> tf.Tensor:
        return tf.io.decode_raw(tf.strings.substr(encoded, place, 4), tf.int32)

    def look_up() -> tf.Tensor:
        start = 14 + number(14)[0]  # both headers
        colors = number(46)[0]
        colors = tf.where(colors > 0, colors, 256)
        palette = tf.strings.substr(encoded, start, 4 * colors)
        palette = tf.reshape(tf.io.decode_raw(palette, tf.uint8), [-1, 4])
        return tf.gather(palette[:, 2::-1], tf.cast(pixels[..., 0], tf.int32))

    return tf.cond(
        tf.equal(tf.shape(pixels)[-1], 1), look_up, lambda: pixels[..., :3]
    )


def _is_one_of(orientation: tf.Tensor, *numbers: int) -> tf.Tensor:
    return tf.reduce_any(tf.equal(orientation, numbers))


def _swaps(orientation: tf.Tensor) -> tf.Tensor:
    """Whether rows and columns change places: 5 … 8."""
    return (orientation >= 5) & (orientation <= 8)


def _reverses(orientation: tf.Tensor) -> tf.Tensor:
    """Which of the axes as seen run backwards: bool [2]."""
    return tf.stack(
        [
            _is_one_of(orientation, 3, 4, 7, 8),
            _is_one_of(orientation, 2, 3, 6, 7),
        ]
    )


def _orient(
    pixels: tf.Tensor, orientation: tf.Tensor, channels: int = 3
) -> tf.Tensor:
    """Turns pixels as stored [h, w, C] into pixels as seen."""

    def turned() -> tf.Tensor:
        seen = tf.cond(
            _swaps(orientation),
            lambda: tf.transpose(pixels, [1, 0, 2]),
            lambda: pixels,
        )
        dims = tf.concat([_reverses(orientation), [False]], axis=0)
        return tf.raw_ops.Reverse(tensor=seen, dims=dims)

    pixels = tf.cond(
        (orientation > 1) & (orientation <= 8), turned, lambda: pixels
    )
    return tf.ensure_shape(pixels, [None, None, channels])


def _unorient(
    start: tf.Tensor, extent: tf.Tensor, size: tf.Tensor, orientation: tf.Tensor
) -> tf.Tensor:
    """The box as stored of a box as seen: [4]."""

    def turned() -> tf.Tensor:
        place = tf.where(_reverses(orientation), size - start - extent, start)
        box = tf.stack([place, extent])  # [2, 2]
        box = tf.where(_swaps(orientation), box[:, ::-1], box)
        return tf.reshape(box, [4])

    return tf.cond(
        (orientation > 1) & (orientation <= 8),
        turned,
        lambda: tf.concat([start, extent], axis=0),
    )
