"""VAT's whole step against its equations, and its perturbations."""

import types

import numpy as np
import pytest

import simmatch_tf
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.algorithms import diagnostics
from simmatch_tf.data.sources import digits
from simmatch_tf.distributed import strategies
from simmatch_tf.flags import errors
from simmatch_tf.lazy import keras, tf
from simmatch_tf.modules import replica
from simmatch_tf.ops import losses, perturbations, sampling
from simmatch_tf.training import state
from tests import reference
from tests.algorithms import test_simmatch, whole_step

_NUDGE = 1e-5


def unit(d):
    """Each image's direction, of length 1."""
    return d / np.sqrt(np.sum(np.square(d), axis=(1, 2, 3), keepdims=True))


def kl(p, q):
    """KL(p ‖ q) of each image."""
    return np.sum(p * (np.log(p) - np.log(q)), axis=1)


def predict(network, images):
    return reference.softmax(network(images, "batch")["logits"])


def vat():
    """L_s + r(k) λ_u mean KL(p ‖ p(v + r)) + λ_e mean H(p)."""
    known = {}

    def search(s, v, p, d):
        """r = ε d̂/‖d̂‖; the gradient d̂ is one of central differences."""
        hyper, c = s.algorithm.hyper, s.constant
        d = hyper.xi * unit(d)
        gradient = np.zeros_like(d)
        for place in np.ndindex(d.shape):
            ends = []
            for nudge in (_NUDGE, -_NUDGE):
                moved = d.copy()
                moved[place] += nudge
                ends.append(kl(p, predict(c, v + 127.5 * moved)).mean())
            gradient[place] = ends[0] - ends[1]
        return hyper.epsilon * unit(gradient)

    def equations(s):
        config, hyper = s.algorithm.config, s.algorithm.hyper
        x, w = s.batch["labeled_weak"], s.batch["unlabeled_weak"]
        b, v, names = len(x), w, ("unlabeled",)
        if hyper.images == "all":
            v, names = np.concatenate([x, w]), ("labeled", "unlabeled")
            logits_v = s.student(v)["logits"]  # moves the averages
            logits_x = logits_v[:b]
        else:
            logits_x = s.student(x)["logits"]
            logits_v = s.student(w, "batch")["logits"]
        p = predict(s.constant, v)
        # The nudges of a gradient leave `constant` alone, and so r.
        key = v.tobytes() + s.constant.values["dense/kernel"].tobytes()
        if key not in known:
            d = [
                sampling.normal(
                    s.algorithm.seed(f"direction_{name}"),
                    s.batch[f"{name}_weak"].shape,
                    "float64",
                )
                for name in names
            ]
            known[key] = search(s, v, p, np.concatenate(d))
        p_r = predict(s.student, v + 127.5 * known[key])
        q = reference.softmax(logits_v)
        loss_s = reference.supervised_loss(logits_x, s.batch["labels"])
        loss_u = np.mean(kl(p, p_r))
        loss_e = np.mean(-np.sum(q * np.log(q), axis=1))
        steps = 0.4 * config.steps
        if config.ramp_steps is not None:
            steps = config.ramp_steps
        ramp = min(1, s.k / steps) if steps else 1
        weighted_u = ramp * config.lambda_u * loss_u
        weighted_e = hyper.lambda_e * loss_e
        return {
            "loss/total": loss_s + weighted_u + weighted_e,
            "loss/s": loss_s,
            "loss/u": loss_u,
            "loss/e": loss_e,
            "loss/weighted_u": weighted_u,
            "loss/weighted_e": weighted_e,
        }, {}

    return equations


@pytest.mark.parametrize(
    ("k", "changes"),
    [
        (0, {}),  # no weight of the perturbed images yet
        (60, {"lambda_u": 3.0, "vat.epsilon": 1.0, "vat.lambda_e": 2.0}),
        (3, {"ramp_steps": 0, "vat.images": "all", "vat.xi": 2.0}),
    ],
    ids=str,
)
def test_step(k, changes):
    algorithm = whole_step.make("vat", **changes)
    algorithm.step.assign(k)
    batches = [whole_step.batch(views=("weak",))]
    steps = whole_step.check(algorithm, vat(), batches)
    assert steps[0]["loss/u"] > 0.01 and steps[0]["loss/e"] > 0.01
    assert not any(name.startswith("pseudo_label") for name in steps[0])


@pytest.mark.slow
@pytest.mark.variant
def test_steps_in_a_row():
    algorithm = whole_step.make("vat", seed=3, ramp_steps=2, lambda_u=2.0)
    batches = [whole_step.batch(seed, views=("weak",)) for seed in range(4)]
    whole_step.check(algorithm, vat(), batches)


