"""The table of `transfer`, in the form of the slides' Table 3.

Nothing here imports TensorFlow.
"""

import csv
import dataclasses
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from simmatch_tf import config as config_lib
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.reporting import comparison, tables

# Dataset → its title in the slides.
TITLES = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "food101": "Food-101",
    "cars196": "Cars",
    "dtd": "DTD",
    "oxford_iiit_pet": "Pets",
    "oxford_flowers102": "Flowers",
}
# Table 3 of the slides: ResNet-50 of ImageNet, linear evaluation, per cent.
PUBLISHED = (
    ("Supervised", "-", (93.6, 78.3, 72.3, 66.7, 74.9, 91.5, 94.7)),
    ("SimCLR", "1000", (90.5, 74.4, 72.8, 49.3, 75.7, 84.6, 92.6)),
    ("MoCo v2", "800", (92.2, 74.6, 72.5, 50.5, 74.4, 84.6, 90.5)),
    ("BYOL", "1000", (91.3, 78.4, 75.3, 67.8, 75.5, 90.4, 96.1)),
    ("SimMatch (10%)", "400", (93.6, 78.4, 71.7, 69.7, 75.1, 92.8, 93.2)),
)
_SOURCE = "published, ResNet-50"
_METRICS = {"top1": "top-1", "mean_per_class": "mean of the classes"}
_NOTHING = "–"


@dataclasses.dataclass(frozen=True)
class Row:
    """A method.

    Attributes:
        name: Of the method.
        epochs: What it was trained for.
        scores: Dataset → per cent; those that are known.
        published: Whether the figures are the slides'.
    """

    name: str
    epochs: str
    scores: Mapping[str, float]
    published: bool = False

    def mean(self, columns: Sequence[str]) -> float | None:
        """Over the columns, if all are known."""
        found = [self.scores[c] for c in columns if c in self.scores]
        if len(found) < len(columns):
            return None
        return sum(found) / len(found)


@dataclasses.dataclass(frozen=True)
class Table:
    """Models and published ones, side by side.

    Attributes:
        outcomes: `probes.scores.Outcome`s of one protocol, at least one.
    """

    outcomes: tuple[Any, ...]

    @property
    def columns(self) -> list[str]:
        """The datasets, each once."""
        return list(dict.fromkeys(each.dataset for each in self.outcomes))

    @property
    def rows(self) -> list[Row]:
        """The slides' rows, where they have such figures, then our own."""
        found = []
        if self.outcomes[0].protocol == "linear":
            for name, epochs, figures in PUBLISHED:
                known = dict(zip(TITLES, figures, strict=True))
                known = {
                    c: known[config_lib.base_name(c)]
                    for c in self.columns
                    if config_lib.base_name(c) in known
                }
                if known:
                    found.append(Row(f"{name}, {_SOURCE}", epochs, known, True))
        for model in dict.fromkeys(each.model for each in self.outcomes):
            own = [each for each in self.outcomes if each.model == model]
            known = {each.dataset: 100 * each.score for each in own}
            found.append(Row(model, own[0].epochs, known))
        return found

    def cells(self) -> list[list[str]]:
        """Head and rows, as they are shown."""
        head = ["Method", "Epochs", *map(title, self.columns)]
        several = len(self.columns) > 1
        lines = [[*head, "Mean"] if several else head]
        for row in self.rows:
            digits = 1 if row.published else 2
            values = [row.scores.get(c) for c in self.columns]
            if several:
                values.append(row.mean(self.columns))
            shown = [
                _NOTHING if v is None else f"{v:.{digits}f}" for v in values
            ]
            lines.append([row.name, row.epochs, *shown])
        return lines

    def note(self) -> str:
        """What the figures are."""
        by_class = [
            title(each.dataset)
            for each in self.outcomes
            if each.metric == "mean_per_class"
        ]
        by_class = list(dict.fromkeys(by_class))
        text = f"Test accuracy, %, --protocol={self.outcomes[0].protocol}: "
        if not by_class:
            return text + "top-1."
        return (
            text + f"top-1, but of {' and '.join(by_class)} the mean of the "
            "classes' accuracies."
        )

    def text(self) -> str:
        """For the terminal."""
        return f"{tables.table(self.cells())}\n\n{self.note()}"

    def markdown(self) -> str:
        """The table, then how each figure came about."""
        head, *rows = self.cells()
        details = [
            f"* {comparison.escape(line(each))}" for each in self.outcomes
        ]
        return "\n\n".join(
            [
                comparison.table(head, rows),
                self.note(),
                "\n".join(details),
            ]
        )

    def csv(self) -> str:
        """The table, figures as they are."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(
            ["method", "epochs", "published", *self.columns, "mean"]
        )
        for row in self.rows:
            mean = row.mean(self.columns)
            writer.writerow(
                [
                    row.name,
                    row.epochs,
                    "yes" if row.published else "no",
                    *(_figure(row.scores.get(c)) for c in self.columns),
                    _figure(mean),
                ]
            )
        return text.getvalue()

    def json(self) -> str:
        """All that is known; scores of ours are in [0, 1]."""
        published = [
            {
                "model": row.name,
                "epochs": row.epochs,
                "scores": {c: v / 100 for c, v in row.scores.items()},
            }
            for row in self.rows
            if row.published
        ]
        content = {
            "outcomes": [dataclasses.asdict(each) for each in self.outcomes],
            "published": published,
        }
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def title(dataset: str) -> str:
    """What a dataset is called in the slides; its own name, if not at all."""
    return TITLES.get(config_lib.base_name(dataset), dataset)


def line(outcome: Any) -> str:
    """What to say of one figure."""
    about = _ABOUT[outcome.protocol](outcome.details)
    learned = f"{outcome.train_images:,} training images"
    if outcome.validation_images:
        learned += (
            f", {outcome.validation_images:,} of them ({outcome.validation}) "
            "to choose by"
        )
    return (
        f"{outcome.model} on {outcome.dataset}: {100 * outcome.score:.2f} % "
        f"{_METRICS[outcome.metric]} of {outcome.test_images:,} test images; "
        f"{about}; {learned}; {outcome.seconds:.0f} s"
    )


def _linear(details: Mapping[str, Any]) -> str:
    end = "converged" if details["converged"] else "NOT converged"
    edge = ", the last of its range" if details["at_the_edge"] else ""
    return (
        f"strength {details['strength']:.3g}{edge}, {end} after "
        f"{details['iterations']} iterations"
    )


_ABOUT = {
    "linear": _linear,
    "knn": lambda details: (
        f"{details['neighbors']} neighbours, temperature "
        f"{details['temperature']:g}"
    ),
    "finetune": lambda details: (
        f"rate {details['rate']:g}, decay {details['decay']:g}, "
        f"{details['steps']:,} steps"
    ),
}


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def write(table: Table, folder: pathlib.Path, name: str) -> list[str]:
    """Writes NAME.md, NAME.csv and NAME.json, each whole or not at all.

    Returns:
        Names of the files.

    Raises:
        InputError: One cannot be written.
    """
    files = {
        f"{name}.md": table.markdown() + "\n",
        f"{name}.csv": table.csv(),
        f"{name}.json": table.json(),
    }
    for file, text in files.items():
        aside = folder / f"{file}.tmp"
        try:
            aside.write_text(text, encoding="utf-8")
            aside.replace(folder / file)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise InputError(
                f"{folder / file}: cannot be written ({error.strerror})"
            ) from None
    return list(files)
