"""Scores runs and exports on the images that results are measured on.

`evaluate` needs the logits, `report` also the images to look at: those that are
wrong and those that are least certain.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from simmatch_tf import config as config_lib
from simmatch_tf import io, preflight, registry, terminal
from simmatch_tf.data import decoding, splits
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.distributed import strategies
from simmatch_tf.evaluation import evaluator as evaluator_lib
from simmatch_tf.evaluation import metrics
from simmatch_tf.flags.errors import InputError
from simmatch_tf.serving import classifier as classifier_lib
from simmatch_tf.serving import loading, thumbnails, versions
from simmatch_tf.training import inputs, results, state, workdir

# With more test images than this, inspecting a run would take too long.
MOST = 20_000
_BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True)
class Scores:
    """Logits of networks on the images that results are measured on.

    Attributes:
        logits: Name of a network → float32 [N, L], without a temperature. A
            run has "student", "ema" and, if it is kept, "baseline"; an export
            one of them, whose logits are known up to a constant in each row.
        labels: Classes [N].
        about: Entries for the report: step, weights of record, classes,
            images.
        calibrations: Network → how its confidences are calibrated, see
            `versions.calibration`; None: they are not.
        averaged: Network → name of copies of an image → their mean logits
            [N, L]; see `Algorithm.evaluation_copies`.
    """

    logits: dict[str, np.ndarray]
    labels: np.ndarray
    about: dict[str, Any]
    calibrations: dict[str, dict[str, Any] | None]
    averaged: dict[str, dict[str, np.ndarray]] = dataclasses.field(
        default_factory=dict
    )

    def describe(self, name: str, bins: int) -> dict[str, Any]:
        """Returns the figures of a network.

        Returns:
            Those of `metrics.describe`; of calibrated confidences also
            `fitted_on` and `fitted_images`, what the temperature was fitted on;
            and `averaged`, name of copies → accuracies, if there are any.
        """
        calibration = self.calibrations[name]
        figures = _figures(
            self.logits[name],
            self.labels,
            calibration,
            self.about["scored_on"],
            bins,
        )
        if calibration is not None:
            figures["fitted_on"] = calibration["fitted_on"]
            figures["fitted_images"] = calibration["images"]
        if averaged := self.averaged.get(name):
            figures["averaged"] = metrics.accuracy(averaged, self.labels)
        return figures


def _figures(
    logits: np.ndarray,
    labels: np.ndarray,
    calibration: dict[str, Any] | None,
    scored_on: str,
    bins: int = metrics.BINS,
) -> dict[str, Any]:
    """Returns `metrics.describe` of logits without their temperature."""
    return metrics.describe(
        logits,
        labels,
        temperature=calibration and calibration["temperature"],
        fitted_on_these=bool(calibration)
        and calibration["fitted_on"] == scored_on,
        bins=bins,
    )


def of_run(
    folder: workdir.Workdir, config: config_lib.Config, batch_size: int
) -> Scores:
    """Scores both networks of a run's last checkpoint, and its baseline.

    Args:
        folder: The run's folder.
        config: The run's flags, with the present location of its images.
        batch_size: Images in a batch.

    Raises:
        InputError: The run or its images cannot be loaded.
    """
    terminal.say(f"loading {folder.path}")
    trained = loading.read_networks(folder, "student", "ema")
    folder.warn_unfinished(trained.step)
    networks = dict(trained.networks)
    if folder.baseline.is_file():
        try:
            networks[workdir.BASELINE] = state.baseline(folder)
        except InputError as error:
            terminal.warn(f"{error}; the baseline is left out")
    terminal.say(f"reading the images of {config.dataset}")
    source = inputs.make_source(folder.with_side(config))
    split = splits.read(folder.split, source)
    scored_on, images, indices = inputs.scored_images(source, split.validation)
    if scored_on is None:
        raise InputError(
            f"{folder.path}: {source.name} has no test images, and the run set "
            "no labeled ones aside to evaluate it on; a run with "
            "--validation_fraction=0.2 does"
        )
    method = registry.algorithms.find(config.algorithm)[0].value
    copies = method.evaluation_copies
    evaluator = evaluator_lib.Evaluator(
        strategies.one(),
        networks
        | {
            f"{name}, {title}": _averaged(trained.networks[name], function)
            for name in trained.networks
            for title, function in copies.items()
        },
        batch_size,
        side=source.image_shape[0],
        resize=config.eval_resize,
        parallel_calls=config.parallel_calls,
    )
    terminal.say(f"scoring {len(indices)} {scored_on} images")
    about = {
        "step": trained.step,
        "weights_of_record": trained.weights_of_record,
        "class_names": list(source.class_names),
        "scored_on": scored_on,
        "test_images": len(indices),
    }
    logits = evaluator.logits(images, indices)
    averaged = {
        name: {title: logits.pop(f"{name}, {title}") for title in copies}
        for name in trained.networks
    }
    calibrations = {
        name: versions.calibration(folder, name, trained.step)
        for name in logits
    }
    labels = images.labels[indices]
    return Scores(logits, labels, about, calibrations, averaged)


def _averaged(
    model: keras.Model, copies: Callable[[tf.Tensor], tf.Tensor]
) -> Callable[..., dict[str, tf.Tensor]]:
    """Returns a network whose logits are the mean of those of copies.

    Args:
        model: The network.
        copies: See `Algorithm.evaluation_copies`.
    """

    def network(images: tf.Tensor, training: bool) -> dict[str, tf.Tensor]:
        logits = model(copies(images), training=training)["logits"]
        shape = [-1, images.shape[0], logits.shape[1]]
        return {"logits": tf.reduce_mean(tf.reshape(logits, shape), axis=0)}

    return network


def of_export(
    path: pathlib.Path, config: config_lib.Config, batch_size: int
) -> Scores:
    """Scores an export on its run's test images.

    Args:
        path: The version's folder.
        config: The flags of its run, with the present location of its images.
        batch_size: Images in a batch.

    Raises:
        InputError: The export or the images cannot be loaded, or the images
            have other classes than the export.
    """
    terminal.say(f"loading {path}")
    export = loading.export(path)
    terminal.say(f"reading the images of {config.dataset}")
    source = inputs.make_source(config)
    if [io.nfc(str(name)) for name in source.class_names] != [
        io.nfc(str(name)) for name in export.class_names
    ]:
        raise InputError(
            f"--export={path}: has the classes {export.class_names}, but "
            f"{source.name} has {list(source.class_names)}"
        )
    changes = _changed_training_images(export, source)
    if source.test is None:
        raise InputError(
            f"--export={path}: {source.name} has no test images to evaluate "
            "it on"
        )
    count = len(source.test)
    terminal.say(f"scoring {count} test images")
    classify = export.signatures[classifier_lib.SERVED]
    probabilities = np.concatenate(
        list(
            evaluator_lib.outputs(
                lambda batch: classify(
                    images=tf.cast(batch, export.input_dtype)
                )["probabilities"],
                source.test,
                np.arange(count),
                batch_size=min(batch_size, count),
                side=export.preprocessing.image_shape[0],
                resize=export.preprocessing.resize,
                parallel_calls=config.parallel_calls,
            )
        )
    )
    weights = export.card["model"]["weights"]
    about = {
        "step": export.card["model"]["step"],
        "weights_of_record": weights,
        "class_names": export.class_names,
        "scored_on": "test",
        "test_images": count,
        **changes,
    }
    # The softmax of a softmax's logarithm is that softmax.
    logits = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
    if export.calibration is not None:
        logits *= export.calibration["temperature"]
    return Scores(
        {weights: logits},
        source.test.labels,
        about,
        {weights: export.calibration},
    )


def _changed_training_images(
    export: loading.Export, source: source_lib.Source
) -> dict[str, str]:
    """Entries for the report if an export was trained on other images."""
    trained_on = export.card["data"]
    if splits.is_of(trained_on, source):
        return {}
    terminal.warn(
        f"{export.path}: the training images of {source.name} are not those "
        f"that it was trained on ({trained_on['train_images']} then, "
        f"{len(source.train)} now, or other names or classes): present test "
        "images may have been among them, which would make the result too good"
    )
    return {
        "images_changed": "the training images' names or classes are not those "
        "of the export"
    }


@dataclasses.dataclass(frozen=True)
class InspectedImage:
    """An image as the network sees it, and its prediction.

    Attributes:
        name: Name of its file, or its number.
        true: Its class.
        predicted: The most probable class.
        confidence: Probability of that class.
        true_confidence: Probability of its true class.
        picture: JPEG; None if it cannot be shown.
        neighbors: The labeled images most similar to it, the most similar
            first: `slot`, `id`, `class` and `similarity`.
    """

    name: str
    true: str
    predicted: str
    confidence: float
    true_confidence: float
    picture: bytes | None
    neighbors: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Inspection:
    """A run's predictions on the images that its result is measured on.

    Attributes:
        report: See `metrics.describe`.
        scored_on: "test" or "validation".
        images: Number of images.
        errors: Number of wrong predictions.
        wrong: Some of the wrong predictions, the most confident first.
        uncertain: The least certain predictions, the least certain first.
        neighbors: Memory slot → JPEG of the labeled image.
        why_not: Why there are no neighbors, or "".
    """

    report: dict[str, Any]
    scored_on: str
    images: int
    errors: int
    wrong: list[InspectedImage]
    uncertain: list[InspectedImage]
    neighbors: dict[int, bytes]
    why_not: str


def rank(
    logits: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks images by how much they deserve a look.

    Args:
        logits: [N, L].
        labels: Classes [N].

    Returns:
        Indices of the images predicted wrong, the most confident first; and of
        all images, the least certain first.
    """
    confidence = metrics.softmax(logits).max(axis=1)
    wrong = np.flatnonzero(logits.argmax(axis=1) != labels)
    order = np.argsort(-confidence[wrong], kind="stable")
    return wrong[order], np.argsort(confidence, kind="stable")


