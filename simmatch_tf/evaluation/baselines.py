"""Baselines of a run: classifiers of scikit-learn on the labels of the run.

Logistic regression and a support vector machine learn from the run's labeled
images alone, seen in two ways:

    handmade        HOG, colour histogram and thumbnail, side by side
    first weights   what the network of --init_from makes of an image before
                    the first step, if there is such a network

The logistic regression on the features of the first weights is also returned
as arrays: a run keeps it, behind these weights, as a model that can be used.

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
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from simmatch_tf import io, signals
from simmatch_tf.evaluation import metrics
from simmatch_tf.flags.errors import InputError

if TYPE_CHECKING:
    from sklearn import linear_model

# Name of a run's result on its labels alone, among the baselines.
LABELS_ALONE = "training on the labels alone"
# Part of each key: another number, other baselines.
VERSION = 2
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
MOST_DEVIATIONS = 5.0
# A feature with less of a deviation, in itself or as a part of its mean, does
# not vary: what is left is the rounding of float32.
_LEAST_DEVIATION, _LEAST_SHARE = 1e-9, 1e-5
# The logit of a class that no labeled image has: its probability is 0.
_IMPOSSIBLE = -1e9
# What a temperature is fitted on: labeled images, each by a classifier of
# labeled images of other folds.
HELD_OUT = "held-out labeled"
# The view and the classifier whose baseline is kept as a model.
FIRST_WEIGHTS = "features of the first weights"
KEPT = "logistic regression"
# Settings; of equally good ones the first is taken. The strength of the loss is
# scikit-learn's C, for the regression divided by the number D of features; the
# kernel is exp(-width d² / D).
_REGRESSIONS = (6.0, 0.6, 60.0)
_WIDTHS, _STRENGTHS = (0.5, 1.0, 0.25), (3.0, 10.0, 1.0)
_ITERATIONS, _TOLERANCE = 1_000, 1e-3
_ROWS = 1_000  # of a kernel that are computed at once
_NICE = 5


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A logistic regression on D features, as arrays of float32.

    The logits of L classes are clip((x - mean) / deviation) · kernel + bias;
    it cuts off at ±`MOST_DEVIATIONS`.

    Attributes:
        mean: Means of the features, [D].
        deviation: Their deviations, [D], above 0.
        kernel: [D, L], the classes in the run's order.
        bias: [L]; that of a class without labels makes its probability 0.
    """

    mean: np.ndarray
    deviation: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray

    @property
    def known(self) -> np.ndarray:
        """Which of the classes have labels, bool [L]."""
        return self.bias > _IMPOSSIBLE / 2

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Returns logits, float64 [n, L], of features [n, D]."""
        x = _scaled(features, self.mean, self.deviation)
        return x @ self.kernel.astype(np.float64) + self.bias


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A classifier on the labels of a run, and how it does.

    Attributes:
        name: What it is, in words.
        right: Whether it is right, bool [n], for each scored image or, in
            cross-validation, for each labeled image that was held out.
        kept: Of the baseline that is kept as a model: `scored_on`, "test",
            "validation" or `HELD_OUT`; `top5` and `macro_accuracy`, unless it
            is the latter; `calibration_error`; `temperature`, None without
            one, `fitted_on` and `fitted_images`. None of all others.
        classifier: Its arrays, as far as they are known.
    """

    name: str
    right: np.ndarray
    kept: Mapping[str, Any] | None = None
    classifier: Classifier | None = None

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
    scale = _scale(train)
    return _scaled(train, *scale), _scaled(scored, *scale)


