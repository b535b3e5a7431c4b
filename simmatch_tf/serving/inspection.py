"""What a run makes of its test images: errors, doubts, neighbours."""

import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

from simmatch_tf import config as config_lib
from simmatch_tf import terminal
from simmatch_tf.data import cropping, splits
from simmatch_tf.data.sources import dataset_names
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.data.sources import tfds as tfds_source
from simmatch_tf.distributed import strategies
from simmatch_tf.evaluation import evaluator as evaluator_lib
from simmatch_tf.evaluation import metrics
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.serving import classifier, loading, mistakes, thumbnails
from simmatch_tf.training import inputs, results, workdir

# Test images beyond which a page would take too long.
MOST = 20_000
_AT_ONCE = 64


class Inspector:
    """Looks at runs one after the other; runs of one dataset load it once."""

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        tfds_dir: str | None = None,
        neighbors: int = 5,
        batch_size: int = 256,
        images: int = 24,
    ) -> None:
        """Takes what holds for all runs.

        Args:
            data_dir: Where the runs' --data_dir is now; None: as it was.
            tfds_dir: Likewise their --tfds_dir.
            neighbors: Labeled images shown beside each image, at most.
            batch_size: Images at once.
            images: Test images to show of each kind.
        """
        self._folders = data_dir, tfds_dir
        self._neighbors, self._images = neighbors, images
        self._batch_size = batch_size
        self._sources: dict[tuple, source_lib.Source] = {}

    def inspect(
        self,
        folder: workdir.Workdir,
        result: results.Result,
        *,
        pictures: bool = True,
    ) -> mistakes.Found:
        """Scores a finished run, and chooses images to look at.

        Args:
            folder: Of the run.
            result: What it came to.
            pictures: Whether images are wanted at all.

        Raises:
            InputError: The run cannot be loaded, or its images are not at
                hand or have changed since. Nothing is downloaded.
        """
        if result.test_images > MOST:
            raise InputError(
                f"{result.test_images:,} test images are more than the "
                f"{MOST:,} that are looked at for a page; what evaluate writes "
                "into the workdir is taken instead"
            )
        terminal.say(f"looking at the test images of {folder.path}")
        config = folder.read_config().moved(*self._folders)
        _check_at_hand(config)
        _check_unchanged(folder, config)
        source = self._source(config)
        split = splits.read(folder.split, source)
        scored_on, images, places = inputs.scored_images(
            source, split.validation
        )
        run = loading.run(folder.path, neighbors=self._neighbors)
        if run.step != result.steps:
            raise InputError(
                f"{folder.checkpoints}: the last checkpoint is of step "
                f"{run.step}, the result of step {result.steps}"
            )
        how = run.classifier.preprocessing
        evaluator = evaluator_lib.Evaluator(
            strategies.one(),
            {"record": run.classifier.network},
            self._batch_size,
            side=how.image_shape[0],
            resize=how.resize,
            parallel_calls=config.parallel_calls,
        )
        logits = evaluator.logits(images, places)["record"]
        labels = images.labels[places]
        most = self._images if pictures else 0
        chosen = mistakes.choose(logits, labels, most)
        shown = _show(run, images, places, logits, chosen)
        slots = {n["slot"] for each in shown.values() for n in each.neighbors}
        return mistakes.Found(
            report=metrics.describe(logits, labels),
            scored_on=scored_on,
            images=len(places),
            errors=chosen.errors,
            wrong=[shown[place] for place in chosen.wrong],
            uncertain=[shown[place] for place in chosen.uncertain],
            neighbors=thumbnails.of_slots(run, source, sorted(slots)),
            why_not=loading.WHY_NO_NEIGHBORS.get(run.memory, ""),
        )

    def _source(self, config: config_lib.Config) -> source_lib.Source:
        key = (
            config.dataset,
            config.data_dir,
            config.tfds_dir,
            config.image_size,
            config.on_bad_image,
        )
        if key not in self._sources:
            self._sources[key] = inputs.make_source(config)
        return self._sources[key]


def _check_at_hand(config: config_lib.Config) -> None:
    """Checks that a dataset can be read without preparing it first.

    Raises:
        InputError: It cannot.
    """
    if config.dataset == "custom":
        raise InputError("the run's images were given from Python")
    dataset_names.check(config.dataset, config.tfds_dir)
    root = config.data_dir
    if root is not None and not pathlib.Path(root).expanduser().is_dir():
        raise InputError(
            f"{root}: no such folder; --data_dir says where the images are"
        )
    if config.dataset in dataset_names.OWN:
        return
    found = tfds_source.outline(
        config.dataset, tfds_dir=config.tfds_dir, image_size=config.image_size
    )
    if found.train_images is None:
        raise InputError(
            f"{config.dataset} is not prepared here; --tfds_dir says where it "
            "is"
        )


def _check_unchanged(
    folder: workdir.Workdir, config: config_lib.Config
) -> None:
    """Checks that a run's images are those that it began with.

    Raises:
        InputError: They are not: what it makes of them is not its result.
    """
    if not folder.data.is_file():
        return  # imported, or of an older version
    changes = folder.data_changes(config, images_only=True)
    if changes:
        raise InputError(
            f"{folder.path}: its images are not those that it began with: "
            f"{changes}"
        )


def _show(
    run: loading.Run,
    images: source_lib.Images | source_lib.Encoded,
    places: np.ndarray,
    logits: np.ndarray,
    chosen: mistakes.Choice,
) -> dict[int, mistakes.Shown]:
    """The chosen images: which of the scored ones → how it is seen."""
    which = list(dict.fromkeys([*chosen.wrong, *chosen.uncertain]))
    how = run.classifier.preprocessing
    names = run.classifier.class_names
    probabilities = mistakes.softmax(logits)
    found = {}
    for start in range(0, len(which), _AT_ONCE):
        part = which[start : start + _AT_ONCE]
        pixels = cropping.whole(
            images,
            tf.constant(places[part], tf.int64),
            side=how.image_shape[0],
            resize=how.resize,
        )
        neighbors = _neighbors(run.classifier, pixels)
        for place, shown, near in zip(
            part, pixels.numpy(), neighbors, strict=True
        ):
            number = int(places[place])
            label, p = int(images.labels[number]), probabilities[place]
            found[place] = mistakes.Shown(
                name=images.names[number]
                if images.names
                else f"image {number}",
                true=names[label],
                predicted=names[int(p.argmax())],
                confidence=float(p.max()),
                true_confidence=float(p[label]),
                picture=thumbnails.jpeg(shown),
                neighbors=near,
            )
    return found


def _neighbors(
    made: classifier.Classifier, pixels: tf.Tensor
) -> list[list[dict[str, Any]]]:
    """The labeled images that each image resembles most, none without any."""
    if made.labeled is None:
        return [[] for _ in range(len(pixels))]
    found = made.explain(images=tf.cast(pixels, made.input_dtype))
    slots, ids, classes, cosines = (
        found[name].numpy()
        for name in (
            "neighbor_slots",
            "neighbor_ids",
            "neighbor_classes",
            "similarities",
        )
    )
    return [
        [
            {
                "slot": int(slots[i, k]),
                "id": ids[i, k].decode(),
                "class": classes[i, k].decode(),
                "similarity": float(cosines[i, k]),
            }
            for k in range(made.neighbors)
        ]
        for i in range(len(slots))
    ]