@dataclasses.dataclass
class Inspector:
    """Inspects several runs; runs on the same dataset load it once.

    Attributes:
        images: Number of wrong and of uncertain images to show.
        neighbors: Number of labeled images to show for each of them.
        batch_size: Images in a batch.
        data_dir: Present location of the runs' --data_dir.
        tfds_dir: Present location of the runs' --tfds_dir.
    """

    images: int = 24
    neighbors: int = 5
    batch_size: int = 256
    data_dir: str | None = None
    tfds_dir: str | None = None
    _sources: dict[tuple, source_lib.Source] = dataclasses.field(
        default_factory=dict, init=False
    )

    def inspect(
        self,
        folder: workdir.Workdir,
        result: results.Result,
        *,
        pictures: bool = True,
    ) -> Inspection:
        """Scores a finished run, and chooses images to look at.

        Args:
            folder: The run's folder.
            result: The run's result.
            pictures: Whether to show any images.

        Raises:
            InputError: The run cannot be loaded; or its images are not on this
                machine, as nothing is downloaded, or have changed.
        """
        if result.test_images > MOST:
            raise InputError(
                f"its {result.test_images:,} test images are more than the "
                f"{MOST:,} up to which a page scores them; run evaluate, whose "
                "file in the workdir is read instead"
            )
        terminal.say(f"scoring the test images of {folder.path}")
        config = folder.read_config().moved(self.data_dir, self.tfds_dir)
        _check_images(folder, config)
        source = self._source(folder.with_side(config))
        split = splits.read(folder.split, source)
        scored_on, images, indices = inputs.scored_images(
            source, split.validation
        )
        run = loading.run(folder.path, neighbors=self.neighbors)
        if run.step != result.steps:
            raise InputError(
                f"{folder.checkpoints}: the last checkpoint is of step "
                f"{run.step}, the result of step {result.steps}"
            )
        evaluator = evaluator_lib.Evaluator(
            strategies.one(),
            {"record": run.classifier.network},
            self.batch_size,
            side=run.preprocessing.image_shape[0],
            resize=run.preprocessing.resize,
            parallel_calls=config.parallel_calls,
        )
        logits = evaluator.logits(images, indices)["record"]
        labels = images.labels[indices]
        report = _figures(logits, labels, run.calibration, scored_on)
        # From here on confidences are those of `predict`.
        logits = logits / (run.classifier.temperature or 1.0)
        wrong, uncertain = rank(logits, labels)
        errors, most = len(wrong), self.images if pictures else 0
        wrong, uncertain = wrong[:most].tolist(), uncertain[:most].tolist()
        chosen = list(dict.fromkeys([*wrong, *uncertain]))
        shown = _show(run, images, indices, logits, chosen)
        slots = {n["slot"] for each in shown.values() for n in each.neighbors}
        return Inspection(
            report=report,
            scored_on=scored_on,
            images=len(indices),
            errors=errors,
            wrong=[shown[place] for place in wrong],
            uncertain=[shown[place] for place in uncertain],
            neighbors=run.thumbnails(sorted(slots), source),
            why_not=run.why_not,
        )

    def _source(self, config: config_lib.Config) -> source_lib.Source:
        key = (
            config.dataset,
            config.source,
            config.data_dir,
            config.labels_csv,
            config.labels_from,
            config.tfds_dir,
            config.image_size,
            config.on_bad_image,
        )
        if key not in self._sources:
            self._sources[key] = inputs.make_source(config)
        return self._sources[key]


