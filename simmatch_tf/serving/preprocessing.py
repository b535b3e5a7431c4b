"""From a file's bytes to a network's input, in the graph, as in evaluation."""

import dataclasses
import struct
from collections.abc import Callable
from typing import Any, Self

import tensorflow as tf

from simmatch_tf import config as config_lib
from simmatch_tf.data import decoding, files

# Images of one call that are decoded at once, at most.
_PARALLEL = 16
# PNG's types of grey and of red, green and blue, by their channels.
_COLOR_TYPES = {1: 0, 3: 2}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How images of any size become those that a network takes.

    They are turned as their EXIF orientation says, whatever the network was
    trained on: the orientation belongs to the file. (The records of TFDS are
    trained and evaluated on as stored, see `records.RecordImages`.)

    Attributes:
        image_shape: (height, width, channels) of the network's input.
        resize: Length that the shorter side is resized to before the centre
            is cropped; None: the network's own side.
    """

    image_shape: tuple[int, int, int]
    resize: int | None

    @classmethod
    def of_run(
        cls, config: config_lib.Config, image_shape: tuple[int, int, int]
    ) -> Self:
        """What a run's evaluation does.

        Args:
            config: The run's flags.
            image_shape: Of its network's input.
        """
        return cls(tuple(image_shape), config.eval_resize)

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file, which other programs may read, too."""
        return {**dataclasses.asdict(self), "exif": True}

    @classmethod
    def of_dict(cls, content: dict[str, Any]) -> Self:
        """Reads what `as_dict` gave.

        Raises:
            KeyError: Something is missing.
        """
        return cls(tuple(content["image_shape"]), content["resize"])

    def decode(self, encoded: tf.Tensor) -> tf.Tensor:
        """Decodes one image.

        Args:
            encoded: A JPEG, PNG, GIF, BMP or WebP, scalar string.

        Returns:
            uint8 [H, W, C].

        Raises:
            tf.errors.InvalidArgumentError: It cannot be decoded, or says that
                it has more than 200 megapixels.
        """
        image = tf.cond(
            self._is_plain(encoded),
            lambda: self._decode_plain(encoded),
            lambda: decoding.seldom(self._decode_any)(encoded),
        )
        return tf.ensure_shape(image, self.image_shape)

    def _is_plain(self, encoded: tf.Tensor) -> tf.Tensor:
        """Of which images decoding alone gives the network's input: bool.

        Of PNGs of that size and as many channels, of 8 bits. Where images are
        small, all else takes longer than the decoding.
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
        return plain & ~decoding.holds_exif(encoded)

    def _decode_plain(self, encoded: tf.Tensor) -> tf.Tensor:
        pixels = tf.io.decode_png(encoded, self.image_shape[2])
        return tf.ensure_shape(pixels, self.image_shape)

    def _decode_any(self, encoded: tf.Tensor) -> tf.Tensor:
        check = tf.debugging.Assert(
            _pixels(encoded) <= files.MAX_PIXELS,
            [f"more than {files.MAX_PIXELS // 10**6} megapixels"],
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
        """Leaves out what would give the same pixels again, and cost most."""
        if self.resize not in (None, self.image_shape[0]):
            return resample()
        fits = tf.reduce_all(tf.shape(pixels) == self.image_shape)
        same = tf.cond(fits, lambda: pixels, resample)
        return tf.ensure_shape(same, self.image_shape)

    def decode_batch(self, encoded: tf.Tensor) -> tf.Tensor:
        """Decodes images, several at once.

        Args:
            encoded: Strings [N], see `decode`.

        Returns:
            uint8 [N, H, W, C].

        Raises:
            tf.errors.InvalidArgumentError: One cannot be decoded; the message
                names its place in the batch.
        """
        count = tf.shape(encoded)[0]

        def several() -> tf.Tensor:
            return tf.cond(
                tf.reduce_all(self._is_plain(encoded)),
                lambda: self._decode_all(encoded, self._decode_plain),
                lambda: self._decode_all(encoded, self.decode),
            )

        # A single image needs no place named, nor threads.
        return tf.cond(
            count == 1, lambda: self.decode(encoded[0])[None], several
        )

    def _decode_all(
        self, encoded: tf.Tensor, decode: Callable[[tf.Tensor], tf.Tensor]
    ) -> tf.Tensor:
        """A graph cannot catch errors, but a dataset can leave them out."""
        count = tf.shape(encoded, tf.int64)[0]

        def one(place: tf.Tensor, data: tf.Tensor) -> tuple:
            return place, decode(data)

        dataset = tf.data.Dataset.from_tensor_slices((tf.range(count), encoded))
        dataset = dataset.map(
            tf.autograph.experimental.do_not_convert(one),
            num_parallel_calls=_PARALLEL,
            deterministic=True,
        ).ignore_errors()
        # One more at the end, that there be one: a batch cannot be empty.
        empty = tf.zeros(self.image_shape, tf.uint8)
        last = tf.data.Dataset.from_tensors((count, empty))
        dataset = dataset.concatenate(last).batch(count + 1)
        places, images = dataset.with_options(_options()).get_single_element()
        found = tf.scatter_nd(
            places[:, None], tf.ones_like(places), [count + 1]
        )
        bad = tf.where(found == 0)[:, 0]
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
    """How many pixels a JPEG or PNG is said to have; 0 of other formats.

    Few bytes may claim an image that fills the memory. (A BMP is as large as
    its file, and GIF and WebP have less room for such claims.)
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


def _options() -> tf.data.Options:
    """For a dataset of one call: nothing is to be tuned or rewritten."""
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    return options
