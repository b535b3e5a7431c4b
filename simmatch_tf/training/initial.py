"""First weights from elsewhere: what --init_from names."""

import collections
import contextlib
import json
import pathlib
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import h5py
import keras
import numpy as np
import tensorflow as tf

from simmatch_tf import io, preflight
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.data import splits
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.networks import network
from simmatch_tf.training import state, workdir

_TITLES = {
    "normalize": "normalisation",
    "backbone": "backbone",
    "classifier": "classifier",
    "projection_head": "projection head",
}
# Of an export, in its assets.
CLASS_NAMES = "class_names.json"
_LISTED = 5  # new classes that are named


class Weight(NamedTuple):
    """A weight or statistic.

    Attributes:
        path: Its layers and name, "conv1/kernel".
        value: An array.
    """

    path: str
    value: np.ndarray

    @property
    def kind(self) -> tuple[str, tuple[int, ...]]:
        """What it must have in common with its counterpart."""
        return self.path.rpartition("/")[2], self.value.shape


class Found(NamedTuple):
    """What a file or folder holds.

    Attributes:
        weights: All of them, in order.
        class_names: Of the classifier's rows, where they are stored.
    """

    weights: list[Weight]
    class_names: list[str] | None = None


def initialise(
    algorithm: algorithm_lib.Algorithm,
    init_from: str,
    class_names: Sequence[str],
) -> str:
    """Starts student and teacher from other weights.

    The backbone must be found whole. Projection head and normalisation are
    taken where they are found in the same shapes. Of the classifier the rows of
    those classes are taken whose names are stored with the weights; all of it
    by its shape where no names are stored. Otherwise the network keeps its own.

    Args:
        algorithm: A new run's.
        init_from: As in --init_from.
        class_names: L names, the run's.

    Returns:
        A line that says what was taken.

    Raises:
        InputError: It cannot be read, or holds another backbone.
    """
    taken = fill(
        algorithm.student,
        init_from,
        backbone=f"--backbone={algorithm.config.backbone}",
        class_names=class_names,
    )
    algorithm.teacher.copy(algorithm.student)
    return _say(init_from, taken)


def fill(
    model: keras.Model,
    path: str,
    *,
    backbone: str,
    flag: str = "init_from",
    class_names: Sequence[str] = (),
) -> dict[str, str | None]:
    """Fills a network from other weights; see `initialise`.

    Args:
        model: One of `network.build`.
        path: As in --init_from.
        backbone: The name of its own, for a message.
        flag: What named the path, likewise.
        class_names: L names, of a network with a classifier.

    Returns:
        Part of the network → a remark on how it was found, "" where there is
        none; None: it keeps its own.

    Raises:
        InputError: The path cannot be read, or holds another backbone.
    """
    kind, found = preflight.kind_of_weights(path, flag)
    parts, remarks = network.parts(model), {}
    try:
        if kind == "h5" and not _is_whole_model(found):
            taken, names = _from_h5(model, found), None
        else:
            weights, names = _READERS[kind](found)
            taken = {
                name: _find(weights, _of(part.variables))
                for name, part in parts.items()
            }
        if "classifier" in parts and names is not None:
            taken["classifier"], remarks["classifier"] = _rows_by_name(
                weights, names, _of(parts["classifier"].variables), class_names
            )
        elif taken.get("classifier") is not None:
            remarks["classifier"] = "by its shape alone: no class names in it"
    except InputError as error:
        raise InputError(f"--{flag}={path}: {error}") from None
    if taken["backbone"] is None:
        first, *_ = _floats(parts["backbone"].variables)
        raise InputError(
            f"--{flag}={path}: holds another backbone than {backbone} on "
            f"images of {model.input_shape[-1]} channels: its weights (the "
            f"first of shape {tuple(first.shape)}) are not there in their "
            "order and shapes"
        )
    for name, values in taken.items():
        if values is not None:
            for variable, value in zip(
                _floats(parts[name].variables), values, strict=True
            ):
                variable.assign(value)
    return {
        name: None if values is None else remarks.get(name, "")
        for name, values in taken.items()
    }


def _say(init_from: str, taken: dict[str, str | None]) -> str:
    """What was taken, and what was not."""
    yes = [
        _TITLES[name] + (f" ({remark})" if remark else "")
        for name, remark in taken.items()
        if remark is not None
    ]
    no = [_TITLES[name] for name, remark in taken.items() if remark is None]
    text = f"starts from {init_from}: {', '.join(yes)}"
    if no:
        text += f"; not in it in this shape, so new: {', '.join(no)}"
    return text


