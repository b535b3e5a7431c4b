"""Classifiers on frozen features: logistic regression and nearest neighbors.

Nothing here imports TensorFlow.

References:
    Kornblith et al., Do Better ImageNet Models Transfer Better?, CVPR 2019,
    https://arxiv.org/abs/1805.08974 (linear evaluation, as in SimCLR and BYOL)
    Wu et al., Unsupervised Feature Learning via Non-Parametric Instance
    Discrimination, CVPR 2018, https://arxiv.org/abs/1805.01978 (neighbors)
"""

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import threadpoolctl
from sklearn import exceptions, linear_model, metrics, preprocessing
from sklearn import neighbors as neighbors_lib

from simmatch_tf import preflight

# Regularization strengths λ of Σ cross-entropy + λ/2 ‖W‖²; 1/λ is
# scikit-learn's C.
# Differs: perhaps; the papers do not say whether their loss is a sum or a mean.
STRENGTHS = np.logspace(-6, 5, 45)
# Multiplications of an iteration below which threads of BLAS cost more than
# they save: they took twice to five times as long on two cores.
_FEW = 10**9
Rows = tuple[np.ndarray, np.ndarray]  # features [N, width], labels [N]


def score(metric: str, labels: np.ndarray, predicted: np.ndarray) -> float:
    """Returns the accuracy in [0, 1].

    Args:
        metric: "top1": the share of images that are right; "mean_per_class":
            the mean of that share over the classes that have images.
        labels: Class of each image [N].
        predicted: Predicted class of each image [N].
    """
    if metric == "top1":
        return float(metrics.accuracy_score(labels, predicted))
    return float(
        metrics.recall_score(
            labels, predicted, labels=np.unique(labels), average="macro"
        )
    )


def nearest_neighbors(
    train: Rows,
    features: np.ndarray,
    *,
    neighbors: int,
    temperature: float,
) -> np.ndarray:
    """Predicts classes by a weighted vote of the nearest training images.

    Each of the k training images whose features have the largest cosine votes
    for its class with weight exp(cosine / temperature).

    Args:
        train: Features [N, width] and labels [N].
        features: [M, width].
        neighbors: Number k of images that vote, at most N.
        temperature: Above 0.

    Returns:
        The class with the most votes, [M]; of equals, the first.
    """

    def weights(distances: np.ndarray) -> np.ndarray:
        # Of unit vectors, cosine = 1 - distance² / 2. The 1 is left out, so
        # that no weight is above 1 and none overflows.
        return np.exp(-(distances**2) / 2 / temperature)

    model = neighbors_lib.KNeighborsClassifier(
        neighbors, weights=weights, algorithm="brute"
    )
    model.fit(preprocessing.normalize(train[0]), train[1])
    return model.predict(preprocessing.normalize(features))


@dataclasses.dataclass(frozen=True)
class Fit:
    """The result of fitting one regularization strength.

    Attributes:
        strength: Regularization strength λ.
        score: Accuracy on the validation images, in [0, 1].
        iterations: Iterations of L-BFGS.
        converged: Whether it ended before `max_iter`.
        seconds: Time it took.
    """

    strength: float
    score: float
    iterations: int
    converged: bool
    seconds: float


def regression(
    strength: float, *, max_iter: int, tol: float
) -> linear_model.LogisticRegression:
    """Returns an unfitted logistic regression.

    Of more than two classes it is multinomial. Of two it is binary, which is
    the multinomial one of 2 λ: one row of weights is the other's negative.

    Args:
        strength: Regularization strength λ.
        max_iter: Largest number of iterations of L-BFGS.
        tol: Largest slope of the mean loss at the end.
    """
    return linear_model.LogisticRegression(
        C=1 / strength, solver="lbfgs", max_iter=max_iter, tol=tol
    )


def all_processors() -> contextlib.AbstractContextManager:
    """Makes BLAS divide its sums over all processors, as it does by default.

    OMP_NUM_THREADS is ignored, since the number of threads changes the last
    bits.
    """
    return threadpoolctl.threadpool_limits(
        preflight.processors(), user_api="blas"
    )


def fit(
    model: linear_model.LogisticRegression,
    features: np.ndarray,
    labels: np.ndarray,
) -> bool:
    """Fits a regression.

    Args:
        model: Starts from its own solution if its `warm_start` is set.
        features: [N, width].
        labels: [N], at least two classes.

    Returns:
        Whether it converged.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", exceptions.ConvergenceWarning)
        model.fit(features, labels)
    converged = True
    for each in caught:
        if issubclass(each.category, exceptions.ConvergenceWarning):
            converged = False
        else:
            warnings.warn_explicit(
                each.message, each.category, each.filename, each.lineno
            )
    return converged


def sweep(
    train: Rows,
    validation: Rows,
    *,
    metric: str,
    max_iter: int,
    tol: float,
    strengths: Sequence[float] = tuple(STRENGTHS),
    warm: bool = True,
) -> Iterator[Fit]:
    """Fits every regularization strength, the strongest first.

    Strengths are evenly spaced by their logarithm, so each fit starts from the
    straight line through the two solutions before it. (From the last solution
    alone, L-BFGS may stay for several strengths, then leap.)

    Args:
        train: Features and labels to fit.
        validation: Features and labels to score.
        metric: See `score`.
        max_iter: See `regression`.
        tol: See `regression`.
        strengths: Regularization strengths λ.
        warm: Whether fits start from the solutions before them.

    Yields:
        The fits in their order.
    """
    multiplications = train[0].size * len(np.unique(train[1]))
    threads = 1 if multiplications < _FEW else None
    model = before = None
    for strength in np.sort(np.asarray(strengths, float))[::-1]:
        start = time.perf_counter()
        if model is None or not warm:
            model = regression(strength, max_iter=max_iter, tol=tol)
        else:
            model.set_params(C=1 / strength, warm_start=True)
            last = np.column_stack([model.coef_, model.intercept_])
            # A guess that was left as it was tells no direction: from guess to
            # guess the weights would drift away, each step within `tol`.
            if not np.max(model.n_iter_):
                before = None
            if before is not None:
                guess = 2 * last - before
                model.coef_ = np.ascontiguousarray(guess[:, :-1])
                model.intercept_ = guess[:, -1].copy()
            before = last
        with threadpoolctl.threadpool_limits(threads):
            converged = fit(model, *train)
        yield Fit(
            strength=float(strength),
            score=score(metric, validation[1], model.predict(validation[0])),
            iterations=int(np.max(model.n_iter_)),
            converged=converged,
            seconds=time.perf_counter() - start,
        )


def choose(fits: Sequence[Fit]) -> Fit:
    """Returns the best fit on validation images; of equals, the strongest."""
    return max(fits, key=lambda each: (each.score, each.strength))
