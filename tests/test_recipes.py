"""Every recipe takes a real step on data of the right shape."""

import dataclasses
import json
import pathlib

import numpy as np
import PIL.Image
import pytest

import simmatch_tf
from tests import variants

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECIPES = sorted(
    path.stem
    for path in (ROOT / "configs").glob("*.cfg")
    if not path.stem.startswith("base_")
)
# Nothing here changes what a recipe's data or views are.
SHORT = {
    "steps": 1,
    "epochs": None,
    "minutes": None,
    "warmup_epochs": None,
    "matching_start_steps": 0,
    "batch_size": 4,
    "unlabeled_ratio": 2,
}
CLASSES = {"cifar100": 100, "imagenet2012": 1000}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for place in ("labeled/cat", "labeled/dög", "unlabeled/2024"):
        (root / place).mkdir(parents=True)
        for number in range(5):
            size = [*rng.integers(20, 90, 2), 3]
            image = rng.integers(0, 256, size).astype(np.uint8)
            suffix = (".jpg", ".png", ".gif", ".bmp", ".JPEG")[number]
            path = root / place / f"{number}{suffix}"
            PIL.Image.fromarray(image).save(path)
    return str(root)


def stand_in(backbone, folder):
    """A file of new weights, in place of those that a library downloads."""
    import keras

    name = backbone.partition(":")[2]
    path = folder / f"{name}.weights.h5"
    model = getattr(keras.applications, name)(include_top=False, weights=None)
    model.save_weights(path)
    return str(path)


@pytest.fixture(scope="module")
def done():
    return {}


@pytest.fixture(scope="module")
def networks():
    return {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    # Of those that differ in little, one.
    variants.of(
        RECIPES,
        (
            "cifar10_40",
            "cifar100_400",
            "digits_40_teacher",
            "fashion_mnist_40",
            "folder",
            "folder_pretrained",
            "imagenet_10pct",
            "svhn_40",
        ),
    ),
)
def test_one_step(recipe, tmp_path, small_tfds, photos, done, networks):
    words = ["x", f"--flagfile=configs/{recipe}.cfg"]
    if recipe.startswith("folder"):
        words.append(f"--data_dir={photos}")
    config = simmatch_tf.Config.from_argv(words)
    # Some methods need batches of equal size.
    changes = {**SHORT, **config.hyper.defaults}
    changes |= {"tfds_dir": small_tfds, "workdir": str(tmp_path)}
    if config.labels is not None:
        # As many as the small dataset has.
        changes["labels"] = 2 * CLASSES.get(config.dataset, 10)
    if config.dataset == "imagenet2012":
        # The smallest side: at 224 a thousand test images take minutes.
        changes |= {"image_size": 32, "eval_resize": 37}
    if config.init_from is not None:
        changes["init_from"] = stand_in(config.backbone, tmp_path)
    config = dataclasses.replace(config, **changes)
    # Recipes that differ in the number of labels alone are one run here.
    key = repr(dataclasses.replace(config, workdir=None))
    # Each network takes its step once; the wide one is a wider one of another.
    first = networks.setdefault(config.backbone, key)
    if config.backbone == "wrn_28_8" or first != key:
        config = dataclasses.replace(config, backbone="wrn_10_1")
    if key not in done:
        done[key] = simmatch_tf.fit(config)
        split = json.loads((tmp_path / "split.json").read_text("utf-8"))
        assert len(split["labeled"]) == done[key].labels
    result = done[key]
    assert result.steps == 1 and np.isfinite(result.loss)
    assert result.dataset == config.dataset
    if recipe.startswith("imagenet"):
        assert (result.labels, result.unlabeled) == (1000, 1000)
        assert split["names"][7] == "n0007_7.JPEG"
    if recipe.startswith("folder"):
        assert result.scored_on == "validation" and result.test_images == 2
        assert result.class_names == ["cat", "dög"]
        assert (result.labels, result.unlabeled) == (8, 13)
    elif recipe == "stl10_40":
        assert result.unlabeled == 80
