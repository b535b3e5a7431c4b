"""Which images to label: a few that stand for all.

An order of images is computed from their features alone. Any prefix of it is a
good set of images to label, so one order serves every budget. All methods are
functions of features and seed: they compute in one thread, so that the number
of processors has no part in the result, and never hold a matrix of N × N.

Importing this module imports neither TensorFlow nor scikit-learn.

References:
    Hacohen, Dekel and Weinshall, Active Learning on a Budget: Opposite
    Strategies Suit High and Low Budgets, ICML 2022, arXiv 2202.02794
    ("typical")
    Bae, Noh and Sutherland, Generalized Coverage for More Robust Low-Budget
    Active Learning, ECCV 2024, arXiv 2407.12212 ("maxherding")
    Bae, Oh, Cho and Sutherland, Uncertainty Herding: One Active Learning Method
    for All Label Budgets, ICLR 2025, arXiv 2412.20644 (with an uncertainty)
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import threadpoolctl

from simmatch_tf.flags.errors import InputError

METHODS = ("typical", "kmeans", "maxherding", "random", "stratified")
# Of "typical", as published: neighbors whose mean distance is the typicality,
# the largest number of clusters, the smallest cluster that is picked from, and
# the number of clusters from which on k-means takes mini-batches.
NEIGHBORS = 20
MAX_CLUSTERS = 500
SMALLEST_CLUSTER = 5
_FULL_BATCH = 50
# Of more picks than this, the others stay in the order of their clusters.
_ORDERED = 1000
# Principal components of features of pixels.
_COMPONENTS = 64
# Of "maxherding": squared width of the kernel, and how many images at most are
# to be covered and may be picked; of more, as many are drawn.
KERNEL_WIDTH = 1.0
_COVERED = 4096
_CANDIDATES = 8192
# Rows of a block of distances.
_ROWS = 512


@dataclasses.dataclass(frozen=True)
class Picks:
    """An order in which to label images, and what led to it.

    Attributes:
        order: Indices of the images to label, int [count]. Any prefix is a
            good smaller set.
        clusters: Cluster of each image, int [N]; a copy has that of its
            original.
        typicality: Inverse of an image's mean distance to its nearest
            neighbors in its cluster, float [N]; NaN for copies, and for an
            image that is alone in its cluster.
        copy_of: Index of the image that each nearly duplicates, int [N];
            its own, if there is none.
    """

    order: np.ndarray
    clusters: np.ndarray
    typicality: np.ndarray
    copy_of: np.ndarray


def pick(
    features: np.ndarray,
    count: int,
    *,
    method: str = "typical",
    seed: int = 0,
    labeled: Sequence[int] = (),
    classes: np.ndarray | None = None,
    uncertainty: np.ndarray | None = None,
    copy_of: np.ndarray | None = None,
) -> Picks:
    """Orders images so that the first few stand for all.

    * "typical": k-means into as many clusters as there will be labels. From the
      clusters with the fewest labels, the largest first, the image whose
      neighbors in the cluster are nearest; then in the order in which they
      cover the most.
    * "kmeans": the same clusters, but the image nearest to the center.
    * "maxherding": one after the other, the image that most increases the
      coverage: the mean, over images, of a Gaussian kernel's value at the
      nearest image with a label. Of more than 4,096 images, so many are drawn
      to be covered, and 8,192 that may be picked.
    * "random": by chance.
    * "stratified": by chance, the same number of each class: for simulations,
      where classes are known.

    Copies are set aside first: only the original of a group may be picked, and
    none of it if one has a label.

    Args:
        features: float [N, D]; they are scaled to unit length.
        count: Number of images to pick.
        method: One of `METHODS`.
        seed: Seed of k-means and of all that is drawn.
        labeled: Indices of images that have a label already.
        classes: Class of each image, int [N]; for "stratified" only.
        uncertainty: Weight of each image, float [N], at least 0: images are
            covered in proportion to it, as by Uncertainty Herding. For
            "typical" and "maxherding", which are then the same.
        copy_of: As in `Picks`; see `duplicates.find`. Default: images with the
            same features are copies.

    Returns:
        The order, and what led to it.

    Raises:
        InputError: There are fewer than `count` images to pick from, or an
            argument does not suit the others.
    """
    features = normalized(features)
    images = len(features)
    _check(images, method, classes, uncertainty)
    has_label = np.zeros(images, bool)
    has_label[np.asarray(labeled, int)] = True
    if copy_of is None:
        copy_of = equal_rows(features, has_label)
    distinct = copy_of == np.arange(images)
    free = np.flatnonzero(distinct & ~has_label)
    if not 1 <= count <= len(free):
        raise InputError(
            f"--count={count}: must be from 1 to {len(free)}, the number of "
            "images without a label, copies set aside"
        )
    # Each use of chance has its own stream: more images of one change no other.
    random = np.random.default_rng([seed, METHODS.index(method)])
    with threadpoolctl.threadpool_limits(1):
        clusters, to_center = _cluster(
            features, distinct, has_label, count, seed
        )
        typicality = _typicality(features, clusters, distinct)
        clusters = clusters[copy_of]
        if method == "random":
            order = random.permutation(free)[:count]
        elif method == "stratified":
            order = _stratified(free, classes, has_label, count, random)
        elif method == "maxherding" or uncertainty is not None:
            weights = np.ones(images) if uncertainty is None else uncertainty
            order = _herd(
                features, free, distinct, has_label, count, weights, random
            )
        else:
            score = typicality if method == "typical" else -to_center
            members = np.flatnonzero(distinct)
            order = _by_cluster(
                free, clusters, score, members, has_label, count
            )
            order = _best_first(features, order, clusters, members, has_label)
    return Picks(order, clusters, typicality, copy_of)


def normalized(features: np.ndarray) -> np.ndarray:
    """Returns features of unit length.

    Args:
        features: [N, D]; a row of zeros stays as it is.

    Returns:
        float32 [N, D].

    Raises:
        InputError: A feature is not finite.
    """
    features = np.asarray(features, np.float32)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    if not np.isfinite(lengths).all():
        row = int(np.flatnonzero(~np.isfinite(lengths[:, 0]))[0])
        raise InputError(f"the features of image {row} are not finite")
    return features / np.maximum(lengths, np.finfo(np.float32).tiny)


def principal(features: np.ndarray) -> np.ndarray:
    """Returns the first 64 principal components of features.

    Args:
        features: float [N, D].

    Returns:
        float32 [N, min(64, N, D)], with mean 0.
    """
    import sklearn.decomposition

    width = min(_COMPONENTS, *features.shape)
    # Chosen by its own seed: the components do not depend on any other.
    pca = sklearn.decomposition.PCA(width, random_state=0)
    with threadpoolctl.threadpool_limits(1):
        return pca.fit_transform(np.asarray(features, np.float32))


def equal_rows(features: np.ndarray, has_label: np.ndarray) -> np.ndarray:
    """Finds images with the same features.

    Args:
        features: float32 [N, D].
        has_label: bool [N].

    Returns:
        Index of each one's original, int [N]: the first of those with a label,
        or else the first of all.
    """
    originals: dict[bytes, int] = {}
    copy_of = np.arange(len(features))
    # Those with a label come first, so that they are the originals.
    for index in np.argsort(~has_label, kind="stable").tolist():
        row = features[index].tobytes()
        copy_of[index] = originals.setdefault(row, index)
    return copy_of


def _check(
    images: int,
    method: str,
    classes: np.ndarray | None,
    uncertainty: np.ndarray | None,
) -> None:
    """Refuses arguments that do not suit each other."""
    if method not in METHODS:
        raise InputError(
            f"--method={method}: must be one of {', '.join(METHODS)}"
        )
    if (method == "stratified") != (classes is not None):
        raise InputError(
            f"--method={method}: classes are needed for stratified, and for "
            "no other"
        )
    if uncertainty is not None and method not in ("typical", "maxherding"):
        raise InputError(
            f"--method={method}: has no use for an uncertainty; typical and "
            "maxherding have"
        )
    for name, values in ("classes", classes), ("uncertainty", uncertainty):
        if values is not None and np.shape(values) != (images,):
            raise InputError(
                f"{name}: must be one for each of {images} images, not of "
                f"shape {np.shape(values)}"
            )
    if uncertainty is not None and not (
        np.isfinite(uncertainty).all() and np.min(uncertainty) >= 0
    ):
        raise InputError("uncertainty: must be finite and at least 0")


def _cluster(
    features: np.ndarray,
    distinct: np.ndarray,
    has_label: np.ndarray,
    count: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Clusters the images that are no copies, by k-means.

    Returns:
        Cluster of each image, int [N], and its distance to the center,
        float32 [N]; -1 and 0 for copies.
    """
    import sklearn.cluster

    members = np.flatnonzero(distinct)
    wanted = int((distinct & has_label).sum()) + count
    number = min(wanted, MAX_CLUSTERS, len(members))
    state = np.random.RandomState(seed % 2**32)
    if number <= _FULL_BATCH:
        means = sklearn.cluster.KMeans(number, n_init=1, random_state=state)
    else:
        means = sklearn.cluster.MiniBatchKMeans(
            number, n_init=3, batch_size=5000, random_state=state
        )
    clusters = np.full(len(features), -1)
    to_center = np.zeros(len(features), np.float32)
    clusters[members] = means.fit_predict(features[members])
    for rows in _blocks(members):
        gaps = features[rows] - means.cluster_centers_[clusters[rows]]
        to_center[rows] = np.linalg.norm(gaps, axis=1)
    return clusters, to_center


