"""Initial weights from elsewhere: what --init_from names."""

import collections
import json
import pathlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import h5py
import keras
import numpy as np
import tensorflow as tf

from simmatch_tf import config as config_lib
from simmatch_tf import io, preflight, runtime, signals
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.evaluation import baselines
from simmatch_tf.flags.errors import InputError
from simmatch_tf.networks import library_backbone, network
from simmatch_tf.training import state

_TITLES = {
    "normalize": "normalization",
    "feature_norm": "LayerNorm of the features",
    "projection_head": "projection head",
}
# File in the assets of an export.
CLASS_NAMES = "class_names.json"
_LISTED = 5  # number of new classes that are named


class Weight(NamedTuple):
    """A weight or statistic.

    Attributes:
        path: Names of its layers and its own, such as "conv1/kernel".
        value: An array.
    """

    path: str
    value: np.ndarray

    @property
    def kind(self) -> tuple[str, tuple[int, ...]]:
        """Name and shape, which its counterpart has, too."""
        shape = self.value.shape
        if library_backbone.is_positions(self.path):
            shape = shape[:-2] + shape[-1:]  # for images of any size
        return self.path.rpartition("/")[2], shape


def initialize(
    algorithm: algorithm_lib.Algorithm,
    init_from: str,
    class_names: Sequence[str],
    published: Sequence[np.ndarray] | None = None,
    fit: Callable[[], baselines.Classifier | None] | None = None,
) -> str:
    """Starts student and teacher from other weights.

    The backbone must match as a whole. The projection head and the
    normalization are copied if their shapes agree. If the weights come with
    class names, classifier rows are copied by name; otherwise the classifier is
    copied only if its shape agrees. Everything else keeps its own weights.

    Args:
        algorithm: The algorithm of a new run.
        init_from: Value of --init_from.
        class_names: Names of the run's L classes.
        published: See `fill`.
        fit: Fits a classifier to the features of the student, which has its
            backbone by then; called if the weights bring no classifier.

    Returns:
        A line that names the parts that were copied.

    Raises:
        InputError: It cannot be read, or has another backbone.
    """
    remarks = fill(
        algorithm.student,
        init_from,
        backbone=f"--backbone={algorithm.config.backbone}",
        class_names=class_names,
        published=published,
    )
    classifier = None
    if fit is not None and remarks.get("classifier", "") is None:
        classifier = fit()
    if classifier is not None:
        _assign_linear(network.parts(algorithm.student), classifier)
        remarks["classifier"] = "fitted to the features of the labeled images"
    algorithm.teacher.copy(algorithm.student)
    taken, new = [], []
    for name, remark in remarks.items():
        title = _TITLES.get(name, name)
        if remark is None:
            new.append(title)
        else:
            taken.append(f"{title} ({remark})" if remark else title)
    text = f"starts from {init_from}: {', '.join(taken)}"
    if new:
        text += f"; not in it in this shape, so new: {', '.join(new)}"
    return text


def _assign_linear(
    parts: Mapping[str, keras.Layer], fitted: baselines.Classifier
) -> None:
    """Gives a network's Dense classifier the logits of a fitted one.

    Standardization becomes a part of its weights. Features are not cut off,
    which matters only for those that hardly vary among the labeled images. A
    class without labels has the least bias of the others.
    """
    kernel, bias = parts["classifier"].trainable_variables
    values = fitted.kernel / fitted.deviation[:, None]
    least = fitted.bias[fitted.known].min()
    biases = np.where(fitted.known, fitted.bias, least)
    kernel.assign(values)
    bias.assign(biases - fitted.mean @ values)


