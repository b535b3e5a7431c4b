"""Random numbers without state: functions of (key, epoch, image)."""

import numpy as np
import tensorflow as tf

# The shuffle of tf.random.experimental.index_shuffle is a block cipher. In its
# 4 rounds, neighbouring indices come out correlated, and seeds that differ in
# few bits give related permutations of small sets. Hence more rounds, and seeds
# that went through the cipher themselves.
_ROUNDS = 24
_RANGE = 2**24  # the integers that float32 holds exactly


def key(seed: int, stream: str) -> int:
    """Returns a hash of seed and stream, an int32 that is not negative.

    Args:
        seed: The run's seed, at least 0.
        stream: Name of the purpose, such as "weak".
    """
    sequence = np.random.SeedSequence([seed, *stream.encode()])
    return int(sequence.generate_state(1)[0] >> 1)


def _cipher(index: tf.Tensor, seeds: tf.Tensor, largest: int) -> tf.Tensor:
    return tf.raw_ops.RandomIndexShuffle(
        index=index,
        seed=seeds,
        max_index=tf.cast(largest, index.dtype),
        rounds=_ROUNDS,
    )


def _mix(seeds: tf.Tensor) -> tf.Tensor:
    """Spreads every bit of seeds [N, 3] over their three words."""
    words = [
        _cipher(tf.fill([tf.shape(seeds)[0]], word), seeds, 2**31 - 1)
        for word in range(3)
    ]
    return tf.stack(words, axis=1)


def shuffle(
    key: int, epoch: tf.Tensor, index: tf.Tensor, size: int
) -> tf.Tensor:
    """Looks up places in an epoch's permutation of 0 … size - 1.

    Args:
        key: See `key`.
        epoch: [N], int64.
        index: Places [N] int64, in [0, size).
        size: Size of the set.

    Returns:
        [N] int64; all places of one epoch give each number once.
    """
    return _cipher(
        index, _mix(seeds(key, epoch, tf.zeros_like(epoch))), size - 1
    )


def seeds(key: int, epoch: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Returns a seed for each image of a batch.

    Args:
        key: See `key`.
        epoch: [N], integers.
        index: Indices of the images in their set, [N].

    Returns:
        [N, 3] int32.
    """
    epoch, index = tf.cast(epoch, tf.int32), tf.cast(index, tf.int32)
    return tf.stack([tf.fill(tf.shape(index), key), epoch, index], axis=1)


def uniform(seeds: tf.Tensor, count: int) -> tf.Tensor:
    """Draws numbers for each image of a batch.

    Args:
        seeds: [N, 3] int32.
        count: Numbers for each image, may be 0.

    Returns:
        [N, count] float32, uniform in [0, 1). The first `n` of a longer draw
        are the shorter draw.
    """
    images = tf.shape(seeds)[0]
    if not count:  # the operation refuses an empty index
        return tf.zeros([images, 0])
    index = tf.tile(tf.range(count), [images])
    bits = _cipher(index, tf.repeat(_mix(seeds), count, axis=0), _RANGE - 1)
    return tf.reshape(tf.cast(bits, tf.float32) / _RANGE, [images, count])