def _scale(train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and deviation of each feature; 1 if it does not vary."""
    train = train.astype(np.float64)
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    least = np.maximum(_LEAST_DEVIATION, _LEAST_SHARE * np.abs(mean))
    deviation[deviation < least] = 1.0
    return mean, deviation


def _scaled(
    features: np.ndarray, mean: np.ndarray, deviation: np.ndarray
) -> np.ndarray:
    """Returns features in deviations from their means, cut off."""
    x = (features.astype(np.float64) - mean) / deviation
    return np.clip(x, -MOST_DEVIATIONS, MOST_DEVIATIONS)


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
    model, _, _ = _regression(train, labels, int(labels.max()) + 1)
    return model.predict(scored)


def _regression(
    train: np.ndarray, labels: np.ndarray, classes: int
) -> tuple[linear_model.LogisticRegression, np.ndarray, np.ndarray]:
    """Fits a multinomial logistic regression.

    Args:
        train: Standardized features of the labeled images, [K, D].
        labels: Their classes, [K], of at least two classes.
        classes: Number of classes, L.

    Returns:
        The model. And logits [k, L] and classes [k] of held-out labeled
        images, each by a model of the same setting on the images of other
        folds; k may be 0.
    """
    from sklearn import linear_model

    def fit(strength: float, x: np.ndarray, y: np.ndarray) -> Any:
        model = linear_model.LogisticRegression(
            C=strength / x.shape[1], max_iter=_ITERATIONS, tol=_TOLERANCE
        )
        return model.fit(x, y)

    x, y, splits = _validation(train, labels)
    hits, held_out = {}, {}
    for strength in _REGRESSIONS:
        logits, hits[strength] = [np.zeros([0, classes])], 0
        for rows, others in splits:
            model = fit(strength, x[rows], y[rows])
            hits[strength] += np.sum(model.predict(x[others]) == y[others])
            kernel, bias = _columns(model, classes)
            logits.append(x[others] @ kernel + bias)
        held_out[strength] = np.concatenate(logits)
    best = max(hits, key=hits.get)
    places = [np.zeros(0, int), *(others for _, others in splits)]
    truth = y[np.concatenate(places)]
    return fit(best, train, labels), held_out[best], truth


def fit_classifier(
    features: np.ndarray, labels: np.ndarray, classes: int
) -> Classifier | None:
    """Fits the logistic regression that a run may begin with.

    Args:
        features: Of all labeled images, [K, D]; of very many some are used.
        labels: Their classes, [K].
        classes: Number of classes, L.

    Returns:
        The classifier; None where all labels are of one class.
    """
    import threadpoolctl

    chosen = choose(labels, 0).labeled
    features, labels = features[chosen], labels[chosen]
    if len(np.unique(labels)) < 2:
        return None
    scale = _scale(features)
    # One thread: the last bits depend on their number.
    with threadpoolctl.threadpool_limits(1):
        model, _, _ = _regression(_scaled(features, *scale), labels, classes)
    arrays = (*scale, *_columns(model, classes))
    return Classifier(*(array.astype(np.float32) for array in arrays))


def _columns(
    model: linear_model.LogisticRegression, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the kernel [D, L] and the bias [L] of a regression's logits."""
    weights, intercepts = model.coef_, model.intercept_
    if len(weights) == 1:  # of two classes, the logit of the second one
        weights = np.concatenate([0 * weights, weights])
        intercepts = np.concatenate([0 * intercepts, intercepts])
    kernel = np.zeros([weights.shape[1], classes])
    bias = np.full(classes, _IMPOSSIBLE)
    kernel[:, model.classes_], bias[model.classes_] = weights.T, intercepts
    return kernel, bias


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


_CLASSIFIERS = {"SVM": support_vector_machine, KEPT: logistic_regression}


def measure(arrays: Mapping[str, np.ndarray]) -> list[Baseline]:
    """Measures all baselines.

    Args:
        arrays: `images` uint8 [K, H, W, C] and `labels` [K] to learn from;
            `scored_images` and `scored_labels`, likewise [n], to score,
            without which there is cross-validation, and `scored_on`, "test"
            or "validation"; where there are first weights, `features` [K, D],
            `scored_features` [n, D] and `classes`, the number L of classes;
            `remark`, what the names are to say of the images.

    Returns:
        The baselines; the one that is kept has its classifier.
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
        views[FIRST_WEIGHTS] = [arrays[f"{name}features"] for name in sets]
    remark = str(arrays["remark"])
    baselines = []
    # One thread: the last bits depend on their number, and the other cores
    # are for training.
    with threadpoolctl.threadpool_limits(1):
        for view, features in views.items():
            for kind, predict in _CLASSIFIERS.items():
                name = f"{kind} on {view}" + (f" ({remark})" if remark else "")
                if (kind, view) == (KEPT, FIRST_WEIGHTS):
                    baselines.append(_kept(name, features, arrays))
                    continue
                if truth is None:
                    right = _cross_validation(predict, *features, labels)
                else:
                    train, scored = _standardized(*features)
                    right = predict(train, labels, scored) == truth
                baselines.append(Baseline(name, right))
    return baselines


def _kept(
    name: str,
    features: Sequence[np.ndarray],
    arrays: Mapping[str, np.ndarray],
) -> Baseline:
    """Measures the baseline that is kept as a model, and calibrates it.

    Args:
        name: Its name.
        features: Of the labeled images and, if there are any, of those that
            are scored.
        arrays: See `measure`.
    """
    labels, truth = arrays["labels"], arrays.get("scored_labels")
    mean, deviation = _scale(features[0])
    model, held_out, classes = _regression(
        _scaled(features[0], mean, deviation), labels, int(arrays["classes"])
    )
    parts = (mean, deviation, *_columns(model, int(arrays["classes"])))
    classifier = Classifier(*(part.astype(np.float32) for part in parts))
    calibrated = len(classes) >= metrics.LEAST_TO_CALIBRATE
    temperature = None
    if calibrated:
        temperature = metrics.fit_temperature(held_out, classes)
    kept = {"scored_on": HELD_OUT}
    if truth is None:
        right = _cross_validation(logistic_regression, *features, labels)
        logits, truth = held_out, classes
    else:
        logits = classifier.logits(features[1])
        right = logits.argmax(axis=1) == truth
        kept = {
            "scored_on": str(arrays["scored_on"]),
            "top5": metrics.top_k(logits, truth, 5),
            "macro_accuracy": metrics.macro_accuracy(logits, truth),
        }
    error = metrics.calibration(
        logits,
        truth,
        temperature=temperature,
        fitted_on_these=logits is held_out,
    )
    kept |= {
        "calibration_error": error["calibration_error"],
        "temperature": temperature,
        "fitted_on": HELD_OUT if calibrated else None,
        "fitted_images": len(classes) if calibrated else 0,
    }
    return Baseline(name, right, kept, classifier)


def _cross_validation(
    predict: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    features: np.ndarray,
    labels: np.ndarray,
) -> np.ndarray:
    """Returns whether `cross_validated` is right, for those held out."""
    predicted = cross_validated(predict, features, labels)
    return (predicted == labels)[predicted >= 0]


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

    The arrays of a classifier stand in a file beside it, which is complete
    before baselines.json is.

    Args:
        path: The file.
        key: See `key`.
        baselines: What was measured.

    Raises:
        InputError: It cannot be written.
    """
    entries = []
    for each in baselines:
        entry = each.summary()
        entry["right"] = "".join("01"[right] for right in each.right.tolist())
        if each.kept is not None:
            entry["kept"] = dict(each.kept)
        if each.classifier is not None:
            _write_arrays(arrays_path(path), key, each.classifier)
        entries.append(entry)
    io.write_json(path, {"key": key, "baselines": entries})


def arrays_path(path: pathlib.Path) -> pathlib.Path:
    """Returns the file with the arrays of what baselines.json keeps."""
    return path.with_suffix(".npz")


def _write_arrays(path: pathlib.Path, key: str, classifier: Classifier) -> None:
    try:
        with io.replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, key=key, **vars(classifier))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error})"
        ) from None


