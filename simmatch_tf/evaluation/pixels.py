"""Images as the features that need no network see them.

Importing this module does not import TensorFlow.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from simmatch_tf.evaluation import baselines

if TYPE_CHECKING:
    from simmatch_tf.data.sources import source as source_lib

_BATCH_SIZE = 256  # images that are read at once


def read(
    images: source_lib.Images | source_lib.Encoded,
    indices: np.ndarray,
    *,
    resize: float | None = None,
    parallel_calls: int = 1,
    when: str,
) -> Iterator[np.ndarray]:
    """Reads images as `baselines.handmade` takes them, in batches.

    Args:
        images: The images to choose from.
        indices: Which of them, [n].
        resize: Shorter side before the central crop, as a multiple of the side
            of that crop; None: the largest square. Of encoded images only.
        parallel_calls: Batches that are prepared at once.
        when: What goes on, for the message on an image that cannot be read.

    Yields:
        uint8 [b, H, W, C], in order.

    Raises:
        InputError: An image cannot be read.
    """
    if not images.encoded:
        for start in range(0, len(indices), _BATCH_SIZE):
            yield images.images[indices[start : start + _BATCH_SIZE]]
        return
    from simmatch_tf.evaluation import evaluator  # imports TensorFlow

    yield from evaluator.outputs(
        lambda batch: batch,
        images,
        indices,
        batch_size=_BATCH_SIZE,
        side=baselines.SIDE,
        resize=None if resize is None else round(baselines.SIDE * resize),
        parallel_calls=parallel_calls,
        when=when,
    )
