"""Opens what `train` and `export` wrote: a run's folder, or an export."""

import abc
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from simmatch_tf import config as config_lib
from simmatch_tf import preflight, runtime, terminal
from simmatch_tf.data import splits
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.distributed import strategies
from simmatch_tf.flags import errors
from simmatch_tf.flags.errors import InputError
from simmatch_tf.modules import memory as memory_lib
from simmatch_tf.serving import classifier as classifier_lib
from simmatch_tf.serving import preprocessing, thumbnails, versions
from simmatch_tf.training import (
    checkpoints,
    initial,
    inputs,
    results,
    state,
    workdir,
)

# Files in the assets of an export.
CLASS_NAMES = initial.CLASS_NAMES
LABELED = "labeled_images.json"
PREPROCESSING = "preprocessing.json"
# Network → the attributes of an algorithm that lead to it.
_PLACES = {"student": ("student",), "ema": ("teacher", "model")}
# Variables of a memory bank.
_TENSORS = ("features", "labels", "written")
_EMPTY_MEMORY = (
    "the run's memory was not written yet: nothing can be explained by it"
)


@dataclasses.dataclass(frozen=True)
class Trained:
    """Networks of a run, and its memory bank.

    Attributes:
        networks: "student", "ema" or "baseline" → network.
        weights_of_record: "student" or "ema": those of the run's result; None
            if they are not known.
        step: Training steps done.
        memory: `features` [K, D], `labels` [K] and `written` [K] of the memory
            bank, see `memory.MemoryBuffer`; None without one.
    """

    networks: dict[str, keras.Model]
    weights_of_record: str | None
    step: int
    memory: dict[str, np.ndarray] | None


@runtime.pinned()
def read_networks(folder: workdir.Workdir, *names: str | None) -> Trained:
    """Reads trained networks of a run.

    Those of a finished run come from its model.keras and, for other weights,
    from its last checkpoint. Otherwise all state is restored from the last
    checkpoint that can be read.

    Args:
        folder: The run's folder.
        *names: "student" or "ema"; None: the weights of record.

    Raises:
        InputError: There is no run or no checkpoint, or they do not belong
            together.
    """
    try:
        if trained := _read_finished(folder, names):
            return trained
    except Exception as error:  # damaged files raise errors of many types
        terminal.warn(
            f"{folder.model} is not used ({errors.reason(error)}); the last "
            "checkpoint is restored"
        )
    return _read_checkpoint(folder)


def _read_finished(
    folder: workdir.Workdir, names: Sequence[str | None]
) -> Trained | None:
    """Reads networks without their optimizer; None without a model.keras."""
    if not folder.finished():
        return None
    result = results.read(folder.results)
    index = folder.checkpoints / f"step_{result.steps:08d}.index"
    if index != max(folder.checkpoints.glob("step_*.index"), default=None):
        return None  # the run was continued
    prefix = str(index.with_suffix(""))
    networks = {}
    with runtime.seeded(0), strategies.one().scope():
        for name in names:
            name = name or result.weights_of_record
            networks[name] = state.saved_model(folder)
            if networks[name] is None:
                return None
            if name != result.weights_of_record:
                _read_weights(networks[name], _PLACES[name], prefix)
    reader = tf.train.load_checkpoint(prefix)
    keys = {
        name: f"algorithm/memory/{name}/.ATTRIBUTES/VARIABLE_VALUE"
        for name in _TENSORS
    }
    memory = None
    if all(map(reader.has_tensor, keys.values())):
        memory = {name: reader.get_tensor(key) for name, key in keys.items()}
    return Trained(networks, result.weights_of_record, result.steps, memory)


def _read_checkpoint(folder: workdir.Workdir) -> Trained:
    """Restores all state of a run from its last checkpoint."""
    algorithm, _, step = state.restore(folder.path)
    bank, memory = getattr(algorithm, "memory", None), None
    if isinstance(bank, memory_lib.MemoryBuffer):
        memory = {name: getattr(bank, name).numpy() for name in _TENSORS}
    return Trained(
        algorithm.networks(), algorithm.evaluated_weights, step, memory
    )


def _read_baseline(folder: workdir.Workdir) -> Trained:
    """Reads the baseline that is kept as a model; it needs no checkpoint."""
    record = None
    if folder.finished():
        with contextlib.suppress(InputError):  # damaged
            record = results.read(folder.results).weights_of_record
    networks = {workdir.BASELINE: state.baseline(folder)}
    return Trained(networks, record, step=0, memory=None)


