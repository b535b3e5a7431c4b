"""Near-duplicates: copies, bursts, images re-encoded, cropped or brightened.

Two images are near-duplicates if one explains the other after a small shift, a
small change of scale, and a change of brightness and contrast: the correlation
of their grey thumbnails is then close to 1. The rule needs no model.

Importing this module does not import TensorFlow.

References:
    Baker and Matthews, Lucas-Kanade 20 Years On: A Unifying Framework,
    IJCV 2004 (alignment)
"""

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
import threadpoolctl

from simmatch_tf import terminal

# Side of the thumbnails that are compared.
SIDE = 32
# What may be left unexplained: 1 − correlation. Where any images are alike by
# nature, as pictures of trousers, it is less: this share of what an image
# and the most similar of a few others leave.
_TOLERANCE = 0.02
_SHARE = 1 / 8
_OTHERS = 300
# The most similar images of each, by coarse thumbnails, are compared with it;
# their coarse correlation must be at least this.
_COMPARED = 3
_COARSE = 0.7
# Largest shift, in pixels, and change of scale at the border, of thumbnails.
_LARGEST_SHIFT = 4.0
_ITERATIONS = 4
# Pixels at the border that are not compared: they need not be in both.
_MARGIN = 3
# Contrast of one may be so many times that of the other; mean shares of the
# color channels may differ by so much.
_CONTRAST = 2.5
_COLOR = 0.03
# Standard deviation of grey values below which a thumbnail is flat.
_FLAT = 1.0
_ROWS = 1024
_PAIRS = 4096


