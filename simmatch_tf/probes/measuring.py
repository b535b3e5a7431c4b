"""Measures models on datasets, and keeps finished measurements."""

import dataclasses
import functools
import hashlib
import json
import logging
import pathlib
import time
from typing import Any

import numpy as np
import sklearn

from simmatch_tf import io, terminal
from simmatch_tf.flags.errors import InputError
from simmatch_tf.probes import (
    classifiers,
    encoders,
    features,
    finetune,
    settings,
    tasks,
)

# Version of what is measured here: another number, other results.
_VERSION = 2
_OF_PROTOCOL = {
    "linear": ("max_iter", "tol"),
    "knn": ("neighbors", "temperature"),
    "finetune": (
        "steps",
        "rates",
        "decays",
        "crop_area",
        "batch_size",
        "seed",
    ),
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


class Measurer:
    """Measures models on datasets by one protocol."""

    def __init__(self, how: settings.Settings) -> None:
        """Takes the settings, and creates the output folder.

        Raises:
            InputError: It cannot be created.
        """
        self._how = how
        self._output = io.expand(how.output)
        self._finished = self._output / "finished"
        try:
            self._finished.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"--output={how.output}: cannot be written ({error.strerror})"
            ) from None

    @functools.cached_property
    def _extractor(self) -> features.Extractor:
        how = self._how
        return features.Extractor(
            features.default_folder()
            if how.cache_dir is None
            else io.expand(how.cache_dir),
            batch_size=how.batch_size,
            parallel_calls=how.parallel_calls,
            progress=how.progress,
        )

    def measure(self, encoder: encoders.Encoder, task: tasks.Task) -> Outcome:
        """Measures one model on one dataset, or reads a finished measurement.

        Raises:
            InputError: An image cannot be read, or a folder cannot be written.
            Interrupted: By a signal, in fine-tuning.
        """
        path = self._finished / f"{self._key(encoder, task)}.json"
        finished = _read(path)
        if finished is not None:
            # Names of models and datasets may have changed since.
            return dataclasses.replace(
                finished,
                model=encoder.name,
                epochs=encoder.epochs,
                dataset=task.name,
            )
        start = time.perf_counter()
        protocol = self._how.protocol
        measure = {
            "linear": self._linear,
            "knn": self._knn,
            "finetune": self._finetune,
        }[protocol]
        with classifiers.all_processors():
            score, details = measure(encoder, task)
        more = 0 if task.validation is None else len(task.validation)
        validation, validation_images = "official", more
        if protocol == "knn":
            validation, validation_images = "none", 0
        elif task.validation is None:
            validation, validation_images = "held out", task.held_out.sum()
        outcome = Outcome(
            model=encoder.name,
            epochs=encoder.epochs,
            dataset=task.name,
            protocol=protocol,
            metric=task.metric,
            score=score,
            train_images=len(task.train) + more,
            validation_images=int(validation_images),
            validation=validation,
            test_images=len(task.test),
            seconds=time.perf_counter() - start,
            details=details,
        )
        io.write_json(path, dataclasses.asdict(outcome))
        return outcome

    def _key(self, encoder: encoders.Encoder, task: tasks.Task) -> str:
        """A digest of all that the outcome depends on."""
        protocol = self._how.protocol
        values = [getattr(self._how, n) for n in _OF_PROTOCOL[protocol]]
        content = repr(
            (
                _VERSION,
                protocol,
                values,
                sklearn.__version__,
                encoder.digest,
                task.identity,
            )
        )
        return hashlib.sha256(content.encode()).hexdigest()[:32]

    def _rows(
        self, encoder: encoders.Encoder, task: tasks.Task, subset: str
    ) -> classifiers.Rows:
        """The features and labels of a set of images."""
        values = self._extractor.features(encoder, task, subset)
        return values, getattr(task, subset).labels

    def _everything(
        self, encoder: encoders.Encoder, task: tasks.Task
    ) -> classifiers.Rows:
        """Returns the rows of training and validation images together."""
        x, y = self._rows(encoder, task, "train")
        if task.validation is None:
            return x, y
        more = self._rows(encoder, task, "validation")
        return np.concatenate([x, more[0]]), np.concatenate([y, more[1]])

    def _linear(
        self, encoder: encoders.Encoder, task: tasks.Task
    ) -> tuple[float, dict[str, Any]]:
        """Returns score and details of logistic regression."""
        how = self._how
        fits = self._sweep(encoder, task)
        best = classifiers.choose(fits)
        # A fit from zero by scikit-learn's defaults, which anyone can repeat.
        model = classifiers.regression(
            best.strength, max_iter=how.max_iter, tol=how.tol
        )
        train = self._everything(encoder, task)
        converged = classifiers.fit(model, *train)
        predicted = model.predict(self._rows(encoder, task, "test")[0])
        if not converged:
            logging.getLogger("absl").warning(
                "%s on %s: L-BFGS did not converge in --max_iter=%d",
                encoder.name,
                task.name,
                how.max_iter,
            )
        edges = classifiers.STRENGTHS[0], classifiers.STRENGTHS[-1]
        return classifiers.score(task.metric, task.test.labels, predicted), {
            "strength": best.strength,
            "at_the_edge": best.strength in edges,
            "max_iter": how.max_iter,
            "tol": how.tol,
            "iterations": int(np.max(model.n_iter_)),
            "converged": converged,
            "width": int(train[0].shape[1]),
            "strengths": [dataclasses.asdict(fit) for fit in fits],
        }

    def _sweep(
        self, encoder: encoders.Encoder, task: tasks.Task
    ) -> list[classifiers.Fit]:
        """Fits all regularization strengths, with a progress bar."""
        train = x, y = self._rows(encoder, task, "train")
        if task.validation is not None:
            validation = self._rows(encoder, task, "validation")
        else:
            held = task.held_out
            train, validation = (x[~held], y[~held]), (x[held], y[held])
        with terminal.progress(
            len(classifiers.STRENGTHS),
            "fit",
            title=f"{task.name} strengths",
            shown=self._how.progress,
        ) as bar:

            def done(fit: classifiers.Fit) -> None:
                bar.set_postfix_str(
                    f"λ {fit.strength:.1e}, validation {100 * fit.score:.1f} %"
                )
                bar.update()

            return classifiers.sweep(
                train,
                validation,
                metric=task.metric,
                max_iter=self._how.max_iter,
                tol=self._how.tol,
                done=done,
            )

    def _knn(
        self, encoder: encoders.Encoder, task: tasks.Task
    ) -> tuple[float, dict[str, Any]]:
        """Returns score and details of the nearest neighbors."""
        how = self._how
        more = 0 if task.validation is None else len(task.validation)
        if how.neighbors > len(task.train) + more:
            raise InputError(
                f"--neighbors={how.neighbors}: {task.name} has only "
                f"{len(task.train) + more} training images"
            )
        train = self._everything(encoder, task)
        predicted = classifiers.nearest_neighbors(
            train,
            self._rows(encoder, task, "test")[0],
            neighbors=how.neighbors,
            temperature=how.temperature,
        )
        return classifiers.score(task.metric, task.test.labels, predicted), {
            "neighbors": how.neighbors,
            "temperature": how.temperature,
            "width": int(train[0].shape[1]),
        }

    def _finetune(
        self, encoder: encoders.Encoder, task: tasks.Task
    ) -> tuple[float, dict[str, Any]]:
        """Returns score and details of fine-tuning."""
        grid = finetune.Grid(
            encoder, task, self._how, self._output / "finetune"
        )

        def done(point: finetune.Point, score: float | None) -> None:
            result = "the loss was not finite"
            if score is not None:
                result = f"{100 * score:.2f} % of the validation images"
            print(
                f"{encoder.name} on {task.name}: rate {point.rate:g}, decay "
                f"{point.decay:g}: {result}"
            )

        return grid.run(done)


def _read(path: pathlib.Path) -> Outcome | None:
    try:
        return Outcome(**json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        logging.getLogger("absl").warning(
            "%s: is measured again (%s)", path, error
        )
        return None
