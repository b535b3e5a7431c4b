"""The table of `transfer`, in the form of Table 3 of the SimMatch paper.

References:
    Zheng et al., "SimMatch: Semi-supervised Learning with Similarity
    Matching", CVPR 2022, https://arxiv.org/abs/2203.06915

Nothing here imports TensorFlow.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from simmatch_tf import config as config_lib
from simmatch_tf import io, tables
from simmatch_tf.reporting import comparison

# Dataset → its title in the paper.
TITLES = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "food101": "Food-101",
    "cars196": "Cars",
    "dtd": "DTD",
    "oxford_iiit_pet": "Pets",
    "oxford_flowers102": "Flowers",
}
# Table 3: ResNet-50 trained on ImageNet, linear evaluation, per cent.
PUBLISHED = (
    ("Supervised", "-", (93.6, 78.3, 72.3, 66.7, 74.9, 91.5, 94.7)),
    ("SimCLR", "1000", (90.5, 74.4, 72.8, 49.3, 75.7, 84.6, 92.6)),
    ("MoCo v2", "800", (92.2, 74.6, 72.5, 50.5, 74.4, 84.6, 90.5)),
    ("BYOL", "1000", (91.3, 78.4, 75.3, 67.8, 75.5, 90.4, 96.1)),
    ("SimMatch (10%)", "400", (93.6, 78.4, 71.7, 69.7, 75.1, 92.8, 93.2)),
)
_SOURCE = "published, ResNet-50"
_METRICS = {"top1": "top-1", "mean_per_class": "mean of the classes"}
_UNKNOWN = "–"


@dataclasses.dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        name: Name of the method.
        epochs: Epochs that it was trained for.
        scores: Dataset → accuracy in per cent, where it is known.
        published: Whether the figures are the paper's.
    """

    name: str
    epochs: str
    scores: Mapping[str, float]
    published: bool = False

    def mean(self, columns: Sequence[str]) -> float | None:
        """Returns the mean over the columns; None if one is not known."""
        known = [self.scores[c] for c in columns if c in self.scores]
        return sum(known) / len(known) if len(known) == len(columns) else None


@dataclasses.dataclass(frozen=True)
class Table:
    """The user's models and published ones, side by side.

    Attributes:
        outcomes: `probes.measuring.Outcome`s of one protocol, at least one.
    """

    outcomes: tuple[Any, ...]

    @property
    def columns(self) -> list[str]:
        """The datasets, each once."""
        return list(dict.fromkeys(each.dataset for each in self.outcomes))

    @property
    def rows(self) -> list[Row]:
        """The paper's rows for these datasets, then the user's models."""
        rows = []
        if self.outcomes[0].protocol == "linear":
            for name, epochs, figures in PUBLISHED:
                by_name = dict(zip(TITLES, figures, strict=True))
                known = {
                    c: by_name[config_lib.base_name(c)]
                    for c in self.columns
                    if config_lib.base_name(c) in by_name
                }
                if known:
                    rows.append(Row(f"{name}, {_SOURCE}", epochs, known, True))
        for model in dict.fromkeys(each.model for each in self.outcomes):
            own = [each for each in self.outcomes if each.model == model]
            known = {each.dataset: 100 * each.score for each in own}
            rows.append(Row(model, own[0].epochs, known))
        return rows

    def cells(self) -> list[list[str]]:
        """Returns the cells as text, the head first."""
        several = len(self.columns) > 1
        head = ["Method", "Epochs", *map(title, self.columns)]
        lines = [[*head, "Mean"] if several else head]
        for row in self.rows:
            digits = 1 if row.published else 2
            values = [row.scores.get(c) for c in self.columns]
            if several:
                values.append(row.mean(self.columns))
            texts = [
                _UNKNOWN if v is None else f"{v:.{digits}f}" for v in values
            ]
            lines.append([row.name, row.epochs, *texts])
        return lines

    def note(self) -> str:
        """Returns a sentence on what the figures are."""
        by_class = [
            title(each.dataset)
            for each in self.outcomes
            if each.metric == "mean_per_class"
        ]
        text = f"Test accuracy, %, --protocol={self.outcomes[0].protocol}: "
        if not by_class:
            return text + "top-1."
        names = " and ".join(dict.fromkeys(by_class))
        return f"{text}top-1; for {names}, the mean of the classes' accuracies."

    def text(self) -> str:
        """Returns the table for the terminal."""
        return f"{tables.plain(self.cells())}\n\n{self.note()}"

    def markdown(self) -> str:
        """Returns the table, and how each figure was measured."""
        details = [f"* {tables.escape(line(each))}" for each in self.outcomes]
        return "\n\n".join(
            [tables.markdown(self.cells()), self.note(), "\n".join(details)]
        )

    def csv(self) -> str:
        """Returns the table with four decimals."""
        head = ["method", "epochs", "published", *self.columns, "mean"]
        lines = [head]
        for row in self.rows:
            values = [row.scores.get(c) for c in self.columns]
            values.append(row.mean(self.columns))
            figures = ["" if v is None else f"{v:.4f}" for v in values]
            published = "yes" if row.published else "no"
            lines.append([row.name, row.epochs, published, *figures])
        return tables.comma_separated(lines)

    def json(self) -> str:
        """Returns all that is known; scores are in [0, 1]."""
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
    """Returns a dataset's title in the paper, or else its own name."""
    return TITLES.get(config_lib.base_name(dataset), dataset)


def line(outcome: Any) -> str:
    """Returns a line on how one figure was measured."""
    trained = f"{outcome.train_images:,} training images"
    if outcome.validation_images:
        trained += (
            f", {outcome.validation_images:,} of them ({outcome.validation}) "
            "to choose by"
        )
    interval = ""
    if outcome.metric == "top1":  # Wilson's is that of a share of images
        interval = comparison.wilson_text(outcome.score, outcome.test_images)
        interval = f", 95 % interval {interval}"
    return (
        f"{outcome.model} on {outcome.dataset}: {100 * outcome.score:.2f} % "
        f"{_METRICS[outcome.metric]} of {outcome.test_images:,} test images"
        f"{interval}; "
        f"{_ABOUT[outcome.protocol](outcome.details)}; {trained}; "
        f"{outcome.seconds:.0f} s"
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
        f"{details['neighbors']} neighbors, temperature "
        f"{details['temperature']:g}"
    ),
    "finetune": lambda details: (
        f"rate {details['rate']:g}, decay {details['decay']:g}, "
        f"{details['steps']:,} steps"
    ),
}


def write(table: Table, folder: pathlib.Path, name: str) -> list[str]:
    """Writes NAME.md, NAME.csv and NAME.json, each whole or not at all.

    Returns:
        The names of the files.

    Raises:
        InputError: One cannot be written.
    """
    files = {
        f"{name}.md": table.markdown() + "\n",
        f"{name}.csv": table.csv(),
        f"{name}.json": table.json(),
    }
    for file, text in files.items():
        io.write_text(folder / file, text)
    return list(files)