def _check_images(folder: workdir.Workdir, config: config_lib.Config) -> None:
    """Checks that a run's images are here, and those that it began with.

    Raises:
        InputError: They are not; nothing is downloaded.
    """
    facts = registry.sources.find(config.dataset)[0].facts
    if facts.get("from_python"):
        raise InputError("the run's images were given from Python")
    preflight.check_folder("data_dir", config.data_dir)
    if "is_prepared" in facts and not facts["is_prepared"](config):
        raise InputError(
            f"{config.dataset} is not prepared here; give its place by "
            "--tfds_dir"
        )
    # Unless the run was imported, or is of an older version.
    changes = folder.data.is_file() and folder.data_changes(
        config, images_only=True
    )
    if changes:
        raise InputError(
            f"{folder.path}: its images are not those that it began with: "
            f"{changes}"
        )


def _show(
    run: loading.Run,
    images: source_lib.Images | source_lib.Encoded,
    indices: np.ndarray,
    logits: np.ndarray,
    chosen: list[int],
) -> dict[int, InspectedImage]:
    """Shows the chosen images: index among the scored ones → image."""
    names = run.class_names
    probabilities = metrics.softmax(logits)
    shown = {}
    for start in range(0, len(chosen), _BATCH_SIZE):
        part = chosen[start : start + _BATCH_SIZE]
        batch = decoding.centre_crops(
            images,
            tf.constant(indices[part], tf.int64),
            side=run.preprocessing.image_shape[0],
            resize=run.preprocessing.resize,
        )
        neighbors = [[]] * len(part)
        if run.explain is not None:
            outputs = run.explain(images=tf.cast(batch, run.input_dtype))
            neighbors = classifier_lib.neighbors(outputs)
        for place, pixels, nearest in zip(
            part, batch.numpy(), neighbors, strict=True
        ):
            index, p = int(indices[place]), probabilities[place]
            label = int(images.labels[index])
            shown[place] = InspectedImage(
                name=images.names[index] if images.names else f"image {index}",
                true=names[label],
                predicted=names[int(p.argmax())],
                confidence=float(p.max()),
                true_confidence=float(p[label]),
                picture=thumbnails.jpeg(pixels),
                neighbors=nearest,
            )
    return shown
