"""Encoded images to pixels: decode, orient, crop and resize as Pillow does.

Everything is part of a graph. Most functions work on one image; `centre_crops`
and `random_crops`, at the end, make batches from sets of images. Sizes and
boxes are those of the image as seen, after its EXIF orientation was applied.
"""

import math
from collections.abc import Callable

import tensorflow as tf

from simmatch_tf.data.sources import source

# Numbers in [0, 1) for one random crop: area and ratio of ten tries, and the
# place.
BOX_DRAWS = 22
_TRIES = 10
_PARALLEL = 32  # images of a batch that are worked on at once, at most

_JPEG = b"\xff\xd8\xff"
_BMP = b"BM"
# Options by which TensorFlow decodes as Pillow does.
_EXACT = {
    "dct_method": "INTEGER_ACCURATE",
    "fancy_upscaling": True,
}
# Pillow's weights of red, green and blue in grey, and their sum.
_GREY, _GREY_SUM = (19595.0, 38470.0, 7471.0), 2.0**16
# Chroma is interpolated from neighbours, which a crop lacks at its sides; so
# this many pixels more are decoded, and cut off.
_MARGIN = 1
# What precedes EXIF data in a JPEG, a PNG and a WebP; some writers put JPEG's
# mark behind WebP's. \C is any byte.
_EXIF_MARK = r"(?:Exif\x00\x00|eXIf|EXIF\C{4}(?:Exif\x00\x00)?)"
_EXIF_BYTES = 2**16  # a JPEG's EXIF data fit into these
_JPEG_HEAD = 2**18  # bytes of a JPEG in which they are looked for
_ORIENTATION = 0x0112  # the EXIF tag
# TIFF's types of whole numbers → their bytes.
_SIZES = {1: 1, 3: 2, 4: 4}


def seldom(function: Callable) -> Callable:
    """Makes a function one call in the graph, for a rare branch of `tf.cond`.

    A graph also visits the operations of the branch that is not taken, one by
    one, which takes longer than decoding a small image. A call is one
    operation.

    Args:
        function: Takes and returns tensors; without side effects.
    """
    return tf.function(
        function,
        autograph=False,
        experimental_attributes={"_noinline": True},
    )


# ------------------------------------------------------------------- decode --


def decode(
    encoded: tf.Tensor, orientation: tf.Tensor, *, channels: int = 3
) -> tf.Tensor:
    """Decodes a JPEG, PNG, BMP, WebP or the first frame of a GIF.

    Args:
        encoded: The file's bytes, scalar string.
        orientation: The EXIF orientation 1 … 8, int32; anything else is 1.
        channels: 3 for RGB; 1 for grey, which is a JPEG's luma and otherwise
            Pillow's weighted mean of the colours.

    Returns:
        uint8 [h, w, channels], as seen. Alpha is dropped; of 16 bits a channel
        the upper 8 are kept.
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
    """Converts RGB [..., 3] to grey [..., 1] as Pillow does; uint8."""
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
    """Returns height and width as seen; of a JPEG, only the header is read.

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


