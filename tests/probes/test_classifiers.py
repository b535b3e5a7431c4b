"""Logistic regression and neighbors against scikit-learn and by hand."""

import warnings

import numpy as np
import pytest
import threadpoolctl
from sklearn import datasets, exceptions, linear_model

from simmatch_tf import preflight
from simmatch_tf.probes import classifiers


@pytest.fixture(scope="module")
def digits():
    """Pixels as features: 800 to learn from, 200 to choose by, 797 to test."""
    x, y = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x[order] / 16).astype(np.float32), y[order]
    parts = np.split(np.arange(len(x)), [800, 1000])
    return [(x[part].astype(np.float64), y[part]) for part in parts]


def by_hand(train, validation, strengths, max_iter=1000):
    scores = {}
    for strength in strengths:
        model = linear_model.LogisticRegression(
            C=1 / strength, max_iter=max_iter
        )
        scores[strength] = model.fit(*train).score(*validation)
    return scores


def test_the_strengths_are_the_papers():
    assert len(classifiers.STRENGTHS) == 45
    assert classifiers.STRENGTHS[0] == pytest.approx(1e-6)
    assert classifiers.STRENGTHS[-1] == pytest.approx(1e5)
    ratios = classifiers.STRENGTHS[1:] / classifiers.STRENGTHS[:-1]
    np.testing.assert_allclose(ratios, 10 ** (11 / 44))


@pytest.mark.slow
def test_cold_equals_scikit_learn(digits):
    train, validation, test = digits
    fits = [
        *classifiers.sweep(
            train,
            validation,
            metric="top1",
            max_iter=1000,
            tol=1e-4,
            warm=False,
        )
    ]
    wanted = by_hand(train, validation, classifiers.STRENGTHS)
    assert {f.strength: f.score for f in fits} == wanted
    assert all(f.converged for f in fits)
    best = classifiers.choose(fits).strength
    assert wanted[best] == max(wanted.values())


def sweeps(digits, **how):
    train, validation, _ = digits
    return [
        list(
            classifiers.sweep(
                train,
                validation,
                metric="top1",
                max_iter=5000,
                warm=warm,
                **how,
            )
        )
        for warm in (True, False)
    ]


def test_warm_comes_to_the_same(digits):
    # Below these the classes come apart, and the weights grow for ever.
    warm, cold = sweeps(digits, tol=1e-7, strengths=classifiers.STRENGTHS[16:])
    assert all(f.converged for f in (*warm, *cold))
    assert [(f.strength, f.score) for f in warm] == [
        (f.strength, f.score) for f in cold
    ]


def test_warm_takes_less_than_half_the_iterations(digits):
    warm, cold = sweeps(digits, tol=1e-4)
    few, many = (sum(f.iterations for f in fits) for fits in (warm, cold))
    assert few < 0.5 * many
    assert (
        classifiers.choose(warm).strength == classifiers.choose(cold).strength
    )


def test_the_last_fit_is_scikit_learns_to_the_last_image(digits):
    train, validation, test = digits
    x = np.concatenate([train[0], validation[0]])
    y = np.concatenate([train[1], validation[1]])
    model = classifiers.regression(0.1, max_iter=500, tol=1e-4)
    assert classifiers.fit(model, x, y)
    wanted = linear_model.LogisticRegression(C=10.0, max_iter=500).fit(x, y)
    np.testing.assert_array_equal(model.coef_, wanted.coef_)
    np.testing.assert_array_equal(
        model.predict(test[0]), wanted.predict(test[0])
    )


def test_of_two_classes_the_strength_is_twice_that_of_softmax():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5))
    y = (x[:, 0] + rng.normal(size=200) > 0).astype(int)
    model = classifiers.regression(2.0, max_iter=1000, tol=1e-10)
    classifiers.fit(model, x, y)
    w = model.coef_[0] / 2
    # The slope of Σ cross-entropy + λ'/2 (‖w₀‖² + ‖w₁‖²) with λ' = 2 λ
    # vanishes at w₁ = -w₀ = w.
    p = 1 / (1 + np.exp(-(2 * x @ w + model.intercept_[0])))
    slope = x.T @ (p - y) + 4.0 * w
    np.testing.assert_allclose(slope, 0, atol=1e-6)


def test_too_few_iterations_are_told(digits):
    train, validation, _ = digits
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (fit,) = classifiers.sweep(
            train,
            validation,
            metric="top1",
            max_iter=3,
            tol=1e-4,
            strengths=(1e-3,),
        )
    assert fit.iterations == 3 and not fit.converged