def _read_arrays(path: pathlib.Path, key: str) -> Classifier | None:
    """Returns None if there is no such file, or it is damaged or another's."""
    try:
        with open(path, "rb") as file:
            arrays = dict(np.load(file, allow_pickle=False))
        if arrays.pop("key").item() != key:
            return None
        return Classifier(**arrays)
    except Exception:  # a damaged file may raise anything
        return None


def read(path: pathlib.Path, key: str) -> list[Baseline] | None:
    """Reads baselines.json.

    Args:
        path: The file.
        key: What the baselines must have been computed from.

    Returns:
        The baselines, with the arrays beside it if there are any; None if
        there is no file, it is damaged, or is of other images or labels.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["key"] != key:
            return None
        baselines = [
            Baseline(
                str(entry["name"]),
                np.array(["01".index(digit) for digit in entry["right"]], bool),
                kept=entry.get("kept"),
                classifier=_read_arrays(arrays_path(path), key)
                if "kept" in entry
                else None,
            )
            for entry in content["baselines"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if len({len(each.right) for each in baselines}) != 1:
        return None
    return baselines if len(baselines[0].right) else None


def kept(baselines: Sequence[Baseline] | None) -> Baseline | None:
    """Returns the baseline that is kept as a model, if there is one."""
    return next((b for b in baselines or () if b.kept is not None), None)


def has_classifier(baselines: Sequence[Baseline] | None) -> bool:
    """Whether the arrays of the baseline that is kept are known."""
    return getattr(kept(baselines), "classifier", None) is not None


def read_kept(path: pathlib.Path) -> dict[str, Any] | None:
    """Returns what baselines.json says of the baseline that is kept.

    Args:
        path: The file.

    Returns:
        See `Baseline.kept`; and `top1` and `images`, the number of images that
        it was scored on. None if the file does not say.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        for entry in content["baselines"]:
            if "kept" in entry:
                images = len(entry["right"])
                return {
                    **entry["kept"],
                    "top1": entry["top1"],
                    "images": images,
                }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


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
    parser.add_argument("--keeps", action="store_true")
    parser.add_argument("--parent", type=int, required=True)
    words = parser.parse_args(argv)
    _end_with(words.parent)
    os.nice(_NICE)
    with _alone(words.cache):
        baselines = None
        if words.cache is not None:
            # Another run on these images may have been faster.
            baselines = read(words.cache, words.key)
            if words.keeps and not has_classifier(baselines):
                baselines = None
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