def _decode_other(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes a PNG, BMP, WebP or GIF: uint8 [h, w, 3]."""
    pixels = tf.cond(
        _starts_with(encoded, _BMP),
        lambda: _decode_bmp(encoded),
        lambda: tf.io.decode_image(
            encoded, channels=3, expand_animations=False
        ),
    )
    return tf.ensure_shape(pixels, [None, None, 3])


@seldom
def _decode_bmp(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes a BMP: uint8 [h, w, 3]."""
    # TensorFlow neither converts channels nor applies palettes.
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


def _starts_with(encoded: tf.Tensor, magic: bytes) -> tf.Tensor:
    return tf.equal(tf.strings.substr(encoded, 0, len(magic)), magic)


def _is_one_of(orientation: tf.Tensor, *numbers: int) -> tf.Tensor:
    return tf.reduce_any(tf.equal(orientation, numbers))


def _swaps(orientation: tf.Tensor) -> tf.Tensor:
    """Returns whether an orientation swaps rows and columns: 5 … 8 do."""
    return (orientation >= 5) & (orientation <= 8)


def _reverses(orientation: tf.Tensor) -> tf.Tensor:
    """Returns which of the axes as seen run backwards: bool [2]."""
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
    """Converts a box as seen [2], [2] into the box as stored [4]."""

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


# --------------------------------------------------------- resize and crop --


def resize(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Resizes bilinearly, with antialiasing where the image shrinks.

    Differs from Pillow's BILINEAR, which rounds once more, by one grey level at
    most.

    Args:
        image: uint8 [h, w, C], C static.
        size: Height and width of the result.

    Returns:
        uint8 [*size, C].
    """
    shape = tf.shape(image)[:2]
    scale = tf.constant(size, tf.float32) / tf.cast(shape, tf.float32)
    return _resample(image, shape, scale, tf.zeros([2]), size)


def fit(
    image: tf.Tensor, *, resize: int, side: int, kernel: str = "triangle"
) -> tf.Tensor:
    """Resizes the shorter side and crops the centre, as torchvision does.

    Args:
        image: uint8 [h, w, C], C static.
        resize: Length of the shorter side.
        side: Side of the square that is cropped, at most `resize`.
        kernel: "triangle" (bilinear) or "keyscubic" (bicubic); both with
            antialiasing.

    Returns:
        uint8 [side, side, C].
    """
    shape = tf.shape(image)[:2]
    whole = resize * shape // tf.reduce_min(shape)
    scale = tf.cast(whole, tf.float32) / tf.cast(shape, tf.float32)
    # torchvision uses Python's round: halves go to the even number.
    start = tf.round(tf.cast(whole - side, tf.float32) / 2)
    return _resample(image, shape, scale, -start, (side, side), kernel)


def _resample(
    image: tf.Tensor,
    shape: tf.Tensor,
    scale: tf.Tensor,
    shift: tf.Tensor,
    size: tuple[int, int],
    kernel: str = "triangle",
) -> tf.Tensor:
    """Scales an image and then shifts it, as Pillow does within a grey level.

    Args:
        image: uint8 [h, w, C], C static.
        shape: h and w, int32 [2].
        scale: Factors of height and width, float32 [2].
        shift: Shift down and right in pixels of the result, float32 [2].
        size: Height and width of the result.
        kernel: "triangle" (bilinear) or "keyscubic" (bicubic), widened where
            the image shrinks.

    Returns:
        uint8 [*size, C].
    """
    if kernel == "triangle":
        return _resample_axes(image, shape, scale, shift, size, kernel)
    # Pillow resamples across first. Its rounding between the two passes does
    # not show with a triangle, but clips where this kernel overshoots.
    transposed = _resample_axes(
        tf.transpose(image, [1, 0, 2]),
        shape[::-1],
        scale[::-1],
        shift[::-1],
        size[::-1],
        kernel,
    )
    return tf.transpose(transposed, [1, 0, 2])


def _resample_axes(
    image: tf.Tensor,
    shape: tf.Tensor,
    scale: tf.Tensor,
    shift: tf.Tensor,
    size: tuple[int, int],
    kernel: str,
) -> tf.Tensor:
    """Resamples down and then across.

    Each axis in turn becomes the leading one, with all others folded into
    channels, as the operation is vectorized along channels only. After each of
    the two, a matrix transposition follows.
    """
    height, width = size
    channels = image.shape[-1]

    def along_rows(rows: tf.Tensor, axis: int) -> tf.Tensor:
        return tf.raw_ops.ScaleAndTranslate(
            images=rows[None, :, None, :],
            size=[size[axis], 1],
            scale=tf.stack([scale[axis], 1.0]),
            translation=tf.stack([shift[axis], 0.0]),
            kernel_type=kernel,
            antialias=True,
        )[0, :, 0]

    def rounded(values: tf.Tensor) -> tf.Tensor:
        # The weights sum to 1: the result is in 0 … 255 if none is negative.
        if kernel != "triangle":
            values = tf.clip_by_value(values, 0.0, 255.0)
        return tf.cast(values + 0.5, tf.uint8)

    rows = tf.reshape(image, [shape[0], shape[1] * channels])
    rows = along_rows(rows, 0)  # [H, w C]
    if kernel != "triangle":
        rows = rounded(rows)
    columns = tf.reshape(tf.transpose(rows), [shape[1], channels * height])
    columns = along_rows(columns, 1)  # [W, C H]
    rows = tf.transpose(tf.reshape(columns, [width * channels, height]))
    return tf.reshape(rounded(rows), [height, width, channels])


def crop_box(
    draws: tf.Tensor,
    size: tf.Tensor,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tf.Tensor:
    """Draws a random crop: area uniform, aspect ratio log-uniform.

    The first of ten tries that fits into the image is taken. If none fits, it
    is the largest crop at the centre with an allowed ratio.

    Args:
        draws: Numbers in [0, 1), float32 [..., BOX_DRAWS].
        size: Height and width of the image, int32 [2].
        scale: Smallest and largest share of the image's area.
        ratio: Smallest and largest width over height.

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
    """`crop_box`, compiled into one call instead of forty small operations."""
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
    extent = tf.gather(tries, first, axis=-2, batch_dims=len(first.shape))
    room = size - extent + 1  # [..., 2]
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
            tf.where(any_fits, extent, fallback),
        ],
        axis=-1,
    )