@pytest.mark.slow
@pytest.mark.variant
@pytest.mark.parametrize("images", ["unlabeled", "all"])
def test_xla_and_two_replicas_take_the_same_step(images, two_replicas):
    changes = {"ramp_steps": 0, "lambda_u": 3.0, "vat.images": images}
    plain, compiled, two = (
        whole_step.make("vat", strategy, **changes)
        for strategy in (None, None, two_replicas)
    )
    batch = whole_step.batch(views=("weak",))
    losses_of_one = tf.function(plain.guarded_step, autograph=False)(batch)
    step = tf.function(compiled.guarded_step, autograph=False, jit_compile=True)
    for name, value in step(batch).items():
        np.testing.assert_allclose(value, losses_of_one[name], rtol=1e-6)
    test_simmatch.on_two(two_replicas, two, batch, 1, guarded=True)
    for other in (compiled, two):
        for a, b in zip(
            algorithm_lib.state(plain), algorithm_lib.state(other), strict=True
        ):
            # Images are rounded to float32 where they enter the network.
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_defaults_are_the_published_ones():
    config = simmatch_tf.Config(algorithm="vat", labels=10, steps=9)
    assert (config.lambda_u, config.unlabeled_ratio) == (0.3, 1)
    assert config.ramp_steps is None and config.hyper.ramp_share == 0.4
    hyper = config.hyper
    assert (hyper.epsilon, hyper.lambda_e, hyper.images) == (
        6.0,
        0.06,
        "unlabeled",
    )


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_is_refused(precision):
    words = ["x", "--algorithm=vat", "--labels=10", "--steps=9"]
    with pytest.raises(
        errors.InputError, match=f"--precision={precision}.*give --precision=f"
    ):
        simmatch_tf.Config.from_argv([*words, f"--precision={precision}"])
    config = simmatch_tf.Config.from_argv([*words, "--precision=float64"])
    assert config.precision == "float64"


def test_a_step_that_float32_does_not_resolve_is_refused():
    words = ["x", "--algorithm=vat", "--labels=10", "--steps=9"]
    with pytest.raises(errors.InputError, match="vat.xi=1e-06"):
        simmatch_tf.Config.from_argv([*words, "--vat.xi=1e-6"])


def test_diagnostics_are_of_the_unlabeled_images():
    algorithm = whole_step.make("vat", **{"vat.images": "all"})
    x = whole_step.batch(views=("weak",))
    x |= {
        diagnostics.LOGGED: tf.constant(True),
        "unlabeled_labels": tf.constant([0, 1, 2, 0, 1, 2]),
    }
    network = whole_step.Network(algorithm.student)
    images = np.concatenate([x["labeled_weak"], x["unlabeled_weak"]])
    p = predict(network, images)[4:]
    metrics = tf.function(algorithm.guarded_step, autograph=False)(x)
    shown = metrics[diagnostics.DIAGNOSTICS]
    np.testing.assert_allclose(shown.rows["p_w"], p, rtol=1e-5)
    assert "used" not in shown.means and "mask" not in shown.rows


# --------------------------------------------------------- perturbations --


def test_a_direction_has_the_norm_however_small_it_is():
    rng = np.random.default_rng(0)
    d = rng.normal(size=[4, 3, 2, 2]).astype(np.float32)
    d *= np.array([1, 1e-30, 1e30, 0], np.float32)[:, None, None, None]
    r = perturbations.with_norm(d, 6.0).numpy()
    norms = np.linalg.norm(r.reshape(4, -1), axis=1)
    np.testing.assert_allclose(norms, [6, 6, 6, 0], rtol=1e-6)
    np.testing.assert_allclose(
        r[1] / 6, unit(d[1:2].astype(np.float64))[0], rtol=1e-5
    )
    # Smaller than the smallest normal number: nothing, or the norm.
    least = perturbations.with_norm(np.full([1, 2, 2, 1], 1e-42, "f4"), 6.0)
    assert np.isfinite(least).all()
    with pytest.raises(ValueError, match="d has shape"):
        perturbations.with_norm(d[0], 6.0)


def test_directions_depend_on_seed_step_and_place_alone(two_replicas):
    images = whole_step.batch(views=("weak",))["unlabeled_weak"]

    def draw(algorithm, step=3, name="unlabeled"):
        algorithm.step.assign(step)
        return algorithm.directions({name: images}).numpy()

    one = whole_step.make("vat")
    d = draw(one)
    assert d.shape == (6, 4, 4, 1) and d.dtype == np.float64
    assert len(np.unique(d)) == d.size
    assert abs(d.mean()) < 0.3 and 0.8 < d.std() < 1.2
    np.testing.assert_array_equal(d, draw(one))
    seeded = whole_step.make("vat", seed=1)
    for other in (draw(one, 4), draw(one, name="labeled"), draw(seeded)):
        assert abs(np.corrcoef(d.ravel(), other.ravel())[0, 1]) < 0.4

    def on_one():
        return one.directions({"unlabeled": replica.share(images)})

    one.step.assign(3)
    values = two_replicas.run(tf.function(on_one, autograph=False))
    values = two_replicas.experimental_local_results(values)
    np.testing.assert_array_equal(d, np.concatenate(values))


