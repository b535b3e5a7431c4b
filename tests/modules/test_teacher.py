import keras
import numpy as np

from simmatch_tf.modules import teacher


def network(seed):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),  # its counter is no float
        ]
    )


def test_averages_weights_and_batch_norm_statistics():
    student, copy = network(0), network(1)
    ema = teacher.Teacher(copy, student, momentum=0.9)
    for own, others in zip(copy.variables, student.variables, strict=True):
        np.testing.assert_array_equal(own, others)
    start = [np.array(v) for v in student.variables]
    student.layers[0].kernel.assign_add(np.ones([3, 4]))
    student.layers[1].moving_mean.assign(np.full(4, 2.0))
    ema.update(student, 5)
    kernel = copy.layers[0].kernel
    np.testing.assert_allclose(kernel, start[0] + 0.1, rtol=1e-5)
    np.testing.assert_allclose(
        copy.layers[1].moving_mean, np.full(4, 0.2), rtol=1e-5
    )


def test_warmup_forgets_the_start():
    student, copy = network(0), network(1)
    ema = teacher.Teacher(copy, student, momentum=0.999, warmup=True)
    before = np.array(student.layers[0].kernel)
    student.layers[0].kernel.assign_add(np.ones([3, 4]))
    ema.update(student, 0)  # m = 1/10
    np.testing.assert_allclose(copy.layers[0].kernel, before + 0.9, rtol=1e-5)


def test_equal_networks_stay_equal_to_the_bit():
    student = network(0)
    ema = teacher.Teacher(network(1), student, momentum=0.999)
    for step in range(5):
        ema.update(student, step)
    np.testing.assert_array_equal(
        ema.model.layers[0].kernel, student.layers[0].kernel
    )


def test_statistics_of_its_own():
    """Without EMAN it runs in training mode and keeps its own averages."""
    student = network(0)
    ema = teacher.Teacher(network(1), student, momentum=0.9, eman=False)
    norm = ema.model.layers[1]
    student.layers[1].moving_mean.assign(np.full(4, 2.0))
    student.layers[0].kernel.assign_add(np.ones([3, 4]))
    before = np.array(ema.model.layers[0].kernel)
    ema.update(student, 5)
    np.testing.assert_array_equal(norm.moving_mean, np.zeros(4))
    assert (np.array(ema.model.layers[0].kernel) != before).any()
    x = np.random.default_rng(0).normal(5.0, 1.0, [64, 3]).astype(np.float32)
    inner = x @ np.array(ema.model.layers[0].kernel)
    model = keras.Model(ema.model.inputs[0], {"x": ema.model.layers[1].output})
    ema.model = model
    out = ema(x, np.array([0, 0]))["x"]
    # The batch's own statistics, and they move the averages.
    np.testing.assert_allclose(np.mean(out, 0), np.zeros(4), atol=1e-4)
    np.testing.assert_allclose(
        norm.moving_mean, 0.01 * inner.mean(0), rtol=1e-4
    )
