"""Measures models on datasets, and keeps finished measurements."""

import dataclasses
import hashlib
import json
import pathlib
import time
from typing import Any

import numpy as np
import sklearn

from simmatch_tf import io, terminal
from simmatch_tf.flags.errors import InputError
from simmatch_tf.probes import classifiers, encoders, features, finetune, tasks

# Version of what is measured here: another number, other results.
_VERSION = 2
_OF_PROTOCOL = {
    "linear": ("max_iter", "tol"),
    "knn": ("neighbors", "temperature"),
    "finetune": tuple("steps rates decays crop_area batch_size seed".split()),
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of one model on one dataset, a cell of the table.

    Attributes:
        model: Name of the model, its row.
        epochs: Epochs that the model was trained for.
        dataset: Name of the dataset, its column.
        protocol: "linear", "finetune" or "knn".
        metric: "top1" or "mean_per_class".
        score: Accuracy on the test images, in [0, 1].
        train_images: Images of the last fit, validation images included.
        validation_images: Images that hyper-parameters are chosen by; 0 if
            none are chosen.
        validation: Where the validation images come from: "official", "held
            out" or "none".
        test_images: Images that are scored.
        seconds: Time it took, with that of the features.
        details: Further results of the protocol.
    """

    model: str
    epochs: str
    dataset: str
    protocol: str
    metric: str
    score: float
    train_images: int
    validation_images: int
    validation: str
    test_images: int
    seconds: float
    details: dict[str, Any]


def measure(flags: Any, encoder: encoders.Encoder, task: tasks.Task) -> Outcome:
    """Measures one model on one dataset, or reads a finished measurement.

    Args:
        flags: The flags of `transfer`.
        encoder: The model.
        task: The dataset.

    Raises:
        InputError: An image cannot be read, or a folder cannot be written.
        Interrupted: By a signal, in fine-tuning.
    """
    finished = io.expand(flags.output) / "finished"
    io.make_folder(finished, f"--output={flags.output}")
    path = finished / f"{_key(flags, encoder, task)}.json"
    # Names of models and datasets may have changed since.
    names = {
        "model": encoder.name,
        "epochs": encoder.epochs,
        "dataset": task.name,
    }
    outcome = _read(path)
    if outcome is not None:
        return dataclasses.replace(outcome, **names)
    start = time.perf_counter()
    with classifiers.all_processors():
        score, details = _PROTOCOLS[flags.protocol](flags, encoder, task)
    more = 0 if task.validation is None else len(task.validation)
    validation, validation_images = "official", more
    if flags.protocol == "knn":
        validation, validation_images = "none", 0
    elif task.validation is None:
        validation, validation_images = "held out", int(task.held_out.sum())
    outcome = Outcome(
        **names,
        protocol=flags.protocol,
        metric=task.metric,
        score=score,
        train_images=len(task.train) + more,
        validation_images=validation_images,
        validation=validation,
        test_images=len(task.test),
        seconds=time.perf_counter() - start,
        details=details,
    )
    io.write_json(path, dataclasses.asdict(outcome))
    return outcome


def _key(flags: Any, encoder: encoders.Encoder, task: tasks.Task) -> str:
    """A digest of all that the outcome depends on."""
    content = (
        _VERSION,
        flags.protocol,
        [getattr(flags, name) for name in _OF_PROTOCOL[flags.protocol]],
        sklearn.__version__,
        encoder.digest,
        task.identity,
    )
    return hashlib.sha256(repr(content).encode()).hexdigest()[:32]


def _read(path: pathlib.Path) -> Outcome | None:
    """Reads a finished measurement; None if there is none."""
    try:
        return Outcome(**json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        terminal.warn(f"{path}: is measured again ({error})")
        return None


def _rows(
    flags: Any, encoder: encoders.Encoder, task: tasks.Task, subset: str
) -> classifiers.Rows:
    """Returns the features and labels of a set of images."""
    values = features.extract(
        encoder,
        task,
        subset,
        folder=flags.cache_dir and io.expand(flags.cache_dir),
        batch_size=flags.batch_size,
        parallel_calls=flags.parallel_calls,
        progress=flags.progress,
    )
    return values, getattr(task, subset).labels


def _everything(
    flags: Any, encoder: encoders.Encoder, task: tasks.Task
) -> classifiers.Rows:
    """Returns the rows of training and validation images together."""
    x, y = _rows(flags, encoder, task, "train")
    if task.validation is None:
        return x, y
    more = _rows(flags, encoder, task, "validation")
    return np.concatenate([x, more[0]]), np.concatenate([y, more[1]])


def _linear(
    flags: Any, encoder: encoders.Encoder, task: tasks.Task
) -> tuple[float, dict[str, Any]]:
    """Returns score and details of logistic regression."""
    train = x, y = _rows(flags, encoder, task, "train")
    if task.validation is not None:
        validation = _rows(flags, encoder, task, "validation")
    else:
        held = task.held_out
        train, validation = (x[~held], y[~held]), (x[held], y[held])
    how = {"max_iter": flags.max_iter, "tol": flags.tol}
    fits = []
    with terminal.progress(
        len(classifiers.STRENGTHS),
        "fit",
        title=f"{task.name} strengths",
        shown=flags.progress,
    ) as bar:
        for fit in classifiers.sweep(
            train, validation, metric=task.metric, **how
        ):
            fits.append(fit)
            bar.set_postfix_str(
                f"λ {fit.strength:.1e}, validation {100 * fit.score:.1f} %"
            )
            bar.update()
    best = classifiers.choose(fits)
    # A fit from zero by scikit-learn's defaults, which anyone can repeat.
    model = classifiers.regression(best.strength, **how)
    train = _everything(flags, encoder, task)
    converged = classifiers.fit(model, *train)
    predicted = model.predict(_rows(flags, encoder, task, "test")[0])
    if not converged:
        terminal.warn(
            f"{encoder.name} on {task.name}: L-BFGS did not converge in "
            f"--max_iter={flags.max_iter}"
        )
    edges = classifiers.STRENGTHS[0], classifiers.STRENGTHS[-1]
    return classifiers.score(task.metric, task.test.labels, predicted), {
        "strength": best.strength,
        "at_the_edge": best.strength in edges,
        **how,
        "iterations": int(np.max(model.n_iter_)),
        "converged": converged,
        "width": int(train[0].shape[1]),
        "strengths": [dataclasses.asdict(fit) for fit in fits],
    }


def _knn(
    flags: Any, encoder: encoders.Encoder, task: tasks.Task
) -> tuple[float, dict[str, Any]]:
    """Returns score and details of the nearest neighbors."""
    train = _everything(flags, encoder, task)
    if flags.neighbors > len(train[0]):
        raise InputError(
            f"--neighbors={flags.neighbors}: {task.name} has only "
            f"{len(train[0])} training images"
        )
    how = {"neighbors": flags.neighbors, "temperature": flags.temperature}
    predicted = classifiers.nearest_neighbors(
        train, _rows(flags, encoder, task, "test")[0], **how
    )
    return classifiers.score(task.metric, task.test.labels, predicted), {
        **how,
        "width": int(train[0].shape[1]),
    }


def _finetune(
    flags: Any, encoder: encoders.Encoder, task: tasks.Task
) -> tuple[float, dict[str, Any]]:
    """Returns score and details of fine-tuning."""
    return finetune.Grid(encoder, task, flags).run()


_PROTOCOLS = {"linear": _linear, "knn": _knn, "finetune": _finetune}