def small_network(precision):
    """The method with a small WRN on digits of 8×8."""
    source = digits.load(8)
    config = simmatch_tf.Config(
        algorithm="vat",
        labels=10,
        steps=9,
        backbone="wrn_10_1",
        precision=precision,
        **{"vat.epsilon": 1.5},  # by pixel a little less than 6 for CIFAR
    )
    return state.make_algorithm(
        config.with_durations(1),
        strategies.one(),
        image_shape=source.image_shape,
        slot_labels=np.arange(10),
        num_classes=10,
        statistics=source.statistics(),
    )


@pytest.fixture(scope="module")
def trained():
    """A method whose network has learned a little, 200 other images, and p."""
    algorithm, train = small_network("float32"), digits.load(8).train
    weights = algorithm.student.trainable_variables
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build(weights)

    @tf.function(autograph=False)
    def step(x, y):
        with tf.GradientTape() as tape:
            logits = algorithm.call(algorithm.student, x)["logits"]
            loss = losses.supervised_loss(logits, y)
        gradients = tape.gradient(loss, [weight.value for weight in weights])
        optimizer.apply(gradients, weights)

    for start in range(0, 500, 25):
        rows = slice(start, start + 25)
        step(tf.constant(train.images[rows]), tf.constant(train.labels[rows]))
    v = tf.constant(train.images[1000:1200])
    p = tf.nn.softmax(algorithm.call(algorithm.student, v, "batch")["logits"])
    assert 0.5 < np.mean(np.max(p, axis=1)) < 0.99
    return algorithm, v, p


def test_it_changes_predictions_more_than_a_random_perturbation(trained):
    algorithm, v, p = trained
    d = algorithm.directions({"unlabeled": v})
    r = algorithm.perturbation(v, p, d)
    norms = np.linalg.norm(np.reshape(r, [200, -1]), axis=1)
    np.testing.assert_allclose(norms, 1.5, rtol=1e-5)

    def divergences(r):
        v_r = tf.cast(v, tf.float32) + 127.5 * r
        logits = algorithm.call(algorithm.student, v_r, "batch")["logits"]
        return kl(np.float64(p), np.float64(tf.nn.softmax(logits)))

    one, random = divergences(r), divergences(perturbations.with_norm(d, 1.5))
    assert np.mean(one > random) >= 0.95  # of the images
    assert np.median(one / random) > 10


def test_the_published_step_is_below_what_float32_resolves(trained):
    algorithm, v = trained[0], trained[1][:50]
    double = small_network("float64")
    for one, other in zip(
        double.student.variables, algorithm.student.variables, strict=True
    ):
        one.assign(np.asarray(other))
    drawn = algorithm.directions({"unlabeled": v})

    def direction(method, xi):
        before = method.hyper
        method.hyper = types.SimpleNamespace(xi=xi, epsilon=1.0)
        p = tf.nn.softmax(method.call(method.student, v, "batch")["logits"])
        d = method.perturbation(v, p, tf.cast(drawn, method.dtype))
        method.hyper = before
        return np.float64(d)

    def cosines(xi):
        """Of the directions in float32 with those in float64, by image."""
        single, exact = direction(algorithm, xi), direction(double, xi)
        return np.sum(single * exact, axis=(1, 2, 3))

    assert cosines(1.0).min() > 0.9999
    assert cosines(0.01).min() > 0.999  # the smallest that is accepted
    assert np.median(cosines(1e-6)) < 0.9 and cosines(1e-6).min() < 0
    # In images of the size of CIFAR's hardly a bright pixel changes.
    x = np.random.default_rng(0).integers(128, 256, [8, 32, 32, 3])
    d = sampling.normal(tf.constant([0, 1]), x.shape)
    step = 127.5 * perturbations.with_norm(d, 1e-6)
    x = tf.constant(x, tf.float32)
    assert np.mean(x + step != x) < 0.01


def test_weights_averages_and_gradients_are_left_alone():
    algorithm = whole_step.make("vat")
    v = whole_step.batch(views=("weak",))["unlabeled_weak"]
    before = [np.array(variable) for variable in algorithm.student.variables]

    def gradients(searches):
        with tf.GradientTape() as tape:
            logits = algorithm.call(algorithm.student, v, "batch")["logits"]
            loss = losses.entropy_loss(logits)
            if searches:
                p = tf.nn.softmax(tf.stop_gradient(logits))
                with tape.stop_recording():
                    d = algorithm.directions({"unlabeled": v})
                    r = algorithm.perturbation(v, p, d)
                loss += tf.reduce_sum(r)
        weights = algorithm.student.trainable_variables
        return tape.gradient(
            loss,
            [weight.value for weight in weights],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )

    for one, other in zip(gradients(True), gradients(False), strict=True):
        np.testing.assert_array_equal(one, other)
    for variable, value in zip(
        algorithm.student.variables, before, strict=True
    ):
        np.testing.assert_array_equal(variable, value)