def _typicality(
    features: np.ndarray, clusters: np.ndarray, distinct: np.ndarray
) -> np.ndarray:
    """Returns the inverse mean distance to neighbors in the cluster.

    Args:
        features: Of unit length, float32 [N, D].
        clusters: int [N].
        distinct: Which images are no copies, bool [N].

    Returns:
        float64 [N], NaN for copies and images that are alone.

    References:
        Hacohen et al., equation 1, with the number of neighbors that their code
        takes: min(20, half of the cluster).
    """
    typicality = np.full(len(features), np.nan)
    for cluster in range(clusters.max() + 1):
        members = np.flatnonzero((clusters == cluster) & distinct)
        neighbors = min(NEIGHBORS, max(1, len(members) // 2))
        if len(members) < 2:
            continue
        inside = features[members]
        for rows in _blocks(np.arange(len(members))):
            squares = np.maximum(2 - 2 * inside[rows] @ inside.T, 0)
            # Not its own neighbor.
            squares[np.arange(len(rows)), rows] = np.inf
            squares.partition(neighbors - 1, axis=1)
            mean = np.sqrt(squares[:, :neighbors]).mean(axis=1, dtype=float)
            typicality[members[rows]] = 1 / np.maximum(mean, 1e-6)
    return typicality


def _by_cluster(
    free: np.ndarray,
    clusters: np.ndarray,
    score: np.ndarray,
    members: np.ndarray,
    has_label: np.ndarray,
    count: int,
) -> np.ndarray:
    """Picks the best image of the largest cluster with the fewest labels.

    Args:
        free: Indices of images that may be picked.
        clusters: int [N].
        score: float [N]; the image with the highest one is picked.
        members: Indices of images that count for a cluster's size.
        has_label: bool [N].
        count: Number of images to pick.

    Returns:
        Their indices, int [count].
    """
    number = clusters.max() + 1
    sizes = np.bincount(clusters[members], minlength=number)
    labels = np.bincount(
        clusters[members[has_label[members]]], minlength=number
    )
    # As published, tiny clusters come last: they are mostly outliers. Not so
    # where the clusters are hardly larger on average.
    tiny = sizes < min(SMALLEST_CLUSTER, len(members) / number / 2)
    best_first = free[np.argsort(-score[free], kind="stable")]
    waiting = [best_first[clusters[best_first] == c] for c in range(number)]
    taken = np.zeros(number, int)
    order = []
    while len(order) < count:
        left = [c for c in range(number) if taken[c] < len(waiting[c])]
        chosen = min(
            left, key=lambda c: (tiny[c], labels[c] + taken[c], -sizes[c], c)
        )
        order.append(waiting[chosen][taken[chosen]])
        taken[chosen] += 1
    return np.array(order)


def _best_first(
    features: np.ndarray,
    picks: np.ndarray,
    clusters: np.ndarray,
    members: np.ndarray,
    has_label: np.ndarray,
) -> np.ndarray:
    """Orders picks so that the first few cover the most.

    The next is the one that most increases the coverage of all picks, each
    counted with the size of its cluster. The clusters' sizes alone, the
    published order, take several from one class first where a class lies dense.

    Args:
        features: Of unit length, float32 [N, D].
        picks: Indices, int [count].
        clusters: int [N].
        members: Indices of images that count for a cluster's size.
        has_label: bool [N].

    Returns:
        The picks in another order.
    """
    first, rest = picks[:_ORDERED], picks[_ORDERED:]
    sizes = np.bincount(clusters[members])[clusters[first]]
    kernel = _kernel(features, first, first)
    reached = _reached(features, first, members[has_label[members]])
    places = _greedy(kernel, reached, sizes.astype(np.float32), len(first))
    return np.concatenate([first[places], rest])


def _herd(
    features: np.ndarray,
    free: np.ndarray,
    distinct: np.ndarray,
    has_label: np.ndarray,
    count: int,
    weights: np.ndarray,
    random: np.random.Generator,
) -> np.ndarray:
    """Picks, one after the other, the image that most increases coverage.

    Coverage is Σ_i w_i · max_j k(x_i, x_j) over images i to be covered and
    images j with a label, k(x, y) = exp(−‖x − y‖² / σ²).

    Args:
        features: Of unit length, float32 [N, D].
        free: Indices of images that may be picked.
        distinct: Which images are no copies, bool [N].
        has_label: bool [N].
        count: Number of images to pick.
        weights: Importance of covering each image, float [N].
        random: Draws the images to be covered and the candidates, where there
            are too many.

    Returns:
        Indices of images, int [count].

    References:
        Bae et al. 2024, algorithm 1; with weights, Bae et al. 2025.
    """
    covered = _at_most(np.flatnonzero(distinct), _COVERED, random)
    candidates = _at_most(free, max(_CANDIDATES, count), random)
    weights = np.asarray(weights[covered], np.float32)
    kernel = _kernel(features, covered, candidates)  # [R, C]
    labeled = np.flatnonzero(distinct & has_label)
    reached = _reached(features, covered, labeled)
    return candidates[_greedy(kernel, reached, weights, count)]


def _reached(
    features: np.ndarray, covered: np.ndarray, labeled: np.ndarray
) -> np.ndarray:
    """Returns the kernel's value at the nearest labeled image, float32 [R]."""
    reached = np.zeros(len(covered), np.float32)
    for rows in _blocks(labeled):
        block = _kernel(features, covered, rows)
        reached = np.maximum(reached, block.max(axis=1))
    return reached


def _greedy(
    kernel: np.ndarray, reached: np.ndarray, weights: np.ndarray, count: int
) -> list[int]:
    """Picks columns, one after the other, that most increase coverage.

    Args:
        kernel: float32 [R, C].
        reached: Coverage of each row so far, float32 [R].
        weights: Importance of each row, float32 [R].
        count: Number of columns to pick, at most C.

    Returns:
        Columns, in order.
    """
    order: list[int] = []
    for _ in range(count):
        gains = np.zeros(kernel.shape[1])
        for rows in _blocks(np.arange(len(kernel))):
            more = np.maximum(kernel[rows] - reached[rows, None], 0)
            gains += weights[rows] @ more
        gains[order] = -np.inf
        order.append(int(gains.argmax()))
        reached = np.maximum(reached, kernel[:, order[-1]])
    return order


def _kernel(
    features: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """Returns a Gaussian kernel, float32 [rows, columns]."""
    values = features[rows] @ features[columns].T
    return np.exp((2 * values - 2) / KERNEL_WIDTH, out=values)


def _at_most(
    indices: np.ndarray, most: int, random: np.random.Generator
) -> np.ndarray:
    """Draws some of the indices, in order, if there are too many."""
    if len(indices) <= most:
        return indices
    return np.sort(random.choice(indices, most, replace=False))


def _stratified(
    free: np.ndarray,
    classes: np.ndarray,
    has_label: np.ndarray,
    count: int,
    random: np.random.Generator,
) -> np.ndarray:
    """Picks by chance from the class with the fewest labels.

    Returns:
        Indices of images, int [count].
    """
    free = random.permutation(free)
    names = random.permutation(np.unique(classes))
    waiting = {name: free[classes[free] == name] for name in names.tolist()}
    labels = {name: int((classes[has_label] == name).sum()) for name in waiting}
    taken = dict.fromkeys(waiting, 0)
    order = []
    while len(order) < count:
        left = [name for name in waiting if taken[name] < len(waiting[name])]
        chosen = min(left, key=lambda name: labels[name] + taken[name])
        order.append(waiting[chosen][taken[chosen]])
        taken[chosen] += 1
    return np.array(order)


def _blocks(indices: np.ndarray) -> list[np.ndarray]:
    """Cuts indices into blocks of `_ROWS`."""
    return [indices[i : i + _ROWS] for i in range(0, len(indices), _ROWS)]
