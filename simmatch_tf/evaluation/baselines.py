"""Baselines of a run: classifiers of scikit-learn on the labels of the run.

Logistic regression and a support vector machine learn from the run's labeled
images alone, seen in two ways:

    handmade        HOG, colour histogram and thumbnail, side by side
    first weights   what the network of --init_from makes of an image before
                    the first step, if there is such a network

Their settings are chosen by cross-validation on the labels. They are scored on
the images that the run's own result is measured on, image by image, so that the
two can be compared in pairs. A run without such images has no result; its
baselines are scored by cross-validation, each labeled image by classifiers that
were fitted on other ones. All numbers are functions of images and labels: no
clock and no number of processors has a part in them.

`python -m simmatch_tf.evaluation.baselines` is the process that a run starts;
see `training.baseline_process`. Nothing here imports TensorFlow.

References:
    Dalal and Triggs, Histograms of Oriented Gradients for Human Detection,
    CVPR 2005 (HOG)
    Arandjelović and Zisserman, Three things everyone should know to improve
    object retrieval, CVPR 2012 (the square root of a histogram)
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import BinaryIO

import numpy as np

from simmatch_tf import io, signals
from simmatch_tf.evaluation import metrics
from simmatch_tf.flags.errors import InputError

# Part of each key: another number, other baselines.
VERSION = 1
# Side of the images from which handmade features are computed.
SIDE = 32
# Above these numbers a fixed choice of the images is used; with more classes
# than these there are no baselines (one machine for each pair of classes).
MOST_LABELS, MOST_SCORED, MOST_CLASSES = 5_000, 10_000, 200
# Labels by which settings are chosen, at most.
_MOST_VALIDATED = 2_000
_MOST_FOLDS = 5
_SEED = 0  # of the choice of images and of the folds
# Deviations from the mean beyond which a feature is cut off: one that hardly
# varies among few labels may be a thousand times larger elsewhere.
_MOST_DEVIATIONS = 5.0
# Settings; of equally good ones the first is taken. The strength of the loss is
# scikit-learn's C, for the regression divided by the number D of features; the
# kernel is exp(-width d² / D).
_REGRESSIONS = (6.0, 0.6, 60.0)
_WIDTHS, _STRENGTHS = (0.5, 1.0, 0.25), (3.0, 10.0, 1.0)
_ITERATIONS, _TOLERANCE = 1_000, 1e-3
_ROWS = 1_000  # of a kernel that are computed at once
_NICE = 5


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A classifier on the labels of a run, and how it does.

    Attributes:
        name: What it is, in words.
        right: Whether it is right, bool [n], for each scored image or, in
            cross-validation, for each labeled image that was held out.
    """

    name: str
    right: np.ndarray

    @property
    def top1(self) -> float:
        """Share of these images that it is right on."""
        return float(self.right.mean())

    def summary(self) -> dict[str, object]:
        """Returns its entry in results.json."""
        interval = metrics.wilson(self.top1, len(self.right))
        return {
            "name": self.name,
            "top1": self.top1,
            "interval": list(interval),
        }


@dataclasses.dataclass(frozen=True)
class Choice:
    """The images that baselines learn from and are scored on.

    Attributes:
        labeled: Places among the run's labeled images.
        scored: Places among the images that the result is measured on.
        remark: What the names of the baselines say of it, "" of all images.
    """

    labeled: np.ndarray
    scored: np.ndarray
    remark: str


def choose(labels: np.ndarray, scored: int) -> Choice:
    """Chooses the images: all of them, up to a fixed number.

    Args:
        labels: Classes of the labeled images, [K].
        scored: Number of images that the result is measured on; 0 for
            cross-validation.

    Returns:
        Sorted places. Of too many labels each class keeps its share, at least
        one image.
    """
    random, remarks = np.random.default_rng(_SEED), []
    places = np.arange(len(labels))
    if len(labels) > MOST_LABELS:
        # The same share of each class, because every n-th of the images sorted
        # by class is taken.
        order = random.permutation(len(labels))
        order = order[np.argsort(labels[order], kind="stable")]
        share = np.linspace(0, len(labels) - 1, MOST_LABELS).round()
        _, first = np.unique(labels[order], return_index=True)
        kept = np.union1d(share.astype(int), first)
        places = np.sort(order[kept])
        remarks.append(f"{len(places):,} of {len(labels):,} labels")
    if not scored:
        remarks.append("cross-validation")
    tested = np.arange(scored)
    if scored > MOST_SCORED:
        tested = np.sort(random.permutation(scored)[:MOST_SCORED])
        remarks.append(f"{MOST_SCORED:,} of {scored:,} images")
    return Choice(places, tested, "; ".join(remarks))


