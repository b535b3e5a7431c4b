"""Turns encoded images into a network's input, in the graph.

The pixels are those of evaluation.
"""

import dataclasses
import struct
from collections.abc import Callable
from typing import Any, Self

import tensorflow as tf

from simmatch_tf.data import decoding, viewing

# Largest number of images of one call that are decoded at once.
_PARALLEL = 16
# Channels → PNG's color type: grey, or RGB.
_COLOR_TYPES = {1: 0, 3: 2}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How images of any size become the input of a network.

    Images are turned by their EXIF orientation, also for networks trained on
    records of TFDS, which are trained and evaluated on as stored (see
    `records.RecordImages`).

    Attributes:
        image_shape: (height, width, channels) of the network's input.
        resize: Length to which the shorter side is resized before the center is
            cropped; None: the side of the network's input.
    """

    image_shape: tuple[int, int, int]
    resize: int | None

    def as_dict(self) -> dict[str, Any]:
        """Returns a JSON object, which other programs may read, too."""
        return {**dataclasses.asdict(self), "exif": True}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """Creates an object from what `as_dict` returned.

        Raises:
            KeyError: An entry is missing.
        """
        return cls(tuple(content["image_shape"]), content["resize"])

    def decode(self, encoded: tf.Tensor) -> tf.Tensor:
        """Decodes one image.

        Args:
            encoded: A JPEG, PNG, GIF, BMP or WebP image, a scalar string.

        Returns:
            uint8 [H, W, C].

        Raises:
            tf.errors.InvalidArgumentError: It cannot be decoded, or its header
                claims more than 200 megapixels.
        """
        image = tf.cond(
            self._is_plain(encoded),
            lambda: self._decode_plain(encoded),
            lambda: decoding.seldom(self._decode_any)(encoded),
        )
        return tf.ensure_shape(image, self.image_shape)

    def _is_plain(self, encoded: tf.Tensor) -> tf.Tensor:
        """Whether an image only needs decoding to be the network's input.

        This holds for PNGs of the same size and channels, with 8 bits. For
        small images, all other steps take longer than decoding.
        """
        height, width, channels = self.image_shape
        if channels not in _COLOR_TYPES or self.resize not in (None, height):
            return tf.constant(False)
        head = struct.pack(
            ">8sI4sIIBB",
            *(b"\x89PNG\r\n\x1a\n", 13, b"IHDR", width, height, 8),
            _COLOR_TYPES[channels],
        )
        plain = tf.equal(tf.strings.substr(encoded, 0, len(head)), head)
        return plain & ~decoding.holds(encoded, "eXIf")

    def _decode_plain(self, encoded: tf.Tensor) -> tf.Tensor:
        pixels = tf.io.decode_png(encoded, self.image_shape[2])
        return tf.ensure_shape(pixels, self.image_shape)

    def _decode_any(self, encoded: tf.Tensor) -> tf.Tensor:
        check = tf.debugging.Assert(
            _pixels(encoded) <= viewing.MAX_PIXELS,
            [f"more than {viewing.MAX_PIXELS // 10**6} megapixels"],
        )
        with tf.control_dependencies([check]):
            encoded = tf.identity(encoded)
        turn = decoding.exif_orientation(encoded)
        height, width, channels = self.image_shape
        pixels = decoding.decode(encoded, turn, channels=channels)
        if height != width:
            return self._resampled(
                pixels, lambda: decoding.resize(pixels, (height, width))
            )
        side = self.resize or height
        return self._resampled(
            pixels, lambda: decoding.fit(pixels, resize=side, side=height)
        )

    def _resampled(
        self, pixels: tf.Tensor, resample: Callable[[], tf.Tensor]
    ) -> tf.Tensor:
        """Skips resampling, the slowest step, if it would change nothing."""
        if self.resize not in (None, self.image_shape[0]):
            return resample()
        fits = tf.reduce_all(tf.shape(pixels) == self.image_shape)
        same = tf.cond(fits, lambda: pixels, resample)
        return tf.ensure_shape(same, self.image_shape)

    def decode_batch(self, encoded: tf.Tensor) -> tf.Tensor:
        """Decodes several images at once.

        Args:
            encoded: Strings [N], see `decode`.

        Returns:
            uint8 [N, H, W, C].

        Raises:
            tf.errors.InvalidArgumentError: An image cannot be decoded; the
                message names its index in the batch.
        """
        count = tf.shape(encoded)[0]

        def several() -> tf.Tensor:
            return tf.cond(
                tf.reduce_all(self._is_plain(encoded)),
                lambda: self._decode_all(encoded, self._decode_plain),
                lambda: self._decode_all(encoded, self.decode),
            )

        # A single image needs neither threads nor its index in a message.
        return tf.cond(
            count == 1, lambda: self.decode(encoded[0])[None], several
        )

    def _decode_all(
        self, encoded: tf.Tensor, decode: Callable[[tf.Tensor], tf.Tensor]
    ) -> tf.Tensor:
        """Decodes a batch, and finds the images that cannot be decoded.

        A graph cannot catch errors, but a dataset can ignore them.
        """
        count = tf.shape(encoded, tf.int64)[0]

        def one(index: tf.Tensor, data: tf.Tensor) -> tuple:
            return index, decode(data)

        dataset = tf.data.Dataset.from_tensor_slices((tf.range(count), encoded))
        dataset = dataset.map(
            tf.autograph.experimental.do_not_convert(one),
            num_parallel_calls=_PARALLEL,
            deterministic=True,
        ).ignore_errors()
        # A blank image is appended, as a batch cannot be empty.
        blank = tf.zeros(self.image_shape, tf.uint8)
        last = tf.data.Dataset.from_tensors((count, blank))
        dataset = dataset.concatenate(last).batch(count + 1)
        # A dataset of one call is neither tuned nor rewritten.
        options = tf.data.Options()
        options.autotune.enabled = False
        options.experimental_optimization.apply_default_optimizations = False
        dataset = dataset.with_options(options)
        indices, images = dataset.get_single_element()
        decoded = tf.scatter_nd(
            indices[:, None], tf.ones_like(indices), [count + 1]
        )
        bad = tf.where(decoded == 0)[:, 0]
        message = tf.strings.format(
            "image_bytes{} cannot be decoded: must be whole JPEG, PNG, GIF, "
            "BMP or WebP images of at most 200 megapixels",
            bad,
            summarize=10,
        )
        check = tf.debugging.Assert(tf.size(bad) == 0, [message])
        with tf.control_dependencies([check]):
            return tf.identity(images[:-1])


def _pixels(encoded: tf.Tensor) -> tf.Tensor:
    """Returns the pixels by a JPEG's or PNG's header; 0 for other formats.

    A few bytes may claim an image that fills the memory. (A BMP is as large as
    its file, and headers of GIF and WebP allow no such sizes.)
    """

    def of_png() -> tf.Tensor:
        header = tf.strings.substr(encoded, 16, 8)
        sides = tf.io.decode_raw(header, tf.int32, little_endian=False)
        return tf.reduce_prod(tf.cast(sides, tf.float32))

    def of_jpeg() -> tf.Tensor:
        shape = tf.io.extract_jpeg_shape(encoded)
        return tf.reduce_prod(tf.cast(shape[:2], tf.float32))

    is_png = tf.equal(tf.strings.substr(encoded, 0, 4), b"\x89PNG")
    is_jpeg = tf.equal(tf.strings.substr(encoded, 0, 3), b"\xff\xd8\xff")
    return tf.cond(
        is_png & (tf.strings.length(encoded) >= 24),
        of_png,
        lambda: tf.cond(is_jpeg, of_jpeg, lambda: tf.constant(0.0)),
    )
