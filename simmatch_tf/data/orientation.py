"""The EXIF orientation of an encoded image, read as part of a graph.

The one rule of how images are turned: a served model gets bytes and no more, so
training, which asks before it starts (`examination`), asks the same graph.
"""

import tensorflow as tf

from simmatch_tf.data import branches

_JPEG = b"\xff\xd8"
_PNG = b"\x89PNG\r\n\x1a\n"
_TAG = 0x0112
# TIFF's types of whole numbers → their bytes.
_SIZES = {1: 1, 3: 2, 4: 4}


def orientation(encoded: tf.Tensor) -> tf.Tensor:
    """Reads the orientation that EXIF gives.

    Args:
        encoded: The file's bytes, scalar string; may be damaged.

    Returns:
        1 … 8, int32 scalar: of a JPEG's EXIF segment, or a PNG's or WebP's
        EXIF chunk. 1 where there is none, in GIF and BMP, and where it is
        damaged.
        Unlike by Pillow, an orientation that stands in XMP or in a raw profile
        alone is not read.
    """
    return tf.cond(
        _starts_with(encoded, _JPEG) & holds(encoded, r"Exif\x00\x00"),
        lambda: _of_jpeg(encoded),
        lambda: tf.cond(
            _starts_with(encoded, _PNG) & holds_exif(encoded),
            lambda: _of_png(encoded),
            lambda: tf.cond(
                _is_webp(encoded) & holds(encoded, "EXIF"),
                lambda: _of_webp(encoded),
                lambda: tf.constant(1),
            ),
        ),
    )


def holds_exif(png: tf.Tensor) -> tf.Tensor:
    """Which PNGs, strings of any shape, may have an eXIf chunk: bool."""
    return holds(png, "eXIf")


@branches.seldom
def _of_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    return _of_tiff(encoded, _in_jpeg(encoded))


@branches.seldom
def _of_png(encoded: tf.Tensor) -> tf.Tensor:
    return _of_tiff(encoded, _in_png(encoded))


@branches.seldom
def _of_webp(encoded: tf.Tensor) -> tf.Tensor:
    return _of_tiff(encoded, _in_webp(encoded))


def _is_webp(encoded: tf.Tensor) -> tf.Tensor:
    place = tf.minimum(8, tf.strings.length(encoded))
    kind = tf.strings.substr(encoded, place, 4)
    return _starts_with(encoded, b"RIFF") & tf.equal(kind, b"WEBP")


def _starts_with(encoded: tf.Tensor, magic: bytes) -> tf.Tensor:
    return tf.equal(tf.strings.substr(encoded, 0, len(magic)), magic)


def holds(encoded: tf.Tensor, pattern: str) -> tf.Tensor:
    """Whether bytes match anywhere: so that few files need a closer look.

    Args:
        encoded: Strings of any shape.
        pattern: A regular expression of RE2.
    """
    # A full match would want valid UTF-8 around the pattern.
    without = tf.strings.regex_replace(
        encoded, pattern, "", replace_global=False
    )
    return tf.strings.length(without) < tf.strings.length(encoded)


def _numbers(encoded: tf.Tensor, start: tf.Tensor, count: tf.Tensor):
    """Bytes from `start`, as far as there are any: int32."""
    start = tf.clip_by_value(start, 0, tf.strings.length(encoded))
    part = tf.strings.substr(encoded, start, tf.maximum(count, 0))
    return tf.cast(tf.io.decode_raw(part, tf.uint8), tf.int32)


def _padded(encoded: tf.Tensor, start: tf.Tensor, count: int) -> tf.Tensor:
    """So many bytes from `start`, zeros behind the end: int32 [count]."""
    found = _numbers(encoded, start, tf.constant(count))
    found = tf.pad(found, [[0, count - tf.size(found)]])
    return tf.ensure_shape(found, [count])


def _big(digits: tf.Tensor) -> tf.Tensor:
    """The number that bytes [..., n] are, the first the highest."""
    total = tf.zeros_like(digits[..., 0])
    for place in range(digits.shape[-1]):
        total = total * 256 + digits[..., place]
    return total


