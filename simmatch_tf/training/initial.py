"""First weights from elsewhere: what --init_from names."""

import contextlib
import pathlib
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import h5py
import keras
import numpy as np
import tensorflow as tf

from simmatch_tf import availability
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.commandline import InputError
from simmatch_tf.networks import network
from simmatch_tf.training import assembly, workdir

_TITLES = {
    "normalize": "normalisation",
    "backbone": "backbone",
    "classifier": "classifier",
    "projection_head": "projection head",
}


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


def initialise(
    algorithm: algorithm_lib.Algorithm,
    init_from: str,
    custom: assembly.Custom,
) -> str:
    """Starts student and teacher from other weights.

    The backbone must be found whole. Heads and normalisation are taken where
    they are found in the same shapes; otherwise the network keeps its own.

    Args:
        algorithm: A new run's.
        init_from: As in --init_from.
        custom: The caller's own parts.

    Returns:
        A line that says what was taken.

    Raises:
        InputError: It cannot be read, or holds another backbone.
    """
    taken = fill(
        algorithm.student,
        init_from,
        backbone=f"--backbone={algorithm.config.backbone}",
        custom=custom,
    )
    algorithm.teacher.copy(algorithm.student)
    return _say(init_from, taken)


def fill(
    model: keras.Model,
    path: str,
    *,
    backbone: str,
    flag: str = "init_from",
    custom: assembly.Custom | None = None,
) -> dict[str, list[np.ndarray] | None]:
    """Fills a network from other weights; see `initialise`.

    Args:
        model: One of `network.build`.
        path: As in --init_from.
        backbone: The name of its own, for a message.
        flag: What named the path, likewise.
        custom: The caller's own parts.

    Returns:
        Part of the network → what it was given; None: it keeps its own.

    Raises:
        InputError: The path cannot be read, or holds another backbone.
    """
    kind, found = availability.kind_of_weights(path, flag)
    parts = network.parts(model)
    try:
        if kind == "h5" and not _is_whole_model(found):
            taken = _from_h5(model, found)
        else:
            weights = _READERS[kind](found, custom or assembly.Custom())
            taken = {name: _find(weights, parts[name]) for name in parts}
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
    return taken


def _say(init_from: str, taken: dict[str, list | None]) -> str:
    """What was taken, and what was not."""
    yes = [_TITLES[name] for name, found in taken.items() if found is not None]
    no = [_TITLES[name] for name, found in taken.items() if found is None]
    text = f"starts from {init_from}: {', '.join(yes)}"
    if no:
        text += f"; not in it in this shape, so new: {', '.join(no)}"
    return text


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
    weights: Sequence[Weight], part: keras.layers.Layer
) -> list[np.ndarray] | None:
    """A part's values among all weights: side by side, or else by their paths.

    Returns:
        None, if they are not there, or more than once: then nothing tells
        which are meant.
    """
    wanted = _of(part.variables)
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


def _from_workdir(path: pathlib.Path, custom: assembly.Custom) -> list[Weight]:
    config = workdir.Workdir(path).read_config()
    model = assembly.load(
        path,
        backbone=custom.backbone if config.backbone == "custom" else None,
        algorithm=custom.algorithm if config.algorithm == "custom" else None,
    )
    return _of(model.variables)


def _from_keras(path: pathlib.Path, custom: assembly.Custom) -> list[Weight]:
    del custom
    try:
        model = keras.models.load_model(path, compile=False)
    except Exception as error:  # Keras lets through whatever goes wrong
        raise InputError(_unreadable(error)) from error
    return _of(model.variables)


def _from_saved_model(
    path: pathlib.Path, custom: assembly.Custom
) -> list[Weight]:
    del custom
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
    return [
        Weight(v.name.removesuffix(":0"), v.numpy())
        for v in variables
        if v.dtype.is_floating
    ]


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
