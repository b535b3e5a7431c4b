import keras
import numpy as np
import pytest

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


def test_bad_arguments():
    with pytest.raises(ValueError, match="they must be equal"):
        teacher.Teacher(network(0), keras.Sequential([keras.Input((3,))]))
    with pytest.raises(ValueError, match=r"momentum=1.5: must be in \[0, 1\]"):
        teacher.Teacher(network(0), network(1), momentum=1.5)
