"""What TensorBoard shows of a run: scalars, histograms, pictures, text."""

import contextlib
import importlib.metadata
import pathlib
import platform
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf
from absl import logging
from tensorboard.compat.proto import summary_pb2
from tensorboard.plugins.histogram import metadata as histogram_metadata
from tensorboard.plugins.hparams import api as hparams_api
from tensorboard.plugins.scalar import summary_v2 as scalar_summary

import simmatch_tf
from simmatch_tf import config as config_lib
from simmatch_tf.algorithms import diagnostics
from simmatch_tf.data import cropping, pipeline, splits
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.flags import errors
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.modules import memory as memory_lib
from simmatch_tf.monitoring import pictures, projector

_PICTURES = 6  # labeled images whose names stand in the text, of each class
_CLASSES = 100  # classes listed in the text


class Summaries:
    """Writes to a run's event files; or nowhere.

    Attributes:
        writes: Whether anything is written.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        config: config_lib.Config,
        source: source_lib.Source,
        split: splits.Split,
        *,
        writes: bool,
    ) -> None:
        """Opens a new event file.

        Args:
            folder: For the event files.
            config: The run's, with its durations in steps.
            source: Its dataset.
            split: Its labeled images.
            writes: False: every call does nothing.

        Raises:
            InputError: The file cannot be written.
        """
        self._folder, self._config, self.writes = folder, config, writes
        self._source, self._split = source, split
        self._class_names = [str(name) for name in source.class_names]
        self._shown: np.ndarray | None = None
        self._writer = tf.summary.create_noop_writer()
        if not writes:
            return
        try:
            self._writer = tf.summary.create_file_writer(str(folder))
        except tf.errors.OpError as error:
            raise InputError(
                f"{folder}: cannot be written ({errors.reason(error)})"
            ) from None

    @contextlib.contextmanager
    def _at(self, step: int) -> Iterator[None]:
        """For writing; what cannot be written ends that, not the run."""
        try:
            # A writer that failed stays the thread's default.
            with tf.summary.record_if(self.writes):
                with self._writer.as_default(step):
                    yield
        except (tf.errors.OpError, OSError) as error:
            self._give_up(error)

    def _give_up(self, error: tf.errors.OpError | OSError) -> None:
        reason = getattr(error, "strerror", None) or errors.reason(error)
        logging.warning(
            "%s: cannot be written (%s): the run goes on, and TensorBoard "
            "shows no more of it until it is started again",
            self._folder,
            reason,
        )
        self.writes = False
        self._writer = tf.summary.create_noop_writer()

    # ------------------------------------------------------------- numbers --
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars: all as one event, which is one call."""
        if not self.writes:
            return
        event = summary_pb2.Summary()
        for tag, value in values.items():
            event.MergeFrom(scalar_summary.scalar_pb(tag, value))
        with self._at(step):
            tf.summary.experimental.write_raw_pb(event.SerializeToString())

    def histograms(
        self,
        step: int,
        means: Mapping[str, np.ndarray],
        classes: np.ndarray | None,
    ) -> None:
        """Writes the distributions of a watched step.

        Args:
            step: Its number.
            means: See `watching.Seen`.
            classes: Share of each class in the last pseudo-labels [L].
        """
        unlabeled = self._config.batch_size * self._config.unlabeled_ratio
        with self._at(step):
            if "confidences" in means:
                counts = unlabeled * means["confidences"]
                _histogram("pseudo_label/confidences", counts, 1.0)
            if classes is not None:
                _histogram(
                    "pseudo_label/class_counts",
                    unlabeled * classes,
                    float(len(classes)),
                )
            if "predicted" in means:
                mean = means["predicted"]
                _histogram("alignment/mean", mean, float(len(mean)))

    # ------------------------------------------------------------ pictures --
    def confusion(
        self, step: int, logits: np.ndarray, labels: np.ndarray, title: str
    ) -> None:
        """Writes a confusion matrix.

        Args:
            step: Steps done.
            logits: [N, L].
            labels: [N].
            title: What it is of.
        """
        if not self.writes:
            return
        classes = logits.shape[1]
        pairs = labels.astype(np.int64) * classes + logits.argmax(axis=1)
        counts = np.bincount(pairs, minlength=classes**2)
        counts = counts.reshape(classes, classes)
        shown = pictures.confusion(
            counts, self._class_names, f"{title}, step {step}"
        )
        with self._at(step):
            tf.summary.image("pictures/confusion", shown[None])

    def picture(self, step: int, seen: diagnostics.Seen) -> None:
        """Writes a step's views and, with a memory, their neighbors."""
        rows = seen.rows
        if not rows or not self.writes:
            return
        hat = rows["p_hat"]
        truth = rows.get("truth", np.full(len(hat), -1))
        names = [n for n in ("p_w", "q_agg", "p_hat") if n in rows]
        images = [
            pictures.Unlabeled(
                weak=rows["weak"][i],
                strong=rows["strong"][i],
                probabilities={name: rows[name][i] for name in names},
                truth=int(truth[i]),
                counts=hat[i].max() >= self._config.threshold,
            )
            for i in range(len(hat))
        ]
        shown = {"views": pictures.views(images, self._class_names)}
        if "neighbors" in rows:
            found = self._neighbors(rows["neighbors"], rows["cosines"])
            shown["neighbors"] = pictures.neighbors(
                images, found, self._class_names
            )
        with self._at(step):
            for name, pixels in shown.items():
                tf.summary.image(f"pictures/{name}", pixels[None])

    def _neighbors(
        self, slots: np.ndarray, cosines: np.ndarray
    ) -> list[list[pictures.Neighbor]]:
        each, where = np.unique(slots, return_inverse=True)
        images, where = self._labeled(each), where.reshape(slots.shape)
        labels = self._source.train.labels[self._split.labeled]
        return [
            [
                pictures.Neighbor(
                    images[where[i, j]],
                    int(labels[slots[i, j]]),
                    float(cosines[i, j]),
                )
                for j in range(slots.shape[1])
                # A slot that is not written yet resembles nothing.
                if np.isfinite(cosines[i, j])
            ]
            for i in range(len(slots))
        ]

    def _labeled(self, slots: np.ndarray) -> np.ndarray:
        """Labeled images as evaluation sees them: uint8 [n, H, W, C].

        Raises:
            InputError: One cannot be read.
        """
        try:
            return cropping.whole(
                self._source.train,
                tf.constant(self._split.labeled[slots], tf.int64),
                side=self._source.image_shape[0],
                resize=self._config.eval_resize,
            ).numpy()
        except tf.errors.OpError as error:
            raise InputError(
                pipeline.unreadable("for a picture", error)
            ) from None

    def memory(self, store: memory_lib.MemoryBuffer) -> None:
        """Writes the memory's embeddings for the projector."""
        if not self.writes or store.shard:
            return
        slots = projector.chosen(store.filled.numpy())
        if not len(slots):
            return
        images = None
        if self._shown is None or not np.array_equal(slots, self._shown):
            images, self._shown = self._labeled(slots), slots
        names = self._names(slots)
        labels = self._source.train.labels[self._split.labeled[slots]]
        try:
            projector.write(
                self._folder,
                store.features.numpy()[slots],
                [self._class_names[label] for label in labels],
                names,
                images,
            )
        except OSError as error:
            self._give_up(error)

    def _names(self, slots: Sequence[int]) -> list[str]:
        """What labeled images are called: by name, or place in the set."""
        places = self._split.labeled[slots]
        names = self._source.train.names
        return [str(p) if names is None else names[p] for p in places]

    # ---------------------------------------------------------------- text --
    def describe(self) -> None:
        """Writes what a run is: flags, data, split, versions."""
        if not self.writes:
            return
        config = self._config
        default = config_lib.Config(labels=10, steps=1)
        own = config.differences(default)
        chosen = {
            name: str(value) if value is None else value
            for name, (value, _, operational) in own.items()
            if not operational
        }
        chosen |= {n: getattr(config, n) for n in ("algorithm", "dataset")}
        chosen |= {"seed": config.seed, "split_seed": config.split_seed}
        texts = {
            "flags": _code(config.to_flagfile(without=("overwrite",))),
            "data": _table(self._data()),
            "split": _table(self._labeled_of_classes()),
            "versions": _table(_versions()),
        }
        with self._at(0):
            hparams_api.hparams(chosen)
            for name, text in texts.items():
                tf.summary.text(f"run/{name}", text)

    def _data(self) -> list[tuple[str, str]]:
        source, split = self._source, self._split
        height, width, channels = source.image_shape
        rows = [
            ("dataset", source.name),
            ("classes", f"{source.num_classes:,}"),
            ("images", f"{height}×{width}×{channels}"),
            ("labeled", f"{len(split.labeled):,}"),
            ("set aside", f"{len(split.validation):,}"),
            ("unlabeled", f"{len(split.unlabeled):,}"),
        ]
        if source.test is not None:
            rows.append(("test", f"{len(source.test):,}"))
        return rows

    def _labeled_of_classes(self) -> list[tuple[str, str]]:
        labels = self._source.train.labels[self._split.labeled]
        rows = []
        for label, name in enumerate(self._class_names[:_CLASSES]):
            slots = np.flatnonzero(labels == label)
            shown = ", ".join(self._names(slots[:_PICTURES]))
            more = " …" if len(slots) > _PICTURES else ""
            rows.append((name, f"{len(slots)}: {shown}{more}"))
        if len(self._class_names) > _CLASSES:
            rows.append((f"{len(self._class_names) - _CLASSES} more", "…"))
        return rows

    def close(self) -> None:
        """Ends the event file."""
        try:
            self._writer.close()
        except tf.errors.OpError as error:
            self._give_up(error)


def _histogram(tag: str, counts: np.ndarray, end: float) -> None:
    """Writes counts of equal parts of [0, end] as they are."""
    edges = np.linspace(0.0, end, len(counts) + 1)
    metadata = histogram_metadata.create_summary_metadata(tag, None)
    tf.summary.write(
        tag,
        np.stack([edges[:-1], edges[1:], counts], axis=1).astype(np.float64),
        metadata=tf.compat.v1.SummaryMetadata.FromString(
            metadata.SerializeToString()
        ),
    )


def _versions() -> list[tuple[str, str]]:
    names = ("tensorflow", "keras", "numpy")
    found = [(name, importlib.metadata.version(name)) for name in names]
    return [
        ("simmatch_tf", simmatch_tf.__version__),
        ("Python", platform.python_version()),
        *found,
        ("machine", f"{platform.system()} {platform.machine()}"),
    ]


def _code(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def _table(rows: Sequence[tuple[str, str]]) -> str:
    lines = ["| | |", "|---|---|"]
    for row in rows:
        cells = (cell.replace("|", "\\|") for cell in row)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