def _in_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    """Where the TIFF block of the first EXIF segment begins; -1: nowhere."""

    def walk(place: tf.Tensor, found: tf.Tensor) -> tuple:
        head = _padded(encoded, place, 4)
        marker, size = head[1], _big(head[2:])
        is_exif = (marker == 0xE1) & tf.equal(
            tf.strings.substr(
                encoded,
                tf.minimum(place + 4, tf.strings.length(encoded)),
                6,
            ),
            b"Exif\0\0",
        )
        # Of the picture itself, or of none: the walk ends.
        ends = (head[0] != 0xFF) | (marker == 0xDA) | (marker == 0xD9)
        step = tf.where(marker == 0xFF, 1, 2 + tf.maximum(size, 2))
        end = tf.strings.length(encoded)
        return (
            tf.where(ends, end, place + step),
            tf.where(is_exif & ~ends, place + 10, found),
        )

    return _walk(encoded, walk, 2)


def _in_png(encoded: tf.Tensor) -> tf.Tensor:
    """Where the content of the eXIf chunk begins; -1: nowhere."""

    def walk(place: tf.Tensor, found: tf.Tensor) -> tuple:
        head = _padded(encoded, place, 8)
        size, kind = _big(head[:4]), head[4:]
        is_exif = tf.reduce_all(kind == tf.constant(list(b"eXIf")))
        end = tf.strings.length(encoded)
        # A damaged size must neither go back nor go round.
        step = tf.where((size >= 0) & (size < end), size + 12, end)
        return place + step, tf.where(is_exif, place + 8, found)

    return _walk(encoded, walk, len(_PNG))


def _in_webp(encoded: tf.Tensor) -> tf.Tensor:
    """Where the content of the EXIF chunk begins; -1: nowhere."""

    def walk(place: tf.Tensor, found: tf.Tensor) -> tuple:
        head = _padded(encoded, place, 8)
        kind, size = head[:4], _big(head[:3:-1])
        is_exif = tf.reduce_all(kind == tf.constant(list(b"EXIF")))
        end = tf.strings.length(encoded)
        size = tf.where((size >= 0) & (size < end), size + size % 2, end)
        # Some writers put JPEG's own mark in front.
        marked = tf.equal(
            tf.strings.substr(encoded, tf.minimum(place + 8, end), 6),
            b"Exif\0\0",
        )
        start = place + tf.where(marked, 14, 8)
        return place + 8 + size, tf.where(is_exif, start, found)

    return _walk(encoded, walk, 12)


def _walk(encoded: tf.Tensor, body, start: int) -> tf.Tensor:
    end = tf.strings.length(encoded)
    _, found = tf.while_loop(
        lambda place, found: (found < 0) & (place < end),
        body,
        (tf.constant(start), tf.constant(-1)),
        parallel_iterations=1,
    )
    return found


def _of_tiff(encoded: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """The orientation in the first directory of a TIFF block."""

    def read() -> tf.Tensor:
        head = _padded(encoded, start, 8)
        little = head[0] == ord("I")

        def number(digits: tf.Tensor) -> tf.Tensor:
            turned = tf.reverse(digits, [-1])
            return _big(tf.where(little, turned, digits))

        place = number(head[4:])
        size = tf.strings.length(encoded)
        place = tf.where((place < 0) | (place > size), size, start + place)
        entries = number(_padded(encoded, place, 2))
        rows = _numbers(encoded, place + 2, 12 * entries)
        rows = tf.reshape(rows[: tf.size(rows) // 12 * 12], [-1, 12])
        kinds, values = number(rows[:, 2:4]), tf.zeros_like(rows[:, 0])
        for kind, width in _SIZES.items():
            value = number(rows[:, 8 : 8 + width])
            values = tf.where(kinds == kind, value, values)
        is_tag = number(rows[:, :2]) == _TAG
        # None: 0, which is no orientation.
        value = tf.reduce_max(
            tf.concat([tf.where(is_tag, values, 0), [0]], axis=0)
        )
        return tf.where((value >= 1) & (value <= 8), value, 1)

    return tf.cond(start >= 0, read, lambda: tf.constant(1))