def test_other_warnings_get_through(digits):
    class Loud:
        def fit(self, features, labels):
            warnings.warn("something else", UserWarning, stacklevel=1)
            warnings.warn(
                "not there yet", exceptions.ConvergenceWarning, stacklevel=1
            )

    with pytest.warns(UserWarning, match="something else"):
        assert not classifiers.fit(Loud(), *digits[0])


def test_of_equals_the_strongest_is_chosen():
    fits = [
        classifiers.Fit(strength, score, 1, True, 0.0)
        for strength, score in ((100.0, 0.5), (10.0, 0.9), (1.0, 0.9))
    ]
    assert classifiers.choose(fits).strength == 10.0


def test_the_mean_over_classes_can_choose_another():
    rng = np.random.default_rng(0)
    # 95 of 100 images are of class 0: to call all so is right in 95 %.
    y = (np.arange(400) % 20 == 0).astype(int)
    x = rng.normal(size=(400, 2)) + 1.2 * y[:, None]
    train, validation = (x[:200], y[:200]), (x[200:], y[200:])
    strong, weak = classifiers.sweep(
        train,
        validation,
        metric="mean_per_class",
        max_iter=100,
        tol=1e-4,
        strengths=(1e5, 1e-3),
    )
    assert strong.score == 0.5 < weak.score


def test_scores_by_hand():
    labels = np.array([0, 0, 0, 0, 2, 2])
    predicted = np.array([0, 0, 0, 1, 2, 1])
    assert classifiers.score("top1", labels, predicted) == 4 / 6
    # Class 1 has no image.
    result = classifiers.score("mean_per_class", labels, predicted)
    assert result == pytest.approx((3 / 4 + 1 / 2) / 2)


def test_threads_that_the_environment_names_change_nothing():
    """As OMP_NUM_THREADS=1 does; for the last bits depend on them."""
    if preflight.processors() == 1:
        pytest.skip("needs two processors")
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, 1500)
    x = (rng.normal(size=[1500, 128]) + 0.05 * y[:, None]).astype(np.float32)

    def solution():
        model = classifiers.regression(1e-3, max_iter=20, tol=1e-4)
        with warnings.catch_warnings(action="ignore"):
            classifiers.fit(model, x, y)
        return model.coef_

    with classifiers.all_processors():
        wanted = solution()
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        assert (solution() != wanted).any()
        with classifiers.all_processors():
            np.testing.assert_array_equal(solution(), wanted)


def plain(train, features, k, t):
    x = train[0] / np.linalg.norm(train[0], axis=1, keepdims=True)
    z = features / np.linalg.norm(features, axis=1, keepdims=True)
    predicted = []
    for cosines in z @ x.T:
        nearest = np.argsort(-cosines, kind="stable")[:k]
        votes = np.bincount(
            train[1][nearest], np.exp(cosines[nearest] / t), train[1].max() + 1
        )
        predicted.append(votes.argmax())
    return np.array(predicted)


def test_equals_a_plain_transcription():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, 300)
    centers = rng.normal(size=(7, 16))
    train = (centers[labels] + rng.normal(size=(300, 16)), labels)
    features = centers[rng.integers(0, 7, 200)] + rng.normal(size=(200, 16))
    for k, t in ((1, 0.07), (5, 0.07), (20, 0.5), (300, 0.02)):
        predicted = classifiers.nearest_neighbors(
            train, features, neighbors=k, temperature=t
        )
        np.testing.assert_array_equal(predicted, plain(train, features, k, t))


def test_near_votes_outweigh_many():
    x = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.1, 1.0]])
    train = (x, np.array([3, 8, 8, 8]))
    nearly = np.array([[1.0, 0.1]], np.float32)
    sharp = classifiers.nearest_neighbors(
        train, nearly, neighbors=4, temperature=0.07
    )
    flat = classifiers.nearest_neighbors(
        train, nearly, neighbors=4, temperature=10.0
    )
    assert (sharp.item(), flat.item()) == (3, 8)


def test_a_low_temperature_does_not_overflow():
    x = np.eye(3)
    predicted = classifiers.nearest_neighbors(
        (x, np.arange(3)), 1e4 * x, neighbors=3, temperature=0.005
    )
    np.testing.assert_array_equal(predicted, [0, 1, 2])