def fill(
    model: keras.Model,
    path: str,
    *,
    backbone: str,
    flag: str = "init_from",
    class_names: Sequence[str] = (),
    published: Sequence[np.ndarray] | None = None,
) -> dict[str, str | None]:
    """Fills a network with other weights; see `initialize`.

    Args:
        model: A network of `network.build`.
        path: Value of the flag.
        backbone: Name of the network's backbone, for a message.
        flag: Name of the flag, for a message.
        class_names: Names of the classes of a network with a classifier.
        published: Result of `fetch`, for --init_from=imagenet; by default it
            is called.

    Returns:
        Part of the network → a remark on how its weights were found, often "";
        None if it keeps its own.

    Raises:
        InputError: The path cannot be read, or has another backbone.
    """
    kind, location = preflight.kind_of_weights(path, flag)
    if kind == config_lib.PUBLISHED and published is None:
        published = fetch(backbone.partition("=")[2])
    parts, remarks = network.parts(model), {}
    try:
        if kind == config_lib.PUBLISHED:
            values, names = dict.fromkeys(parts), None
            values["backbone"] = _in_order(parts["backbone"], published)
        elif kind == "h5" and not _is_whole_model(location):
            values, names = _from_h5(model, location), None
        else:
            weights, names = _read(kind, location)
            values = {
                name: _find(
                    weights,
                    _weights(part.variables),
                    # A BatchNorm's scale and offset look like its own.
                    only_by_path=name == "feature_norm",
                )
                for name, part in parts.items()
            }
        if "classifier" in parts and names is not None:
            values["classifier"], remarks["classifier"] = _rows_by_name(
                weights,
                names,
                _weights(parts["classifier"].variables),
                class_names,
            )
        elif values.get("classifier") is not None:
            remarks["classifier"] = "by its shape alone: no class names in it"
    except InputError as error:
        raise InputError(f"--{flag}={path}: {error}") from None
    if values["backbone"] is None:
        first, *_ = _floats(parts["backbone"].variables)
        raise InputError(
            f"--{flag}={path}: holds another backbone than {backbone} on "
            f"images of {model.input_shape[-1]} channels: its weights (the "
            f"first of shape {tuple(first.shape)}) are not there in their "
            "order and shapes"
        )
    for name, arrays in values.items():
        if arrays is not None:
            variables = _floats(parts[name].variables)
            for variable, array in zip(variables, arrays, strict=True):
                variable.assign(array)
    return {
        name: None if arrays is None else remarks.get(name, "")
        for name, arrays in values.items()
    }


# --------------------------------------------------------------- matching --
def _rows_by_name(
    weights: Sequence[Weight],
    stored_names: Sequence[str],
    own: Sequence[Weight],
    own_names: Sequence[str],
) -> tuple[list[np.ndarray] | None, str]:
    """Fills a classifier row by row, by the names of the classes.

    Args:
        weights: All stored weights.
        stored_names: Names of the stored classes.
        own: The network's own classifier.
        own_names: Names of its L classes.

    Returns:
        Its values, in which new classes keep their own rows, and a remark; or
        None and "" if there is no such classifier or none of the classes.
    """
    stored_names = [io.nfc(str(name)) for name in stored_names]
    own_names = [io.nfc(str(name)) for name in own_names]
    count = len(stored_names)
    shapes = [np.empty([*w.value.shape[:-1], count]) for w in own]
    stored = _find(
        weights,
        [Weight(w.path, e) for w, e in zip(own, shapes, strict=True)],
    )
    # A name that two classes have does not tell which of them it is.
    counts = collections.Counter(stored_names), collections.Counter(own_names)
    known = [n for n in own_names if all(count[n] == 1 for count in counts)]
    if stored is None or not known:
        return None, ""
    to = [own_names.index(name) for name in known]
    from_ = [stored_names.index(name) for name in known]
    values = [w.value.copy() for w in own]
    for array, other in zip(values, stored, strict=True):
        array[..., to] = other[..., from_]
    if len(known) == len(own_names):
        remark = f"all {len(own_names)} classes by name"
        return values, remark + ("" if to == from_ else ", in another order")
    new = [name for name in own_names if name not in known]
    listed = ", ".join(new[:_LISTED]) + (", …" if new[_LISTED:] else "")
    return values, (
        f"{len(known)} of {len(own_names)} classes by name; new: {listed}"
    )


def _floats(variables: Sequence[keras.Variable]) -> list[keras.Variable]:
    """Returns weights and statistics, without states of random generators."""
    return [
        v
        for v in variables
        if "float" in keras.backend.standardize_dtype(v.dtype)
    ]


def _weights(variables: Sequence[keras.Variable]) -> list[Weight]:
    return [
        Weight(v.path, keras.ops.convert_to_numpy(v))
        for v in _floats(variables)
    ]


def _find(
    weights: Sequence[Weight],
    part: Sequence[Weight],
    *,
    only_by_path: bool = False,
) -> list[np.ndarray] | None:
    """Finds the values of a part: in one sequence, or else by their paths.

    Args:
        weights: All stored weights.
        part: The network's own weights; their paths and shapes count.
        only_by_path: Not by their sequence.

    Returns:
        The values; None if they are not stored, or are more than once, so that
        nothing tells which are meant.
    """
    kinds, stored = [w.kind for w in part], [w.kind for w in weights]
    size = len(kinds)
    starts = [
        start
        for start in range(len(stored) - size + 1)
        if stored[start : start + size] == kinds
    ]
    if len(starts) == 1 and size and not only_by_path:
        matches = weights[starts[0] : starts[0] + size]
    else:
        by_path = {w.path: w for w in weights}
        matches = [by_path[w.path] for w in part if w.path in by_path]
    if not size or [w.kind for w in matches] != kinds:
        return None
    return _fitted(
        [w.value for w in matches], [(w.path, w.value.shape) for w in part]
    )