def resized_crop(image: tf.Tensor, box: tf.Tensor, side: int) -> tf.Tensor:
    """Crops an image and resizes the crop to a square.

    Args:
        image: uint8 [h, w, C], C static.
        box: Top, left, height and width, int32 [4], within the image.
        side: Side of the result.

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
    """Crops one encoded image several times, and resizes the crops.

    Of a JPEG, only the smallest box around all crops is decoded, once: decoding
    each crop separately takes longer. The result equals that of the whole
    image, bit for bit.

    Args:
        encoded: The file's bytes, scalar string.
        orientation: The EXIF orientation, int32.
        boxes: Top, left, height and width of each crop, int32 [k, 4].
        side: Side of the results.
        size: Result of `image_size`, if it is known.

    Returns:
        A list of k images, uint8 [side, side, 3].
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


# --------------------------------------------------------- EXIF orientation --


def exif_orientation(encoded: tf.Tensor) -> tf.Tensor:
    """Reads the EXIF orientation of an encoded image.

    A served model gets bytes and no more, so it must read the orientation in
    the graph. `files.examine` asks the same graph before training, so that both
    turn images alike.

    Args:
        encoded: The file's bytes, scalar string; may be damaged.

    Returns:
        1 … 8, int32 scalar, from a JPEG's EXIF segment or a PNG's or WebP's
        EXIF chunk; 1 where that is missing or damaged, and for GIF and BMP.
        Unlike in Pillow, an orientation stored only in XMP or a raw profile is
        not read, nor is one behind the first 256 KiB of a JPEG.
    """
    is_jpeg = _starts_with(encoded, _JPEG)
    # `_read_exif`'s pattern would take 30 ms for the whole of a camera's file.
    encoded = tf.cond(
        is_jpeg,
        lambda: tf.strings.substr(encoded, 0, _JPEG_HEAD),
        lambda: encoded,
    )
    # Plain texts are found several times faster than `_read_exif`'s pattern.
    marked = tf.cond(
        is_jpeg,
        lambda: holds(encoded, r"Exif\x00\x00"),
        lambda: holds(encoded, "eXIf") | holds(encoded, "EXIF"),
    )
    return tf.cond(marked, lambda: _read_exif(encoded), lambda: tf.constant(1))


def holds(encoded: tf.Tensor, pattern: str) -> tf.Tensor:
    """Returns whether bytes match a pattern anywhere.

    Args:
        encoded: Strings of any shape.
        pattern: A regular expression of RE2.

    Returns:
        bool of the same shape.
    """
    # A full match would need valid UTF-8 around the pattern.
    without = tf.strings.regex_replace(
        encoded, pattern, "", replace_global=False
    )
    return tf.strings.length(without) < tf.strings.length(encoded)