def find(thumbnails: np.ndarray, labeled: np.ndarray) -> np.ndarray:
    """Finds near-duplicates.

    Time grows with N²: 60,000 images take about a minute. Flat thumbnails are
    duplicates only if they are equal.

    Args:
        thumbnails: uint8 [N, 32, 32, 3], of whole images.
        labeled: Which images have a label, bool [N].

    Returns:
        Index of each image's original, int [N]: of a group of near-duplicates,
        the first with a label, or else the first. Its own, if it has none.
    """
    images = len(thumbnails)
    grey = _blurred(thumbnails.astype(np.float32).mean(axis=-1))  # [N, S, S]
    terminal.say(f"comparing {images:,} images for near-duplicates")
    color = thumbnails.mean(axis=(1, 2), dtype=np.float32) + 1  # [N, 3]
    color /= color.sum(axis=1, keepdims=True)
    # In one thread, so that the number of processors has no part in the result.
    with threadpoolctl.threadpool_limits(1):
        pairs = _candidates(grey)
        apart = np.abs(color[pairs[:, 0]] - color[pairs[:, 1]]).max(axis=1)
        pairs = pairs[apart < _COLOR]
        same = unexplained(grey, pairs) <= _tolerance(grey)
    pairs = np.concatenate([pairs[same], _equal(thumbnails)])
    links = scipy.sparse.coo_array(
        (np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (images, images)
    )
    _, group = scipy.sparse.csgraph.connected_components(links, directed=False)
    # The first of each group, when those with a label come first.
    order = np.argsort(~labeled, kind="stable")
    _, place = np.unique(group[order], return_index=True)
    return order[place][group]


def unexplained(grey: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Compares pairs of thumbnails after alignment.

    The first is shifted and scaled, by Gauss-Newton steps, so that a linear
    function of it comes closest to the second.

    Args:
        grey: Blurred grey thumbnails, float32 [N, S, S].
        pairs: Indices, int [P, 2].

    Returns:
        1 − correlation of the pixels, float [P]; 1 where the contrast of the
        two differs by too much.
    """
    parts = [
        _aligned(grey[part[:, 0]], grey[part[:, 1]])
        for part in (
            pairs[i : i + _PAIRS] for i in range(0, len(pairs), _PAIRS)
        )
    ]
    return np.concatenate([*parts, np.zeros(0)])


def _aligned(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns 1 − correlation of thumbnails after alignment, float [P]."""
    pairs, side, _ = first.shape
    center = (side - 1) / 2
    # Every other pixel says enough of blurred thumbnails.
    lines = np.arange(_MARGIN, side - _MARGIN, 2)
    y, x = (axis.ravel() for axis in np.meshgrid(lines, lines, indexing="ij"))
    far_y, far_x = (y - center) / center, (x - center) / center
    target = second[:, y, x]  # [P, pixels]
    slope_y = (second[:, y + 1, x] - second[:, y - 1, x]) / 2
    slope_x = (second[:, y, x + 1] - second[:, y, x - 1]) / 2
    columns = np.stack(
        [np.ones_like(target), target, slope_y, slope_x]
        + [slope_y * far_y, slope_x * far_x],
        axis=1,
    )  # [P, 6, pixels]
    move = np.zeros([pairs, 4], np.float32)  # shift y, x; scale y, x
    best = np.ones(pairs)
    for step in range(_ITERATIONS + 1):
        warped = _sample(
            first,
            y + move[:, 0, None] + move[:, 2, None] * far_y,
            x + move[:, 1, None] + move[:, 3, None] * far_x,
        )
        best = np.minimum(best, _apart(warped, target))
        if step == _ITERATIONS:
            return best
        columns[:, 1] = warped
        normal = columns @ columns.swapaxes(1, 2)
        normal += 0.01 * np.eye(6, dtype=np.float32)
        right = columns @ target[..., None]
        solved = np.linalg.solve(normal, right)[..., 0]
        gain = np.maximum(np.abs(solved[:, 1:2]), 0.3)
        move += np.clip(solved[:, 2:] / gain, -1.5, 1.5)
        move = np.clip(move, -_LARGEST_SHIFT, _LARGEST_SHIFT)


def _sample(images: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Samples images [P, S, S] at places [P, n], by linear interpolation."""
    pairs, side, _ = images.shape
    y, x = (np.clip(axis, 0, side - 1.001) for axis in (y, x))
    top, left = y.astype(np.int32), x.astype(np.int32)
    y, x = y - top, x - left
    place = np.arange(pairs, dtype=np.int32)[:, None] * side**2
    place = place + top * side + left
    flat = images.reshape(-1)
    upper = flat[place] * (1 - x) + flat[place + 1] * x
    lower = flat[place + side] * (1 - x) + flat[place + side + 1] * x
    return (upper * (1 - y) + lower * y).astype(np.float32)


def _apart(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns 1 − correlation of rows; 1 where contrast differs too much."""
    first = first - first.mean(axis=1, keepdims=True)
    second = second - second.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(first, axis=1), np.linalg.norm(second, axis=1)
    low, high = np.minimum(*lengths), np.maximum(*lengths)
    correlation = (first * second).sum(axis=1) / np.maximum(low * high, 1e-3)
    return np.where(high <= _CONTRAST * low, 1 - correlation, 1.0)


def _tolerance(grey: np.ndarray) -> float:
    """Returns how much may be left unexplained in this set of images.

    A few images, evenly spaced, are compared with each other: too few for many
    of them to be duplicates, even in a folder full of them.
    """
    few = grey[:: max(1, len(grey) // _OTHERS)]
    if len(few) < 3:
        return _TOLERANCE
    pairs = _candidates(few, least=-1.0)
    apart = unexplained(few, pairs)
    nearest = np.ones(len(few))
    for column in pairs.T:
        np.minimum.at(nearest, column, apart)
    return min(_TOLERANCE, _SHARE * float(np.median(nearest)))


def _candidates(grey: np.ndarray, least: float = _COARSE) -> np.ndarray:
    """Returns pairs of images that are alike at a coarse scale.

    Args:
        grey: float32 [N, S, S].
        least: Smallest correlation of a pair.

    Returns:
        Pairs i < j, each once, int [P, 2].
    """
    coarse = _coarse(grey)
    pairs = []
    for start in range(0, len(coarse), _ROWS):
        similar = coarse[start : start + _ROWS] @ coarse.T
        rows = np.arange(len(similar))
        similar[rows, start + rows] = -2
        for _ in range(min(_COMPARED, len(coarse) - 1)):
            nearest = similar.argmax(axis=1)
            kept = similar[rows, nearest] >= least
            pairs.append(np.stack([start + rows, nearest], axis=1)[kept])
            similar[rows, nearest] = -2
    pairs = np.concatenate([*pairs, np.zeros([0, 2], int)])
    return np.unique(np.sort(pairs, axis=1), axis=0)


def _coarse(grey: np.ndarray) -> np.ndarray:
    """Returns thumbnails of 8×8, zero-mean and of unit length; 0 if flat."""
    images, side, _ = grey.shape
    block = side // 8
    small = grey.reshape(images, 8, block, 8, block).mean(axis=(2, 4))
    small = small.reshape(images, -1)
    small -= small.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(small, axis=1, keepdims=True)
    return small / np.where(lengths < 8 * _FLAT, np.inf, lengths)


def _blurred(grey: np.ndarray) -> np.ndarray:
    """Returns images [N, S, S], blurred by (1, 2, 1) / 4 along both axes."""
    for axis in (1, 2):
        width = [(0, 0)] * 3
        width[axis] = (1, 1)
        wide = np.pad(grey, width, "edge").swapaxes(0, axis)
        grey = (wide[:-2] + 2 * wide[1:-1] + wide[2:]).swapaxes(0, axis) / 4
    return np.ascontiguousarray(grey, np.float32)


def _equal(thumbnails: np.ndarray) -> np.ndarray:
    """Returns pairs of equal thumbnails, each with the first such one."""
    firsts: dict[bytes, int] = {}
    pairs = [
        (firsts.setdefault(image.tobytes(), index), index)
        for index, image in enumerate(thumbnails)
    ]
    return np.array(pairs)