def _fitted(
    values: Sequence[np.ndarray], wanted: Sequence[tuple[str, tuple]]
) -> list[np.ndarray] | None:
    """Returns values in the wanted shapes; None if they do not fit.

    Args:
        values: The values.
        wanted: Path and shape of each.
    """
    fitted = [
        library_backbone.fit_positions(path, value, shape)
        for value, (path, shape) in zip(values, wanted, strict=True)
    ]
    return None if any(value is None for value in fitted) else fitted


# ---------------------------------------------------------------- reading --
def fetch(backbone: str) -> list[np.ndarray]:
    """Returns the weights that are published for a backbone.

    Args:
        backbone: A name that passes `registry.networks.check_published`.

    Raises:
        InputError: They cannot be fetched.
    """
    library, name = backbone.split(":", 1)
    try:
        with (
            signals.at_once(f"the published weights of {backbone}"),
            runtime.names_apart(),
        ):
            return library_backbone.published(library, name)
    except InputError as error:
        raise InputError(
            f"--init_from={config_lib.PUBLISHED}, --backbone={backbone}: "
            f"{error}"
        ) from None


def _in_order(
    backbone: keras.Model, published: Sequence[np.ndarray]
) -> list[np.ndarray] | None:
    """Returns the values of a backbone's variables, without other states.

    None if the published weights are those of another architecture.
    """
    if len(published) != len(backbone.weights):
        return None
    paths = [weight.path for weight in backbone.weights]
    values = list(published)
    for place, path in enumerate(paths):
        # DINOv2 has made them of others, which are those that were trained.
        if (trained := path.replace("interpolated_", "")) != path:
            values[place] = published[paths.index(trained)]
    values = _fitted(values, [(w.path, w.shape) for w in backbone.weights])
    if values is None:
        return None
    before = backbone.get_weights()
    backbone.set_weights(values)
    values = [weight.value for weight in _weights(backbone.variables)]
    backbone.set_weights(before)
    return values


def _read(
    kind: str, path: pathlib.Path
) -> tuple[list[Weight], list[str] | None]:
    """Reads all weights, in order, and names of the classifier's rows."""
    try:
        if kind == "saved_model":
            return _from_saved_model(path)
        if kind == "workdir":
            model = state.load(path)
        else:
            model = keras.models.load_model(path, compile=False)
    except InputError:
        raise
    except Exception as error:  # both libraries let through what goes wrong
        raise InputError(_unreadable(error)) from error
    # A network that a run has saved knows its classes.
    names = getattr(model, "class_names", None)
    return _weights(model.variables), list(names) if names else None


def _from_saved_model(
    path: pathlib.Path,
) -> tuple[list[Weight], list[str] | None]:
    loaded = tf.saved_model.load(str(path))
    # Keras lists the variables; in other SavedModels the signatures use them.
    variables = getattr(loaded, "variables", ()) or [
        variable
        for signature in loaded.signatures.values()
        for variable in signature.variables
    ]
    weights = [
        Weight(v.name.removesuffix(":0"), v.numpy())
        for v in variables
        if v.dtype.is_floating
    ]
    # Only an export of `simmatch_tf.export` has the names of its classes.
    file = path / "assets" / CLASS_NAMES
    if not file.is_file():
        return weights, None
    return weights, list(json.loads(file.read_text("utf-8")))


def _unreadable(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"cannot be read ({lines[0]})"


def _is_whole_model(path: pathlib.Path) -> bool:
    """Whether an .h5 file has an architecture as well as weights."""
    try:
        with h5py.File(path) as file:
            return "model_config" in file.attrs
    except OSError as error:
        raise InputError(_unreadable(error)) from None


def _from_h5(
    student: keras.Model, path: pathlib.Path
) -> dict[str, list[np.ndarray] | None]:
    """Reads a weights file, of a whole network or of a backbone, by Keras."""
    parts = network.parts(student)
    failures = []
    for model in (student, parts["backbone"]):
        variables, before = _floats(model.variables), _weights(model.variables)
        read = parts if model is student else {"backbone": model}
        try:
            for variable, weight in zip(variables, before, strict=True):
                variable.assign(np.full_like(weight.value, np.nan))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about what does not fit
                model.load_weights(str(path), skip_mismatch=True)
            values = {
                name: [w.value for w in _weights(part.variables)]
                for name, part in read.items()
            }
        except Exception as error:
            failures.append(_unreadable(error))
            continue
        finally:
            for variable, weight in zip(variables, before, strict=True):
                variable.assign(weight.value)
        # What is still NaN was not read.
        if not any(np.isnan(array).any() for array in values["backbone"]):
            whole = {
                name: arrays
                for name, arrays in values.items()
                if arrays and not any(np.isnan(x).any() for x in arrays)
            }
            return {name: whole.get(name) for name in parts}
    if len(failures) == 2:
        raise InputError(failures[0])
    return dict.fromkeys(parts)