@seldom
def _read_exif(encoded: tf.Tensor) -> tf.Tensor:
    """Reads the orientation in the first TIFF block behind a mark of EXIF."""
    before = tf.strings.regex_replace(
        encoded, rf"{_EXIF_MARK}(II\*\x00|MM\x00\*)\C*", ""
    )
    block = tf.strings.substr(encoded, tf.strings.length(before), -1)
    block = tf.strings.regex_replace(block, f"^{_EXIF_MARK}", "")
    data = tf.io.decode_raw(block, tf.uint8, fixed_length=_EXIF_BYTES)
    data = tf.cast(data, tf.int32)

    def number(digits: tf.Tensor) -> tf.Tensor:
        """Returns the number in bytes [..., n]."""
        big = tf.where(data[0] == ord("I"), tf.reverse(digits, [-1]), digits)
        total = tf.zeros_like(digits[..., 0])
        for place in range(digits.shape[-1]):
            total = total * 256 + big[..., place]
        return total

    place = tf.clip_by_value(number(data[4:8]), 0, _EXIF_BYTES - 2)
    entries = number(tf.slice(data, [place], [2]))
    rows = data[place + 2 : place + 2 + 12 * entries]
    rows = tf.reshape(rows[: tf.size(rows) // 12 * 12], [-1, 12])
    kinds, values = number(rows[:, 2:4]), tf.zeros_like(rows[:, 0])
    for kind, width in _SIZES.items():
        value = number(rows[:, 8 : 8 + width])
        values = tf.where(kinds == kind, value, values)
    is_tag = number(rows[:, :2]) == _ORIENTATION
    # Without the tag it is 0, which is no orientation.
    value = tf.reduce_max(tf.concat([tf.where(is_tag, values, 0), [0]], axis=0))
    return tf.where((value >= 1) & (value <= 8), value, 1)


# ------------------------------------------------------------ sets of images --


def centre_crops(
    images: source.Images | source.Encoded,
    indices: tf.Tensor,
    *,
    side: int,
    resize: int | None = None,
    kernel: str = "triangle",
) -> tf.Tensor:
    """Returns images as evaluation sees them: resized, cropped at the centre.

    Args:
        images: The set.
        indices: Which of them, int64 [n].
        side: Side of the result. Images in memory with this height or width
            are not resized if `resize` is None.
        resize: Length to which the shorter side is resized before the centre
            is cropped; default: `side`.
        kernel: See `fit`.

    Returns:
        uint8 [n, H, W, C].
    """
    if not images.encoded and resize is None:
        if side in images.images.shape[1:3]:
            return images.fetch(indices)

    def one(index: tf.Tensor) -> tf.Tensor:
        if images.encoded:
            pixels = decode(*images.read(index))
        else:
            pixels = images.fetch(index)
        return fit(pixels, resize=resize or side, side=side, kernel=kernel)

    shape = [side, side, _channels(images)]
    return _each(one, indices, tf.TensorSpec(shape, tf.uint8))


def random_crops(
    images: source.Images | source.Encoded,
    indices: tf.Tensor,
    draws: tf.Tensor,
    *,
    side: int,
    area: tuple[float, float],
) -> list[tf.Tensor]:
    """Returns random crops, resized: one or more of each image.

    Args:
        images: The set.
        indices: Which of them, int64 [n].
        draws: Random numbers in [0, 1), float32 [n, crops, BOX_DRAWS].
        side: Side of the crops.
        area: Smallest and largest share of the image's area in a crop.

    Returns:
        A list of uint8 [n, side, side, C], as long as each image has crops.
    """

    def one(element: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        index, numbers = element
        if images.encoded:
            encoded, orientation = images.read(index)
            size = image_size(encoded, orientation)
            boxes = crop_box(numbers, size, scale=area)
            parts = resized_crops(encoded, orientation, boxes, side, size=size)
        else:
            pixels = images.fetch(index)
            boxes = crop_box(numbers, tf.shape(pixels)[:2], scale=area)
            parts = [
                resized_crop(pixels, box, side) for box in tf.unstack(boxes)
            ]
        return tf.stack(parts)

    shape = [draws.shape[1], side, side, _channels(images)]
    crops = _each(one, (indices, draws), tf.TensorSpec(shape, tf.uint8))
    return tf.unstack(crops, axis=1)


def _channels(images: source.Images | source.Encoded) -> int:
    return 3 if images.encoded else images.images.shape[-1]


def _each(function, elements, signature: tf.TensorSpec) -> tf.Tensor:
    return tf.map_fn(
        function,
        elements,
        fn_output_signature=signature,
        # Eager mode does not have this, and TensorFlow would warn each time.
        parallel_iterations=None if tf.executing_eagerly() else _PARALLEL,
    )