def left_out(labels: np.ndarray, classes: int, scored: int) -> str | None:
    """Says why there are no baselines, or returns None.

    Args:
        labels: Classes of the labeled images, [K].
        classes: Number of classes, L.
        scored: See `choose`.
    """
    if classes > MOST_CLASSES:
        return (
            f"{classes:,} classes are more than the {MOST_CLASSES} that they "
            "are made for"
        )
    if len(np.unique(labels)) < 2:
        return "all labeled images are of one class"
    if not scored and _largest(labels) < 2:
        return (
            "there are no images to score them on, and no class has two "
            "labeled images, of which one could be held out"
        )
    return None


def key(*parts: object) -> str:
    """Returns a digest of what baselines are computed from."""
    text = repr((VERSION, parts)).encode()
    return hashlib.sha256(text).hexdigest()[:32]


# ----------------------------------------------------------------- features --


def handmade(images: np.ndarray) -> np.ndarray:
    """Returns HOG, colour histogram and thumbnail of images.

    Args:
        images: uint8 [N, H, W, C], C 1 or 3; other sizes than 32×32 are
            resized.

    Returns:
        float32 [N, 324 + 64 + 64 C]: gradients in cells of 8×8 pixels, in
        blocks of 2×2 cells; the square roots of the shares of 64 colours, or
        grey levels; and the means of 8×8 squares.
    """
    # Not needed by a process that only reads results.
    from skimage import feature

    rows = []
    for image in map(_resized, images):
        pixels = image / np.float32(255)
        gradients = feature.hog(
            pixels,
            orientations=9,
            pixels_per_cell=(8, 8),
            cells_per_block=(2, 2),
            channel_axis=-1,
        )
        if image.shape[-1] == 1:
            bins = image[..., 0] // 4
        else:
            bins = image // 64 @ np.array([16, 4, 1])
        colors = np.bincount(bins.ravel(), minlength=64) / bins.size
        squares = pixels.reshape(8, SIDE // 8, 8, SIDE // 8, -1)
        thumbnail = squares.mean(axis=(1, 3)).ravel()
        rows.append(np.concatenate([gradients, np.sqrt(colors), thumbnail]))
    return np.asarray(rows, np.float32)


def _resized(image: np.ndarray) -> np.ndarray:
    """Returns an image uint8 [H, W, C] of 32×32 pixels."""
    if image.shape[:2] == (SIDE, SIDE):
        return image
    from PIL import Image

    grey = image.shape[-1] == 1
    picture = Image.fromarray(image[..., 0] if grey else image)
    picture = picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(SIDE, SIDE, -1)


def _standardized(
    train: np.ndarray, scored: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Gives features the mean 0 and the deviation 1 of the labeled images."""
    train, scored = train.astype(np.float64), scored.astype(np.float64)
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    deviation[deviation < 1e-9] = 1.0
    return tuple(
        np.clip((rows - mean) / deviation, -_MOST_DEVIATIONS, _MOST_DEVIATIONS)
        for rows in (train, scored)
    )


# -------------------------------------------------------------- classifiers --


def folds(labels: np.ndarray) -> np.ndarray:
    """Divides labeled images for cross-validation.

    The images of a class are dealt out to the folds in turn, so that each fold
    has its share of each class, and a class of n < 5 images is in n folds.

    Args:
        labels: Classes, [K].

    Returns:
        Fold of each image, [K], from 0 to less than 5. -1 for the image of a
        class that has no other: it is always learned from.
    """
    random = np.random.default_rng(_SEED)
    fold, dealt = np.full(len(labels), -1), 0
    for label in np.unique(labels):
        places = random.permutation(np.flatnonzero(labels == label))
        if len(places) > 1:
            # From class to class on, or the first folds would get more.
            turns = dealt + np.arange(len(places))
            fold[places] = turns % min(_MOST_FOLDS, _largest(labels))
            dealt += len(places)
    return fold


def _largest(labels: np.ndarray) -> int:
    """Returns the number of images of the largest class."""
    return int(np.bincount(labels).max())


def logistic_regression(
    train: np.ndarray, labels: np.ndarray, scored: np.ndarray
) -> np.ndarray:
    """Predicts classes by multinomial logistic regression.

    Args:
        train: Standardized features of the labeled images, [K, D].
        labels: Their classes, [K], of at least two classes.
        scored: Features of the images to predict, [n, D].

    Returns:
        Classes, [n].
    """
    from sklearn import linear_model

    def fit(strength: float, x: np.ndarray, y: np.ndarray) -> Callable:
        model = linear_model.LogisticRegression(
            C=strength / x.shape[1], max_iter=_ITERATIONS, tol=_TOLERANCE
        )
        return model.fit(x, y).predict

    x, y, splits = _validation(train, labels)
    hits = {
        strength: sum(
            np.sum(fit(strength, x[rows], y[rows])(x[others]) == y[others])
            for rows, others in splits
        )
        for strength in _REGRESSIONS
    }
    return fit(max(hits, key=hits.get), train, labels)(scored)


def support_vector_machine(
    train: np.ndarray, labels: np.ndarray, scored: np.ndarray
) -> np.ndarray:
    """Predicts classes by a machine with a Gaussian kernel a pair of classes.

    Args:
        train: Standardized features of the labeled images, [K, D].
        labels: Their classes, [K], of at least two classes.
        scored: Features of the images to predict, [n, D].

    Returns:
        Classes, [n].
    """
    from sklearn import svm
    from sklearn.metrics import pairwise

    def kernel(width: float, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return pairwise.rbf_kernel(a, b, gamma=width / a.shape[1])

    def fit(strength: float, values: np.ndarray, y: np.ndarray) -> Callable:
        model = svm.SVC(C=strength, kernel="precomputed")
        return model.fit(values, y).predict

    x, y, splits = _validation(train, labels)
    hits = dict.fromkeys(itertools.product(_WIDTHS, _STRENGTHS), 0)
    for width in _WIDTHS:
        values = kernel(width, x, x)  # serves all strengths and folds
        for strength, (rows, others) in itertools.product(_STRENGTHS, splits):
            predict = fit(strength, values[np.ix_(rows, rows)], y[rows])
            predicted = predict(values[np.ix_(others, rows)])
            hits[width, strength] += np.sum(predicted == y[others])
    width, strength = max(hits, key=hits.get)
    predict = fit(strength, kernel(width, train, train), labels)
    return np.concatenate(
        [
            predict(kernel(width, scored[start : start + _ROWS], train))
            for start in range(0, len(scored), _ROWS)
        ]
    )


def _validation(
    train: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Returns images to choose settings by, and how they are divided.

    Returns:
        Features [k, D] and labels [k]; and, for each fold, the rows to learn
        from and the others. No fold where no class has two images: then the
        first settings are taken.
    """
    if len(labels) > _MOST_VALIDATED:
        random = np.random.default_rng(_SEED)
        rows = np.sort(random.permutation(len(labels))[:_MOST_VALIDATED])
        train, labels = train[rows], labels[rows]
    fold = folds(labels)
    splits = [
        (np.flatnonzero(fold != number), np.flatnonzero(fold == number))
        for number in range(fold.max() + 1)
    ]
    # Of classes in many folds two are left in each, but of very few images.
    splits = [each for each in splits if len(np.unique(labels[each[0]])) > 1]
    return train, labels, splits


_CLASSIFIERS = {
    "SVM": support_vector_machine,
    "logistic regression": logistic_regression,
}


def measure(arrays: Mapping[str, np.ndarray]) -> list[Baseline]:
    """Measures all baselines.

    Args:
        arrays: `images` uint8 [K, H, W, C] and `labels` [K] to learn from;
            `scored_images` and `scored_labels`, likewise [n], to score,
            without which there is cross-validation; where there are first
            weights, `features` [K, D] and `scored_features` [n, D]; `remark`,
            what the names are to say of the images.
    """
    import threadpoolctl

    labels, truth = arrays["labels"], arrays.get("scored_labels")
    sets = ("", "scored_") if truth is not None else ("",)
    grey = arrays["images"].shape[-1] == 1
    views = {
        f"HOG, {'grey levels' if grey else 'colours'} and thumbnail": [
            handmade(arrays[f"{name}images"]) for name in sets
        ]
    }
    if "features" in arrays:
        views["features of the first weights"] = [
            arrays[f"{name}features"] for name in sets
        ]
    remark = str(arrays["remark"])
    baselines = []
    # One thread: the last bits depend on their number, and the other cores
    # are for training.
    with threadpoolctl.threadpool_limits(1):
        for view, features in views.items():
            for kind, predict in _CLASSIFIERS.items():
                name = f"{kind} on {view}" + (f" ({remark})" if remark else "")
                if truth is not None:
                    train, scored = _standardized(*features)
                    right = predict(train, labels, scored) == truth
                else:
                    predicted = cross_validated(predict, *features, labels)
                    right = (predicted == labels)[predicted >= 0]
                baselines.append(Baseline(name, right))
    return baselines


def cross_validated(
    predict: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    features: np.ndarray,
    labels: np.ndarray,
) -> np.ndarray:
    """Predicts each labeled image by a classifier of the other folds.

    Nothing is learned from the fold that is predicted: neither a setting nor
    the mean of a feature.

    Args:
        predict: A classifier, such as `support_vector_machine`.
        features: Of the labeled images, [K, D].
        labels: Their classes, [K], of at least two classes, one of which has
            two images.

    Returns:
        Classes, [K]; -1 of an image that is never held out, see `folds`.
    """
    fold, predicted = folds(labels), np.full(len(labels), -1)
    for number in range(fold.max() + 1):
        rows, others = fold != number, fold == number
        train, scored = _standardized(features[rows], features[others])
        predicted[others] = predict(train, labels[rows], scored)
    return predicted


# --------------------------------------------------------------------- file --


def write(path: pathlib.Path, key: str, baselines: Sequence[Baseline]) -> None:
    """Writes baselines.json, whole or not at all.

    Args:
        path: The file.
        key: See `key`.
        baselines: What was measured.

    Raises:
        InputError: It cannot be written.
    """
    entries = [
        {
            **each.summary(),
            "right": "".join("01"[right] for right in each.right.tolist()),
        }
        for each in baselines
    ]
    io.write_json(path, {"key": key, "baselines": entries})


def read(path: pathlib.Path, key: str) -> list[Baseline] | None:
    """Reads baselines.json.

    Args:
        path: The file.
        key: What the baselines must have been computed from.

    Returns:
        The baselines; None if there is no file, it is damaged, or is of other
        images or labels.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["key"] != key:
            return None
        baselines = [
            Baseline(
                str(entry["name"]),
                np.array(["01".index(digit) for digit in entry["right"]], bool),
            )
            for entry in content["baselines"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if len({len(each.right) for each in baselines}) != 1:
        return None
    return baselines if len(baselines[0].right) else None


# ------------------------------------------------------------------ process --


def main(argv: Sequence[str], file: BinaryIO) -> None:
    """Measures baselines and writes them, at low priority.

    Args:
        argv: The arguments; see the parser.
        file: The arrays of `measure`, as `np.savez` writes them.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--cache", type=pathlib.Path)
    parser.add_argument("--key", required=True)
    parser.add_argument("--parent", type=int, required=True)
    words = parser.parse_args(argv)
    _end_with(words.parent)
    os.nice(_NICE)
    with _alone(words.cache):
        baselines = None
        if words.cache is not None:
            # Another run on these images may have been faster.
            baselines = read(words.cache, words.key)
        if baselines is None:
            with np.load(file, allow_pickle=False) as arrays:
                baselines = measure(dict(arrays))
            if words.cache is not None:
                with contextlib.suppress(InputError):
                    write(words.cache, words.key, baselines)
    write(words.output, words.key, baselines)


def _end_with(parent: int) -> None:
    """Makes this process end when the run does, where the system allows it."""
    signals.follower(signal.SIGKILL)()
    if os.getppid() != parent:  # it has ended already
        sys.exit("the run has ended")


@contextlib.contextmanager
def _alone(cache: pathlib.Path | None) -> Iterator[None]:
    """Waits for another process that measures the same, in the body's stead."""
    with contextlib.ExitStack() as stack:
        if cache is not None:
            with contextlib.suppress(OSError):
                cache.parent.mkdir(parents=True, exist_ok=True)
                lock = open(cache.with_suffix(".lock"), "ab")  # noqa: SIM115
                io.lock(stack.enter_context(lock), wait=True)
        yield


if __name__ == "__main__":
    try:
        main(sys.argv[1:], sys.stdin.buffer)
    except InputError as error:
        sys.exit(f"error: {error}")
