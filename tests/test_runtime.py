"""What the process was told before a run: it decides nothing, and stays."""

import random
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import config as tf_config

import simmatch_tf
from simmatch_tf import runtime
from simmatch_tf.flags.errors import InputError
from simmatch_tf.training import state
from tests import runs

WANTED = [setting.wanted for setting in runtime._SETTINGS]


def settings():
    return [setting.read() for setting in runtime._SETTINGS]


@pytest.fixture
def leftovers():
    """Everything is otherwise than a run needs it; and put back."""
    before, policy = settings(), keras.config.dtype_policy()
    keras.config.set_image_data_format("channels_first")
    keras.config.set_floatx("float16")
    keras.config.set_epsilon(0.01)
    keras.config.set_dtype_policy("mixed_bfloat16")
    tf.config.run_functions_eagerly(True)
    tf.config.optimizer.set_jit("autoclustering")
    tf.config.experimental.enable_tensor_float_32_execution(False)
    tf_config.enable_op_determinism()
    tf.random.set_seed(7)
    yield settings()
    for setting, value in zip(runtime._SETTINGS, before, strict=True):
        setting.write(value)
    keras.config.set_dtype_policy(policy)
    # TensorFlow has no name for this: none was set.
    tf.random.set_seed(None)


def test_all_are_otherwise(leftovers):
    """Else the tests below would compare nothing."""
    assert not [a for a, b in zip(leftovers, WANTED, strict=True) if a == b]


def test_pinned_gives_back(leftovers):
    with pytest.raises(ZeroDivisionError):
        with runtime.pinned():
            assert settings() == WANTED
            assert keras.config.dtype_policy().name == "float32"
            with runtime.pinned():
                assert settings() == WANTED
            assert settings() == WANTED  # the outer one is at work
            raise ZeroDivisionError
    assert settings() == leftovers
    assert keras.config.dtype_policy().name == "mixed_bfloat16"


def test_pinned_in_threads(leftovers):
    """The first that begins need not be the last that ends."""
    inside, leave, seen = threading.Event(), threading.Event(), []

    def work():
        with runtime.pinned():
            inside.set()
            leave.wait()
            seen.append(settings())

    thread = threading.Thread(target=work)
    with runtime.pinned():
        thread.start()
        inside.wait()
    assert settings() == WANTED
    leave.set()
    thread.join()
    assert seen == [WANTED] and settings() == leftovers


def test_pin(leftovers):
    runtime.pin()
    assert settings() == WANTED
    assert keras.config.dtype_policy().name == "float32"


def draws():
    return (
        random.random(),
        np.random.random(),
        tf.random.uniform([]).numpy(),
        keras.random.uniform([]).numpy(),
    )


def test_seeds_are_given_back():
    keras.utils.set_random_seed(3)
    draws()
    wanted = draws()
    keras.utils.set_random_seed(3)
    draws()
    with runtime.seeded(5):
        drawn = draws()
    assert draws() == wanted
    with runtime.seeded(5):
        assert draws() == drawn  # whatever was drawn before
    with runtime.seeded(6):
        assert draws() != drawn


def test_what_cannot_be_taken_back_is_refused(tmp_path, monkeypatch):
    runtime.check_exact()
    monkeypatch.setattr(
        tf.config.threading, "get_intra_op_parallelism_threads", lambda: 3
    )
    with pytest.raises(InputError, match="was given 3: the last bits"):
        runs.fit(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def outputs(workdir):
    """A run's network on images."""
    model = simmatch_tf.load(workdir)
    images = np.random.default_rng(0).integers(0, 256, [5, 8, 8, 1])
    out = model(tf.constant(images, tf.uint8), training=False)
    return {name: value.numpy() for name, value in out.items()}


def test_load(leftovers, finished_run):
    workdir, _ = finished_run
    with runtime.pinned():
        wanted = outputs(workdir)
    actual = outputs(workdir)
    assert settings() == leftovers
    for name, value in wanted.items():
        assert actual[name].dtype == value.dtype == np.float32
        np.testing.assert_array_equal(actual[name], value)


def test_custom_weights_draw_from_the_seed_alone(leftovers):
    def drawn():
        with state.building(1, "float32"):
            return keras.initializers.GlorotNormal()((3, 3)).numpy()

    first = drawn()
    random.seed(99)
    tf.random.set_seed(99)
    np.testing.assert_array_equal(drawn(), first)
    assert first.dtype == np.float32


@pytest.mark.slow
def test_fit(leftovers, finished_run, tmp_path):
    workdir, _ = finished_run
    runs.fit(tmp_path / "run")
    assert settings() == leftovers
    assert keras.config.dtype_policy().name == "mixed_bfloat16"
    for folder, pattern in (("", "results.json"), ("checkpoints", "*6.data*")):
        (one,) = (workdir / folder).glob(pattern)
        (other,) = (tmp_path / "run" / folder).glob(pattern)
        assert one.read_bytes() == other.read_bytes()


def test_allocator_elsewhere(monkeypatch):
    monkeypatch.setattr(runtime.ctypes.util, "find_library", lambda _: None)
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda _: object())
    assert runtime.keep_memory() is False
