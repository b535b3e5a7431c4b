"""Linear evaluation: logistic regression on frozen features.

As in SimCLR and BYOL (after Kornblith et al., 2019): the strength of the
penalty is chosen on validation images among 45, then the regression is fitted
to training and validation images together. Imports no TensorFlow.
"""

import contextlib
import dataclasses
import os
import pathlib
import time
import warnings
import zipfile
from collections.abc import Callable, Sequence

import numpy as np
import threadpoolctl
from sklearn import exceptions, linear_model

from simmatch_tf import preflight
from simmatch_tf.probes import scores

# λ of Σ cross-entropy + λ/2 ‖W‖², scikit-learn's 1/C.
# Differs: perhaps; the papers do not say whether their loss is a sum or a mean.
STRENGTHS = np.logspace(-6, 5, 45)
# Multiplications of an iteration below which threads of BLAS cost more than
# they bring: twice to five times the time, on two cores.
_FEW = 10**9
Rows = tuple[np.ndarray, np.ndarray]  # features [N, width], labels [N]


@dataclasses.dataclass(frozen=True)
class Fit:
    """One strength.

    Attributes:
        strength: λ.
        score: On the validation images, in [0, 1].
        iterations: Of L-BFGS.
        converged: Whether it ended before `max_iter`.
        seconds: What it took.
    """

    strength: float
    score: float
    iterations: int
    converged: bool
    seconds: float


# Arrays of a sweep's state.
_KEPT = {field.name for field in dataclasses.fields(Fit)} | {
    "before",
    "classes",
    "coef",
    "intercept",
    "n_iter",
}


def regression(
    strength: float, *, max_iter: int, tol: float
) -> linear_model.LogisticRegression:
    """The regression of a strength λ, not fitted yet.

    Of more than two classes it is multinomial. Of two it is binary, which is
    the multinomial one of 2 λ: one row of weights is the other's negative.
    """
    return linear_model.LogisticRegression(
        C=1 / strength, solver="lbfgs", max_iter=max_iter, tol=tol
    )


def all_processors() -> contextlib.AbstractContextManager:
    """Has BLAS divide its sums over all processors, as it does by itself.

    Whatever OMP_NUM_THREADS says: another number, other last bits.
    """
    return threadpoolctl.threadpool_limits(
        preflight.processors(), user_api="blas"
    )


def fit(
    model: linear_model.LogisticRegression,
    features: np.ndarray,
    labels: np.ndarray,
) -> bool:
    """Fits a regression; True if it converged.

    Args:
        model: From where it stands, if its `warm_start` is set.
        features: [N, width].
        labels: [N], at least two classes.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", exceptions.ConvergenceWarning)
        model.fit(features, labels)
    found = [
        w
        for w in caught
        if issubclass(w.category, exceptions.ConvergenceWarning)
    ]
    for other in caught:
        if other not in found:
            warnings.warn_explicit(
                other.message, other.category, other.filename, other.lineno
            )
    return not found


class _Path:
    """Fits of one strength after the other, each from a guess.

    Strengths are evenly spaced by their logarithm, so the guess is the
    straight line through the two solutions before. (From the last solution
    alone L-BFGS may not stir for several strengths, then leap.)

    Attributes:
        model: Of the last fit, or None.
        fits: What was fitted so far.
    """

    def __init__(self, **how: float) -> None:
        self.model: linear_model.LogisticRegression | None = None
        self.fits: list[Fit] = []
        self._how = how
        self._before: np.ndarray | None = None

    def _solution(self) -> np.ndarray:
        return np.column_stack([self.model.coef_, self.model.intercept_])

    def fit(self, rows: Rows, strength: float, *, warm: bool) -> bool:
        """Fits the next strength; True if it converged."""
        if self.model is None or not warm:
            self.model = regression(strength, **self._how)
            return fit(self.model, *rows)
        self.model.set_params(C=1 / strength, warm_start=True)
        last = self._solution()
        # A guess that was left as it was tells no direction: from guess to
        # guess the weights would drift away, each step within `tol`.
        if not np.max(self.model.n_iter_):
            self._before = None
        if self._before is not None:
            guess = 2 * last - self._before
            self.model.coef_ = np.ascontiguousarray(guess[:, :-1])
            self.model.intercept_ = guess[:, -1].copy()
        self._before = last
        return fit(self.model, *rows)

    def save(self, path: pathlib.Path) -> None:
        """Keeps everything that the next fit depends on."""
        aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        before = self._before
        arrays = {
            "coef": self.model.coef_,
            "intercept": self.model.intercept_,
            "classes": self.model.classes_,
            "n_iter": self.model.n_iter_,
            "before": np.zeros([0, 0]) if before is None else before,
        }
        for field in dataclasses.fields(Fit):
            arrays[field.name] = [getattr(f, field.name) for f in self.fits]
        try:
            with open(aside, "wb") as file:
                np.savez(file, **arrays)
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise

    def restore(self, path: pathlib.Path) -> None:
        """Goes on from what was saved, if it is there and whole."""
        try:
            with np.load(path, allow_pickle=False) as kept:
                kept = dict(kept)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return
        if not kept.keys() >= _KEPT:
            return
        columns = [kept[f.name].tolist() for f in dataclasses.fields(Fit)]
        self.fits = [Fit(*row) for row in zip(*columns, strict=True)]
        self._before = kept["before"] if kept["before"].size else None
        self.model = regression(self.fits[-1].strength, **self._how)
        self.model.coef_ = kept["coef"]
        self.model.intercept_ = kept["intercept"]
        self.model.classes_ = kept["classes"]
        self.model.n_iter_ = kept["n_iter"]


def sweep(
    train: Rows,
    validation: Rows,
    *,
    metric: str,
    max_iter: int,
    tol: float,
    strengths: Sequence[float] = tuple(STRENGTHS),
    warm: bool = True,
    state: pathlib.Path | None = None,
    done: Callable[[Fit], None] = lambda found: None,
) -> list[Fit]:
    """Fits every strength, the strongest first.

    Args:
        train: Features and labels.
        validation: Likewise.
        metric: See `scores.score`.
        max_iter: Of each strength.
        tol: Likewise: largest slope of the mean loss at the end.
        strengths: λ.
        warm: Each starts from a guess by the two before.
        state: A file that keeps what is fitted: a killed sweep goes on.
        done: Called with each.

    Returns:
        In their order.

    Raises:
        OSError: The state cannot be written.
    """
    path = _Path(max_iter=max_iter, tol=tol)
    if state is not None:
        path.restore(state)
    for each in path.fits:
        done(each)
    multiplications = train[0].size * len(np.unique(train[1]))
    threads = 1 if multiplications < _FEW else None
    order = np.sort(np.asarray(strengths, float))[::-1]
    for strength in order[len(path.fits) :]:
        start = time.perf_counter()
        with threadpoolctl.threadpool_limits(threads):
            converged = path.fit(train, strength, warm=warm)
        predicted = path.model.predict(validation[0])
        path.fits.append(
            Fit(
                strength=float(strength),
                score=scores.score(metric, validation[1], predicted),
                iterations=int(np.max(path.model.n_iter_)),
                converged=converged,
                seconds=time.perf_counter() - start,
            )
        )
        if state is not None:
            path.save(state)
        done(path.fits[-1])
    return path.fits


def choose(found: Sequence[Fit]) -> Fit:
    """The best on the validation images; of equals the strongest."""
    return max(found, key=lambda each: (each.score, each.strength))
