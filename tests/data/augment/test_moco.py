"""Each colour operation against Pillow's own, and the draws behind them."""

import itertools

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import pytest
import scipy.ndimage
import tensorflow as tf

from simmatch_tf.data.augment import moco

ORDERS = list(itertools.permutations("bcsh"))
LOW, HIGH = 9830 / 2**14, 22937 / 2**14  # nearest to 0.6 and 1.4


def draws(
    order="bcsh", *, b=1.0, c=1.0, s=1.0, h=0, jitter=True, grey=False, sigma=0
):
    """The draws that mean this; h in steps of 1/255 of the circle."""
    factors = [(round(f * 2**14) - 9830 + 0.5) / 13108 for f in (b, c, s)]
    place = ORDERS.index(tuple(order))
    return np.float32(
        [
            0.79 if jitter else 0.81,
            (place + 0.5) / 24,
            *factors,
            (h + np.sign(h) * 0.25) / 51 + 0.5,
            0.19 if grey else 0.21,
            0.49 if sigma else 0.51,
            (sigma - 0.1) / 1.9 if sigma else 0.5,
        ]
    )


def random_draws(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random([count, moco.DRAWS], np.float32)


def images(height=40, width=56):
    """Noise, a smooth image, and one of few colours."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, [height, width, 3])
    y, x = np.mgrid[:height, :width]
    smooth = [
        255 * y / height,
        255 * x / width,
        127 * (1 + np.sin(x / 9 + y / 7)),
    ]
    few = rng.choice([0, 1, 127, 128, 254, 255], [height, width, 3])
    return np.stack([noise, np.stack(smooth, axis=-1), few]).astype(np.uint8)


def color(x, numbers, **options):
    numbers = np.broadcast_to(numbers, [len(x), moco.DRAWS])
    return moco.color(tf.constant(x), tf.constant(numbers), **options).numpy()


def enhanced(name, x, factor):
    return np.stack(
        [
            getattr(PIL.ImageEnhance, name)(PIL.Image.fromarray(one)).enhance(
                factor
            )
            for one in x
        ]
    )


def shifted_hue(x, shift):
    def one(image):
        h, s, v = PIL.Image.fromarray(image).convert("HSV").split()
        h = np.asarray(h) + np.uint8(shift % 256)
        hsv = PIL.Image.merge("HSV", (PIL.Image.fromarray(h), s, v))
        return np.asarray(hsv.convert("RGB"))

    return np.stack([one(image) for image in x])


@pytest.mark.parametrize("factor", [LOW, 0.75, 1.0, 1.125, HIGH])
@pytest.mark.parametrize(
    ("name", "short"),
    [("Brightness", "b"), ("Contrast", "c"), ("Color", "s")],
)
def test_factors_equal_pillow(name, short, factor):
    x = images()
    base = color(x, draws("hbcs"))  # 8 bits of hue lose something
    adjusted = color(x, draws("hbcs", **{short: factor}))
    np.testing.assert_array_equal(adjusted, enhanced(name, base, factor))
    assert (factor == 1) == np.array_equal(adjusted, base)


def test_contrast_rounds_the_mean_half_up():
    x = np.zeros([1, 2, 2, 3], np.uint8)
    for half in (1, 3):  # of 4 pixels: means 0.5 and 1.5
        x[0, 0, 0] = 2 * half
        adjusted = color(x, draws(c=0.75))
        np.testing.assert_array_equal(adjusted, enhanced("Contrast", x, 0.75))


@pytest.mark.parametrize("shift", [-25, -1, 0, 1, 13, 25])
def test_hue_equals_pillow(shift):
    x = images()
    shifted = color(x, draws(h=shift)).astype(int)
    assert np.abs(shifted - shifted_hue(x, shift)).max() <= 1


@pytest.mark.slow
def test_hue_of_every_color_equals_pillow():
    number = np.arange(2**24, dtype=np.uint32)
    x = np.stack([number & 255, number >> 8 & 255, number >> 16], axis=-1)
    x = x.astype(np.uint8).reshape(4, 2048, 2048, 3)
    for one in x:
        shifted = color(one[None], draws(h=-7))
        difference = shifted.astype(np.int16) - shifted_hue(one[None], -7)
        assert np.abs(difference).max() <= 1
        assert np.mean(difference != 0) < 1e-3


def test_hue_is_drawn_as_int_of_a_float():
    x = images()[:1]
    for h, shift in ((0.9, 0), (-0.9, 0), (24.9, 24), (-24.9, -24)):
        numbers = draws()
        numbers[5] = h / 51 + 0.5
        difference = color(x, numbers).astype(int) - shifted_hue(x, shift)
        assert np.abs(difference).max() <= 1


def test_operations_come_in_the_order_drawn():
    x = images()
    strength = {"b": 0.75, "c": HIGH, "s": LOW, "h": 25}
    name = {"b": "Brightness", "c": "Contrast", "s": "Color"}
    results = set()
    for order in ORDERS:
        wanted = x
        for short in order:
            if short == "h":
                wanted = shifted_hue(wanted, 25)
            else:
                wanted = enhanced(name[short], wanted, strength[short])
        jittered = color(x, draws(order, **strength))
        difference = np.abs(jittered.astype(int) - wanted)
        # A level of difference after the hue may grow in the contrast.
        assert difference.max() <= 3 and difference.mean() < 0.2
        results.add(jittered.tobytes())
    assert len(results) == 24


def test_grey_equals_pillow():
    x = images()
    greyed = color(x, draws(jitter=False, grey=True))
    for ours, image in zip(greyed, x, strict=True):
        wanted = np.asarray(PIL.Image.fromarray(image).convert("L"))
        np.testing.assert_array_equal(ours, wanted[..., None].repeat(3, -1))


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.7, 0.99, 1.01, 1.5, 1.9999])
def test_blur_is_a_gaussian(sigma):
    x = images()
    blurred = color(x, draws(jitter=False, sigma=sigma))
    wanted = scipy.ndimage.gaussian_filter(
        x.astype(np.float64), [0, sigma, sigma, 0], mode="nearest", truncate=8
    )
    # Half a level is the rounding; Gaussians end at 3 sigma here.
    assert np.abs(blurred - wanted).max() < 1.5
    assert abs(np.mean(blurred - wanted)) < 0.05


def test_blur_of_a_constant_and_of_few_pixels():
    x = np.full([1, 9, 5, 3], 255, np.uint8)
    np.testing.assert_array_equal(color(x, draws(jitter=False, sigma=1.9)), x)
    x = images(1, 2)
    blurred = color(x, draws(jitter=False, sigma=1.9))
    wanted = scipy.ndimage.gaussian_filter(
        x.astype(np.float64), [0, 1.9, 1.9, 0], mode="nearest", truncate=8
    )
    assert np.abs(blurred - wanted).max() < 3


def test_nothing_drawn_changes_nothing():
    x = images()
    np.testing.assert_array_equal(color(x, draws(jitter=False)), x)


def test_one_channel_is_a_grey_image():
    x = images()
    grey = color(x, draws(jitter=False, grey=True))
    numbers = draws(b=0.75, c=1.25, s=LOW, h=9, sigma=1.2)
    one_channel = color(grey[..., :1], numbers)
    assert one_channel.shape == (3, 40, 56, 1)
    np.testing.assert_array_equal(
        one_channel.repeat(3, axis=-1), color(grey, numbers)
    )


@pytest.mark.slow
def test_dense_compiled_and_one_by_one_agree_bit_for_bit():
    x = np.concatenate([images()] * 20)
    numbers = random_draws(len(x))
    colored = color(x, numbers)
    np.testing.assert_array_equal(color(x, numbers, dense=True), colored)
    for jit_compile in (False, True):
        function = tf.function(
            moco.color, jit_compile=jit_compile, autograph=False
        )
        for dense in (False, True):
            again = function(tf.constant(x), tf.constant(numbers), dense=dense)
            np.testing.assert_array_equal(again, colored)


@pytest.mark.parametrize("calls", [None, 1, 4])
def test_the_same_alone_and_in_tf_data(calls):
    x = np.concatenate([images()] * 4)
    numbers = random_draws(len(x))
    whole = color(x, numbers)
    for place in (0, 5, 11):
        alone = color(x[place : place + 1], numbers[place])
        np.testing.assert_array_equal(alone[0], whole[place])
    dataset = tf.data.Dataset.from_tensor_slices((x, numbers)).batch(3)
    dataset = dataset.map(moco.color, num_parallel_calls=calls)
    batched = np.concatenate(list(dataset.as_numpy_iterator()))
    np.testing.assert_array_equal(batched, whole)


def test_probabilities_and_order():
    order, strengths, grey, sigma = [
        t.numpy() for t in moco._parameters(tf.constant(random_draws(24000)))
    ]
    jitter = order[:, 0] >= 0
    assert abs(jitter.mean() - 0.8) < 0.01
    assert abs(grey.mean() - 0.2) < 0.01
    assert abs((sigma >= 0).mean() - 0.5) < 0.015
    assert (np.sort(order[jitter]) == np.arange(4)).all()
    assert (order[~jitter] == -1).all()
    _, counts = np.unique(order[jitter], axis=0, return_counts=True)
    wanted = jitter.sum() / 24
    assert len(counts) == 24
    assert ((counts - wanted) ** 2 / wanted).sum() < 49.7  # chi², 23 degrees
    for factor in strengths[:, :3].T:
        assert 0.5999 <= factor.min() < 0.601 and 1.399 < factor.max() <= 1.4
        assert abs(factor.mean() - 1) < 0.01
    hues, counts = np.unique(strengths[:, 3], return_counts=True)
    np.testing.assert_array_equal(hues, np.arange(-25, 26))
    wanted = np.full(51, 24000 / 51)
    wanted[[0, -1]] /= 2  # from 25 to 25.5
    wanted[25] *= 2  # from -1 to 1
    assert ((counts - wanted) ** 2 / wanted).sum() < 86.7  # chi², 50 degrees
    counts = np.bincount(sigma[sigma >= 0] // 64, minlength=16)
    wanted = np.sum(sigma >= 0) / 16
    assert ((counts - wanted) ** 2 / wanted).sum() < 37.7  # chi², 15 degrees


def test_the_largest_draw_is_in_range():
    largest = tf.fill([1, moco.DRAWS], np.nextafter(np.float32(1), 0))
    order, strengths, _, _ = moco._parameters(largest)
    assert order[0].numpy().tolist() == [-1] * 4
    assert strengths[0].numpy().tolist() == [HIGH, HIGH, HIGH, 25]


def test_without_blur_all_else_is_as_drawn():
    x, numbers = images(), random_draws(4)
    numbers[:, -2:] = 0.1, 0.9  # all are blurred
    none = moco.without_blur(tf.constant(numbers)).numpy()
    for row, plain in zip(numbers, none, strict=True):
        sharp = row.copy()
        sharp[-2] = 0.9
        np.testing.assert_array_equal(color(x, plain), color(x, sharp))
        assert (color(x, row) != color(x, plain)).any()
