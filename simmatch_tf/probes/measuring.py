"""Measures models on datasets, and keeps what is finished."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
import time
from typing import Any

import numpy as np
import sklearn
from tqdm import auto

from simmatch_tf import io
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.probes import (
    encoders,
    features,
    finetune,
    knn,
    linear,
    scores,
    settings,
    tasks,
)

# Of what is measured here: another number, other results.
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


class Measurer:
    """Measures by one protocol."""

    def __init__(self, how: settings.Settings) -> None:
        """Takes the settings, and makes the folder of the output.

        Raises:
            InputError: That cannot be made.
        """
        self._how = how
        self._output = pathlib.Path(os.path.expanduser(how.output))
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
            else pathlib.Path(os.path.expanduser(how.cache_dir)),
            batch_size=how.batch_size,
            parallel_calls=how.parallel_calls,
            progress=how.progress,
        )

    def measure(
        self, encoder: encoders.Encoder, task: tasks.Task
    ) -> scores.Outcome:
        """Measures one model on one dataset, or reads what was found.

        Raises:
            InputError: An image, or a folder, is not as it must be.
            Interrupted: By a signal, in fine-tuning.
        """
        path = self._finished / f"{self._key(encoder, task)}.json"
        found = _read(path)
        if found is not None:
            # What models are called is no part of what was measured.
            return dataclasses.replace(
                found,
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
        with linear.all_processors():
            score, details = measure(encoder, task, path)
        more = 0 if task.validation is None else len(task.validation)
        validation, validation_images = "official", more
        if protocol == "knn":
            validation, validation_images = "none", 0
        elif task.validation is None:
            validation, validation_images = "held out", task.held_out.sum()
        found = scores.Outcome(
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
        io.write_json(path, dataclasses.asdict(found))
        return found

    def _key(self, encoder: encoders.Encoder, task: tasks.Task) -> str:
        protocol = self._how.protocol
        values = [getattr(self._how, n) for n in _OF_PROTOCOL[protocol]]
        what = repr(
            (
                _VERSION,
                protocol,
                values,
                sklearn.__version__,
                encoder.digest,
                task.identity,
            )
        )
        return hashlib.sha256(what.encode()).hexdigest()[:32]

    def _rows(self, encoder: encoders.Encoder, task: tasks.Task, which: str):
        found = self._extractor.features(encoder, task, which)
        return found, getattr(task, which).labels

    def _everything(
        self, encoder: encoders.Encoder, task: tasks.Task
    ) -> linear.Rows:
        """Training and validation images together."""
        x, y = self._rows(encoder, task, "train")
        if task.validation is None:
            return x, y
        more = self._rows(encoder, task, "validation")
        return np.concatenate([x, more[0]]), np.concatenate([y, more[1]])

    def _linear(
        self, encoder: encoders.Encoder, task: tasks.Task, path: pathlib.Path
    ) -> tuple[float, dict[str, Any]]:
        how = self._how
        state = path.with_suffix(".npz")
        fits = self._sweep(encoder, task, state)
        best = linear.choose(fits)
        # From nothing and with nothing else set, as anyone would by hand.
        model = linear.regression(
            best.strength, max_iter=how.max_iter, tol=how.tol
        )
        train = self._everything(encoder, task)
        converged = linear.fit(model, *train)
        predicted = model.predict(self._rows(encoder, task, "test")[0])
        with contextlib.suppress(OSError):
            state.unlink()
        if not converged:
            logging.getLogger("absl").warning(
                "%s on %s: L-BFGS did not converge in --max_iter=%d",
                encoder.name,
                task.name,
                how.max_iter,
            )
        edges = linear.STRENGTHS[0], linear.STRENGTHS[-1]
        return scores.score(task.metric, task.test.labels, predicted), {
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
        self, encoder: encoders.Encoder, task: tasks.Task, state: pathlib.Path
    ) -> list[linear.Fit]:
        """All strengths, with a progress bar; see `linear.sweep`."""
        how = self._how
        train = x, y = self._rows(encoder, task, "train")
        if task.validation is not None:
            validation = self._rows(encoder, task, "validation")
        else:
            held = task.held_out
            train, validation = (x[~held], y[~held]), (x[held], y[held])
        bar = auto.tqdm(
            total=len(linear.STRENGTHS),
            unit="fit",
            desc=f"{task.name} strengths",
            disable=None if how.progress else True,
        )

        def done(fit: linear.Fit) -> None:
            bar.set_postfix_str(
                f"λ {fit.strength:.1e}, validation {100 * fit.score:.1f} %"
            )
            bar.update()

        try:
            with bar:
                return linear.sweep(
                    train,
                    validation,
                    metric=task.metric,
                    max_iter=how.max_iter,
                    tol=how.tol,
                    state=state,
                    done=done,
                )
        except OSError as error:
            raise InputError(
                f"--output={how.output}: {state} cannot be written "
                f"({error.strerror})"
            ) from None

    def _knn(
        self, encoder: encoders.Encoder, task: tasks.Task, path: pathlib.Path
    ) -> tuple[float, dict[str, Any]]:
        del path
        how = self._how
        more = 0 if task.validation is None else len(task.validation)
        if how.neighbors > len(task.train) + more:
            raise InputError(
                f"--neighbors={how.neighbors}: {task.name} has but "
                f"{len(task.train) + more} training images"
            )
        train = self._everything(encoder, task)
        predicted = knn.predict(
            train,
            self._rows(encoder, task, "test")[0],
            neighbors=how.neighbors,
            temperature=how.temperature,
        )
        return scores.score(task.metric, task.test.labels, predicted), {
            "neighbors": how.neighbors,
            "temperature": how.temperature,
            "width": int(train[0].shape[1]),
        }

    def _finetune(
        self, encoder: encoders.Encoder, task: tasks.Task, path: pathlib.Path
    ) -> tuple[float, dict[str, Any]]:
        del path
        grid = finetune.Grid(
            encoder, task, self._how, self._output / "finetune"
        )

        def done(point: finetune.Point, score: float | None) -> None:
            found = "the loss was not finite"
            if score is not None:
                found = f"{100 * score:.2f} % of the validation images"
            print(
                f"{encoder.name} on {task.name}: rate {point.rate:g}, decay "
                f"{point.decay:g}: {found}"
            )

        return grid.run(done)


def _read(path: pathlib.Path) -> scores.Outcome | None:
    try:
        return scores.Outcome(**json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        logging.getLogger("absl").warning(
            "%s: is measured anew (%s)", path, error
        )
        return None
