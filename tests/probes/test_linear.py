"""Logistic regression: equal to scikit-learn's by hand, warm or cold."""

import warnings

import numpy as np
import pytest
import threadpoolctl
from sklearn import datasets, exceptions, linear_model

from simmatch_tf import preflight
from simmatch_tf.probes import linear, scores


@pytest.fixture(scope="module")
def digits():
    """Pixels as features: 800 to learn from, 200 to choose by, 797 to test."""
    x, y = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x[order] / 16).astype(np.float32), y[order]
    parts = np.split(np.arange(len(x)), [800, 1000])
    return [(x[part].astype(np.float64), y[part]) for part in parts]


def by_hand(train, validation, strengths, max_iter=1000):
    found = {}
    for strength in strengths:
        model = linear_model.LogisticRegression(
            C=1 / strength, max_iter=max_iter
        )
        found[strength] = model.fit(*train).score(*validation)
    return found


def test_the_strengths_are_the_papers():
    assert len(linear.STRENGTHS) == 45
    assert linear.STRENGTHS[0] == pytest.approx(1e-6)
    assert linear.STRENGTHS[-1] == pytest.approx(1e5)
    ratios = linear.STRENGTHS[1:] / linear.STRENGTHS[:-1]
    np.testing.assert_allclose(ratios, 10 ** (11 / 44))


@pytest.mark.slow
def test_cold_equals_scikit_learn(digits):
    train, validation, test = digits
    found = linear.sweep(
        train, validation, metric="top1", max_iter=1000, tol=1e-4, warm=False
    )
    wanted = by_hand(train, validation, linear.STRENGTHS)
    assert {f.strength: f.score for f in found} == wanted
    assert all(f.converged for f in found)
    best = linear.choose(found).strength
    assert wanted[best] == max(wanted.values())


def sweeps(digits, **how):
    train, validation, _ = digits
    return [
        linear.sweep(
            train, validation, metric="top1", max_iter=5000, warm=warm, **how
        )
        for warm in (True, False)
    ]


def test_warm_comes_to_the_same(digits):
    # Below these the classes come apart, and the weights grow for ever.
    warm, cold = sweeps(digits, tol=1e-7, strengths=linear.STRENGTHS[16:])
    assert all(f.converged for f in (*warm, *cold))
    assert [(f.strength, f.score) for f in warm] == [
        (f.strength, f.score) for f in cold
    ]


def test_warm_takes_less_than_half_the_iterations(digits):
    warm, cold = sweeps(digits, tol=1e-4)
    few, many = (sum(f.iterations for f in fits) for fits in (warm, cold))
    assert few < 0.5 * many
    assert linear.choose(warm).strength == linear.choose(cold).strength


def test_the_last_fit_is_scikit_learns_to_the_last_image(digits):
    train, validation, test = digits
    x = np.concatenate([train[0], validation[0]])
    y = np.concatenate([train[1], validation[1]])
    model = linear.regression(0.1, max_iter=500, tol=1e-4)
    assert linear.fit(model, x, y)
    wanted = linear_model.LogisticRegression(C=10.0, max_iter=500).fit(x, y)
    np.testing.assert_array_equal(model.coef_, wanted.coef_)
    np.testing.assert_array_equal(
        model.predict(test[0]), wanted.predict(test[0])
    )


def test_of_two_classes_the_strength_is_twice_that_of_softmax():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5))
    y = (x[:, 0] + rng.normal(size=200) > 0).astype(int)
    model = linear.regression(2.0, max_iter=1000, tol=1e-10)
    linear.fit(model, x, y)
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
        (found,) = linear.sweep(
            train,
            validation,
            metric="top1",
            max_iter=3,
            tol=1e-4,
            strengths=(1e-3,),
        )
    assert found.iterations == 3 and not found.converged


def test_other_warnings_get_through(digits):
    class Loud:
        def fit(self, features, labels):
            warnings.warn("something else", UserWarning, stacklevel=1)
            warnings.warn(
                "not there yet", exceptions.ConvergenceWarning, stacklevel=1
            )

    with pytest.warns(UserWarning, match="something else"):
        assert not linear.fit(Loud(), *digits[0])


def test_a_killed_sweep_goes_on_to_the_same_bits(digits, tmp_path, monkeypatch):
    train, validation, _ = digits
    how = {
        "metric": "top1",
        "max_iter": 1000,
        "tol": 1e-4,
        "strengths": linear.STRENGTHS[20:28],
    }
    whole = linear.sweep(train, validation, **how)
    state = tmp_path / "state.npz"

    def die(found):
        if found.strength < linear.STRENGTHS[25]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        linear.sweep(train, validation, state=state, done=die, **how)
    told, fitted, fit = [], [], linear.fit

    def count(*arguments, **words):
        fitted.append(words)
        return fit(*arguments, **words)

    with monkeypatch.context() as patch:
        patch.setattr(linear, "fit", count)
        rest = linear.sweep(
            train, validation, state=state, done=told.append, **how
        )
    assert 0 < len(fitted) < len(rest)
    assert told == rest
    for one, other in zip(whole, rest, strict=True):
        assert (one.score, one.iterations) == (other.score, other.iterations)
    state.write_bytes(b"damaged")
    again = linear.sweep(train, validation, state=state, **how)
    assert [f.score for f in again] == [f.score for f in whole]


def test_of_equals_the_strongest_is_chosen():
    fits = [
        linear.Fit(strength, score, 1, True, 0.0)
        for strength, score in ((100.0, 0.5), (10.0, 0.9), (1.0, 0.9))
    ]
    assert linear.choose(fits).strength == 10.0


def test_the_mean_over_classes_can_choose_another():
    rng = np.random.default_rng(0)
    # 95 of 100 images are of class 0: to call all so is right in 95 %.
    y = (np.arange(400) % 20 == 0).astype(int)
    x = rng.normal(size=(400, 2)) + 1.2 * y[:, None]
    train, validation = (x[:200], y[:200]), (x[200:], y[200:])
    strong, weak = linear.sweep(
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
    assert scores.score("top1", labels, predicted) == 4 / 6
    # Class 1 has no image.
    found = scores.score("mean_per_class", labels, predicted)
    assert found == pytest.approx((3 / 4 + 1 / 2) / 2)
    with pytest.raises(ValueError, match="top1 or mean_per_class"):
        scores.score("top5", labels, predicted)


def test_threads_that_the_environment_names_change_nothing():
    """As OMP_NUM_THREADS=1 does; for the last bits depend on them."""
    if preflight.processors() == 1:
        pytest.skip("needs two processors")
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, 1500)
    x = (rng.normal(size=[1500, 128]) + 0.05 * y[:, None]).astype(np.float32)

    def solution():
        model = linear.regression(1e-3, max_iter=20, tol=1e-4)
        with warnings.catch_warnings(action="ignore"):
            linear.fit(model, x, y)
        return model.coef_

    with linear.all_processors():
        wanted = solution()
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        assert (solution() != wanted).any()
        with linear.all_processors():
            np.testing.assert_array_equal(solution(), wanted)
