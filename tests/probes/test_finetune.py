"""Fine-tuning: a grid of supervised runs."""

import numpy as np
import pytest

from simmatch_tf import transfer
from simmatch_tf.data.sources import source
from simmatch_tf.flags.errors import InputError
from simmatch_tf.probes import finetune, tasks
from simmatch_tf.training import loop, state, workdir
from tests.probes import test_features

pytestmark = pytest.mark.slow


def make_task(channels=3, validation=False):
    """Dark and bright images; the class of test images is the other way."""
    rng = np.random.default_rng(0)

    def part(count, channels=channels):
        labels = np.arange(count) % 2
        level = 40 + 120 * labels[:, None, None, None]
        noise = rng.integers(0, 40, [count, 12, 12, channels])
        return source.Images((level + noise).astype(np.uint8), labels)

    return tasks.Task(
        "levels",
        ("dark", "bright"),
        part(40),
        part(8) if validation else None,
        part(10),
        True,
    )


def flags(tmp_path, **values):
    return transfer.TransferConfig(
        **{
            "model": ("keras_cv:resnet18",),
            "datasets": "digits",
            "protocol": "finetune",
            "output": str(tmp_path),
            "batch_size": 8,
            "steps": 6,
            "rates": "0.001,0.05",
            "decays": "0,0.0001",
            "progress": False,
            **values,
        }
    )


@pytest.fixture(scope="module")
def encoder():
    return test_features.make_encoder()


def run(encoder, task, flags):
    grid = finetune.Grid(encoder, task, flags)
    score, details = grid.run()
    told = [(v["rate"], v["decay"], v["score"]) for v in details["validation"]]
    return grid, told, score, details


def test_the_grid_chooses_and_trains_once_more(encoder, tmp_path):
    task = make_task()
    how = flags(tmp_path, decays="0.0001")
    grid, told, score, details = run(encoder, task, how)
    assert [each[:2] for each in told] == [(0.001, 1e-4), (0.05, 1e-4)]
    assert [*flags(tmp_path).grid()] == [
        (0.001, 0), (0.001, 1e-4), (0.05, 0), (0.05, 1e-4),
    ]  # fmt: skip
    best = max(told, key=lambda each: each[2])
    assert (details["rate"], details["decay"]) == best[:2]

    config = workdir.Workdir(
        grid.folder / "rate_0.05_decay_0.0001"
    ).read_config()
    assert config.algorithm == "supervised" and config.schedule == "half_cosine"
    assert config.weight_decay == pytest.approx(1e-4 / 0.05)
    assert config.batch_norm_momentum == 0.9  # max(1 - 10 / 4, 0.9)
    # All weights were trained, from the encoder's.
    network = state.load(details["run"], weights="student")
    assert network.input_shape == (None, 8, 8, 1)
    trained = network.get_layer("wrn_10_1").get_weights()
    for one, other in zip(trained, encoder.weights["backbone"], strict=True):
        assert not np.array_equal(one, other)
    normalize = network.get_layer("normalize").get_weights()
    np.testing.assert_array_equal(normalize, encoder.weights["normalize"])
    # Scored on the test images by the student.
    pixels = finetune._with_channels(task.test, 1)
    logits = _logits(network, pixels)
    assert score == np.mean(logits.argmax(axis=1) == task.test.labels)


def _logits(network, images):
    from simmatch_tf.data import decoding

    crops = decoding.centre_crops(images, np.arange(len(images)), side=8)
    return network(crops, training=False)["logits"].numpy()


def test_a_killed_grid_goes_on(encoder, tmp_path, monkeypatch):
    task = make_task()

    def how(output):
        return flags(tmp_path / output, rates="0.05", decays="0")

    _, told, score, _ = run(encoder, task, how("whole"))

    trained = []
    fit_in = loop.fit_in

    def fit(folder, config, source):
        trained.append(folder.path.name)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return fit_in(folder, config, source)

    monkeypatch.setattr(loop, "fit_in", fit)
    with pytest.raises(KeyboardInterrupt):
        run(encoder, task, how("killed"))
    _, again, rest, _ = run(encoder, task, how("killed"))
    final = "final_rate_0.05_decay_0"
    assert trained == ["rate_0.05_decay_0", final, final]
    assert (again, rest) == (told, score)


def test_official_validation_images_and_colour(tmp_path, monkeypatch):
    encoder = test_features.make_encoder(channels=3)
    task = make_task(channels=1, validation=True)
    seen = []
    fit_in = loop.fit_in

    def fit(folder, config, source):
        assert source.train.images.shape[-1] == 3 and source.flip
        assert source.image_shape == (8, 8, 3)
        seen.append((len(source.train), len(source.test)))
        return fit_in(folder, config, source)

    monkeypatch.setattr(loop, "fit_in", fit)
    how = flags(tmp_path, rates="0.05", decays="0", steps=2)
    _, _, _, details = run(encoder, task, how)
    assert seen == [(40, 8), (48, 10)]
    assert details["steps"] == 2
    # A larger grid goes on from these; another best has a folder of its own.
    how = flags(tmp_path, rates="0.05,0.01", decays="0", steps=2)
    run(encoder, task, how)
    assert seen[2] == (40, 8)


def test_a_rate_that_diverges_is_the_worst(encoder, tmp_path, monkeypatch):
    fit_in = loop.fit_in

    def fit(folder, config, source):
        if config.learning_rate > 1:
            raise FloatingPointError("loss is not finite")
        return fit_in(folder, config, source)

    monkeypatch.setattr(loop, "fit_in", fit)
    how = flags(tmp_path, rates="50,0.01", decays="0", steps=2)
    _, told, _, details = run(encoder, make_task(), how)
    assert [rate for rate, *_ in told] == [0.01, 50.0]
    assert told[1][2] is None and details["rate"] == 0.01
    how = flags(tmp_path, rates="50", decays="0", steps=2)
    with pytest.raises(
        InputError, match="--rates=50: the loss of a network on"
    ):
        run(encoder, make_task(), how)


def test_images_in_memory_must_be_square(encoder, tmp_path):
    task = test_features.make_task()
    with pytest.raises(InputError, match="images are 12×16, but --protocol=f"):
        finetune.Grid(encoder, task, flags(tmp_path))


def test_encoded_colours_and_a_grey_network(encoder, tmp_path, small_tfds):
    task = tasks.load(
        "imagenet2012",
        flags(tmp_path, tfds_dir=small_tfds, datasets="imagenet2012"),
    )
    with pytest.raises(InputError, match="--protocol=linear makes them grey"):
        finetune.Grid(encoder, task, flags(tmp_path))