def _digest(model: keras.Model) -> str:
    """Returns a hash of a network's weights."""
    digest = hashlib.sha256()
    for variable in model.variables:
        array = keras.ops.convert_to_numpy(variable)
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _read_weights(
    model: keras.Model, place: Sequence[str], prefix: str
) -> None:
    """Reads the weights of a network from a checkpoint.

    Args:
        model: A network of the same architecture; overwritten.
        place: Attributes that lead from the saved algorithm to the network.
        prefix: The checkpoint.
    """
    node = model
    for attribute in ("algorithm", *place)[::-1]:
        node = tf.train.Checkpoint(**{attribute: node})
    node.read(prefix).expect_partial().assert_existing_objects_matched()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(abc.ABC):
    """A run or an export, ready to predict.

    Attributes:
        classify: Images [N, H, W, C] → outputs as of `Classifier.classify`.
        explain: Images → outputs as of `Classifier.explain`, or None.
        why_not: Why there is no `explain`, or "".
        neighbors: Number of neighbors that `explain` lists for each image.
        class_names: L names.
        preprocessing: How encoded images become `classify`'s input.
        input_dtype: Data type of the images.
        identity: Tells this model from any other, as a JSON object.
        accuracy: Its measured accuracy, see `versions.accuracy`.
        calibration: How its confidences are calibrated, see
            `versions.calibration`; None: they are not.
    """

    classify: Callable[..., dict[str, tf.Tensor]]
    explain: Callable[..., dict[str, tf.Tensor]] | None
    why_not: str
    neighbors: int
    class_names: list[str]
    preprocessing: preprocessing.Preprocessing
    input_dtype: str
    identity: dict[str, Any]
    accuracy: dict[str, Any] | None
    calibration: dict[str, Any] | None

    @property
    def note(self) -> str:
        """Whether confidences are calibrated, and how far off they are."""
        text = versions.confidences(self.calibration, self.accuracy)
        return f"Confidences are {text}."

    @abc.abstractmethod
    def thumbnails(self, slots: Sequence[int]) -> dict[int, bytes]:
        """Returns JPEGs of labeled images, as far as they are known, by slot.

        Args:
            slots: Memory slots.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Model):
    """The classifier of a run.

    Attributes:
        classifier: See `classifier.Classifier`.
        config: The run's flags.
        moved: The same with the present location of its images.
        content: The content of its split file.
        data: The file that lists the images that the run began with.
        step: Training steps done.
        weights: "student", "ema" or "baseline": those of the classifier.
        weights_of_record: "student" or "ema": those of the run's result; None
            if they are not known.
    """

    classifier: classifier_lib.Classifier
    config: config_lib.Config
    moved: config_lib.Config
    content: dict[str, Any]
    data: pathlib.Path
    step: int
    weights: str
    weights_of_record: str | None

    def thumbnails(
        self, slots: Sequence[int], source: source_lib.Source | None = None
    ) -> dict[int, bytes]:
        """Returns JPEGs of labeled images, as far as they are known, by slot.

        Args:
            slots: Memory slots.
            source: The run's dataset; by default it is read.
        """
        try:
            source = source or inputs.make_source(self.moved)
        except InputError as error:
            terminal.warn(f"no pictures of the labeled images: {error}")
            return {}
        return thumbnails.of_slots(
            source,
            slots,
            content=self.content,
            data=self.data,
            preprocess=self.preprocessing,
        )


def run(
    path: str | os.PathLike,
    *,
    weights: str | None = None,
    neighbors: int = 5,
    input_dtype: str = "uint8",
    data_dir: str | None = None,
    tfds_dir: str | None = None,
) -> Run:
    """Loads the classifier of a run.

    Args:
        path: The run's folder.
        weights: "student", "ema" or "baseline"; default: the weights of
            record.
        neighbors: See `classifier.Classifier`.
        input_dtype: See `classifier.Classifier`.
        data_dir: Present location of the run's --data_dir.
        tfds_dir: Present location of the run's --tfds_dir.

    Raises:
        InputError: There is no run, no checkpoint or no baseline, or they do
            not belong together.
    """
    folder = workdir.Workdir(path)
    config = folder.read_config()
    content = splits.read_content(folder.split)
    labeled, why_not = None, preflight.NO_MEMORY
    if weights == workdir.BASELINE:
        trained, why_not = _read_baseline(folder), workdir.NO_MEMORY
        checkpoint = _digest(trained.networks[weights])
    else:
        trained = read_networks(folder, weights)
        folder.warn_unfinished(trained.step)
        checkpoint = checkpoints.digest(folder.checkpoints, trained.step)
    weights = weights or trained.weights_of_record
    if trained.memory is not None and preflight.may_have_memory(config):
        labeled = _labeled(trained.memory, config, content)
        why_not = "" if len(labeled.slots) else _EMPTY_MEMORY
    accuracy = calibration = None
    # Damaged results do not keep a run from predicting.
    try:
        accuracy = versions.accuracy(folder, weights, trained.step)
        calibration = versions.calibration(folder, weights, trained.step)
    except (InputError, KeyError, TypeError, AttributeError) as error:
        terminal.warn(f"confidences are not calibrated: {error}")
    classifier = classifier_lib.Classifier(
        trained.networks[weights],
        content["class_names"],
        preprocessing.Preprocessing(
            tuple(content["image_shape"]), config.eval_resize
        ),
        labeled=labeled,
        neighbors=neighbors,
        input_dtype=input_dtype,
        temperature=calibration and calibration["temperature"],
    )
    return Run(
        classify=classifier.classify,
        explain=None if why_not else classifier.explain,
        why_not=why_not,
        neighbors=classifier.neighbors,
        class_names=classifier.class_names,
        preprocessing=classifier.preprocessing,
        input_dtype=input_dtype,
        identity={
            "run": os.path.realpath(path),
            "checkpoint": checkpoint,
            "step": trained.step,
            "weights": weights,
        }
        # An output that is continued must not have both kinds of confidences.
        | ({"temperature": calibration["temperature"]} if calibration else {}),
        accuracy=accuracy,
        calibration=calibration,
        classifier=classifier,
        config=config,
        moved=folder.with_side(config.moved(data_dir, tfds_dir)),
        content=content,
        data=folder.data,
        step=trained.step,
        weights=weights,
        weights_of_record=trained.weights_of_record,
    )


def _labeled(
    memory: dict[str, np.ndarray],
    config: config_lib.Config,
    content: dict[str, Any],
) -> classifier_lib.Labeled:
    """Returns the labeled images whose slots of the memory were written."""
    names, values = thumbnails.slot_names(content), config.values()
    slots = np.flatnonzero(memory["written"] >= 0)
    return classifier_lib.Labeled(
        features=memory["features"][slots],
        slots=slots,
        labels=memory["labels"][slots],
        ids=[names[slot] for slot in slots],
        temperature=values["temperature"],
        alpha=values["alpha"],
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(Model):
    """A loaded SavedModel of `export`.

    Attributes:
        path: The version's folder.
        signatures: Name → function.
        card: Its model card.
        module: What was loaded; the signatures do not keep its variables.
    """

    path: pathlib.Path
    signatures: dict[str, Any]
    card: dict[str, Any]
    module: Any = dataclasses.field(repr=False)

    def thumbnails(self, slots: Sequence[int]) -> dict[int, bytes]:
        """See `Model.thumbnails`."""
        return thumbnails.read_archive(self.path, slots)


def export(path: pathlib.Path) -> Export:
    """Loads an export.

    Args:
        path: The version's folder.

    Raises:
        InputError: It cannot be loaded, or was not written by `export`.
    """
    preflight.silence_onednn()
    try:
        module = tf.saved_model.load(str(path))
    except Exception as error:  # the loader raises errors of many types
        lines = str(error).splitlines() or [type(error).__name__]
        raise InputError(f"{path}: cannot be loaded ({lines[0]})") from error
    try:
        class_names, preprocess = (
            json.loads((path / "assets" / name).read_text("utf-8"))
            for name in (CLASS_NAMES, PREPROCESSING)
        )
        card = json.loads((path / versions.CARD).read_text("utf-8"))
        signatures = dict(module.signatures)
        classify = signatures[classifier_lib.SERVED]
        explain, neighbors, why_not = signatures.get("explain"), 0, ""
        if explain is not None:
            neighbors = explain.structured_outputs["similarities"].shape[1]
        else:
            why_not = (
                f"{path} was exported without explain: the run's memory of "
                "labeled images was empty, or it has none"
            )
        specs = classify.structured_input_signature[1]
        return Export(
            classify=classify,
            explain=explain,
            why_not=why_not,
            neighbors=neighbors,
            class_names=class_names,
            preprocessing=preprocessing.Preprocessing.from_dict(preprocess),
            input_dtype=specs["images"].dtype.name,
            identity={"export": os.path.realpath(path), "date": card["date"]},
            accuracy=versions.evaluated(
                path / workdir.EVALUATION,
                card["model"]["weights"],
                card["model"]["step"],
            )
            or card["accuracy"],
            calibration=card.get("calibration"),
            path=path,
            signatures=signatures,
            card=card,
            module=module,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: is no export of simmatch_tf.export ({error})"
        ) from None


def open_model(
    model: str,
    *,
    weights: str | None = None,
    neighbors: int | None = None,
    data_dir: str | None = None,
    tfds_dir: str | None = None,
) -> Model:
    """Opens a run or an export.

    Args:
        model: Folder of a run or an export, as in --model.
        weights: "student", "ema" or "baseline" of a run; default: the weights
            of record.
        neighbors: Number of neighbors that `explain` gives, of a run.
        data_dir: Present location of a run's --data_dir.
        tfds_dir: Present location of a run's --tfds_dir.

    Raises:
        InputError: It cannot be loaded, or an option does not apply to it.
    """
    kind, path = preflight.kind_of_model("model", model)
    if kind != "workdir":
        if weights is not None:
            raise InputError(
                f"weights={weights}: applies to a run; an export has the "
                "weights it was made with"
            )
        return export(path)
    state.check_weights(weights)
    opened = run(
        path,
        weights=weights,
        neighbors=neighbors or 5,
        data_dir=data_dir,
        tfds_dir=tfds_dir,
    )
    if (neighbors or 0) > opened.neighbors:
        raise InputError(
            f"--neighbors={neighbors}: must be at most the number of labeled "
            f"images in the run's memory, which is {opened.neighbors}"
        )
    return opened