def _rows_by_name(
    weights: Sequence[Weight],
    there: Sequence[str],
    wanted: Sequence[Weight],
    here: Sequence[str],
) -> tuple[list[np.ndarray] | None, str]:
    """A classifier's values, a class's row from where its name stands.

    Args:
        weights: All that are there.
        there: Names of the classes there.
        wanted: The network's own classifier.
        here: L names of its classes.

    Returns:
        Its values, new rows as they are, and a remark; None where there is no
        such classifier or none of the classes.
    """
    there, here = ([io.nfc(str(n)) for n in names] for names in (there, here))
    theirs = _find(
        weights,
        [
            Weight(w.path, np.empty([*w.value.shape[:-1], len(there)]))
            for w in wanted
        ],
    )
    # A name that two classes have says of neither which it is.
    counts = collections.Counter(there), collections.Counter(here)
    known = [n for n in here if all(count[n] == 1 for count in counts)]
    if theirs is None or not known:
        return None, ""
    values = [w.value.copy() for w in wanted]
    places = ({n: i for i, n in enumerate(names)} for names in (here, there))
    to, from_ = ([place[n] for n in known] for place in places)
    for own, other in zip(values, theirs, strict=True):
        own[..., to] = other[..., from_]
    if len(known) == len(here):
        remark = f"all {len(here)} classes by name"
        return values, remark + ("" if to == from_ else ", in another order")
    new = [name for name in here if name not in known]
    listed = ", ".join(new[:_LISTED]) + (", …" if new[_LISTED:] else "")
    return values, (
        f"{len(known)} of {len(here)} classes by name; new: {listed}"
    )


def _floats(variables: Sequence[keras.Variable]) -> list[keras.Variable]:
    """Weights and statistics, without the states of random generators."""
    return [
        v
        for v in variables
        if "float" in keras.backend.standardize_dtype(v.dtype)
    ]


def _of(variables: Sequence[keras.Variable]) -> list[Weight]:
    return [
        Weight(v.path, keras.ops.convert_to_numpy(v))
        for v in _floats(variables)
    ]


def _find(
    weights: Sequence[Weight], wanted: Sequence[Weight]
) -> list[np.ndarray] | None:
    """A part's values among all weights: side by side, or else by their paths.

    Args:
        weights: All of them.
        wanted: The part's own: their paths and shapes count.

    Returns:
        None, if they are not there, or more than once: then nothing tells
        which are meant.
    """
    kinds, given = [w.kind for w in wanted], [w.kind for w in weights]
    size = len(kinds)
    places = [
        start
        for start in range(len(given) - size + 1)
        if given[start : start + size] == kinds
    ]
    if len(places) == 1 and size:
        return [w.value for w in weights[places[0] : places[0] + size]]
    by_path = {w.path: w for w in weights}
    found = [by_path[w.path] for w in wanted if w.path in by_path]
    if size and [w.kind for w in found] == kinds:
        return [w.value for w in found]
    return None


def _from_workdir(path: pathlib.Path) -> Found:
    model = state.load(path)
    content = splits.read_content(workdir.Workdir(path).split)
    return Found(_of(model.variables), content["class_names"])


def _from_keras(path: pathlib.Path) -> Found:
    try:
        model = keras.models.load_model(path, compile=False)
    except Exception as error:  # Keras lets through whatever goes wrong
        raise InputError(_unreadable(error)) from error
    return Found(_of(model.variables))


def _from_saved_model(path: pathlib.Path) -> Found:
    try:
        loaded = tf.saved_model.load(str(path))
    except Exception as error:
        raise InputError(_unreadable(error)) from error
    # Keras lists them; of other SavedModels the signatures use them.
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
    return Found(weights, _names_of_export(path))


def _names_of_export(path: pathlib.Path) -> list[str] | None:
    """The class names in an export of `simmatch_tf.export`; None of others."""
    file = path / "assets" / CLASS_NAMES
    if not file.is_file():
        return None
    try:
        return list(json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from None


_READERS = {
    "workdir": _from_workdir,
    "keras": _from_keras,
    "h5": _from_keras,
    "saved_model": _from_saved_model,
}


def _unreadable(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"cannot be read ({lines[0]})"


def _is_whole_model(path: pathlib.Path) -> bool:
    """Whether an .h5 file holds an architecture beside its weights."""
    try:
        with h5py.File(path) as file:
            return "model_config" in file.attrs
    except OSError as error:
        raise InputError(_unreadable(error)) from None


def _from_h5(
    student: keras.Model, path: pathlib.Path
) -> dict[str, list[np.ndarray] | None]:
    """The parts that Keras' own reader fills: of a network, or a backbone."""
    parts = network.parts(student)
    errors = []
    for model in (student, parts["backbone"]):
        # What is still NaN afterwards was not read.
        with _blank(model):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of what does not fit
                    model.load_weights(str(path), skip_mismatch=True)
            except Exception as error:
                errors.append(_unreadable(error))
                continue
            read = parts if model is student else ("backbone",)
            taken = {n: _filled(parts[n]) if n in read else None for n in parts}
        if taken["backbone"] is not None:
            return taken
    if len(errors) == 2:
        raise InputError(errors[0])
    return dict.fromkeys(parts)


@contextlib.contextmanager
def _blank(model: keras.Model) -> Iterator[None]:
    """Sets all weights of a model to NaN, and back in the end."""
    before = [
        (v, keras.ops.convert_to_numpy(v)) for v in _floats(model.variables)
    ]
    try:
        for variable, value in before:
            variable.assign(np.full_like(value, np.nan))
        yield
    finally:
        for variable, value in before:
            variable.assign(value)


def _filled(part: keras.layers.Layer) -> list[np.ndarray] | None:
    """The values of a part, if none of them is blank."""
    values = [keras.ops.convert_to_numpy(v) for v in _floats(part.variables)]
    if not values or any(np.isnan(value).any() for value in values):
        return None
    return values
