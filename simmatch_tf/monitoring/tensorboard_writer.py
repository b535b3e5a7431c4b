"""Writes a run's event files: scalars, histograms, pictures, text, embeddings.

TensorBoard's projector reads the labeled memory from files beside them, which
are replaced each time: `memory.bytes` (float32 [n, D]), `memory.tsv` (class and
name of each image), `memory.png` (thumbnails) and the projector's own
configuration.
"""

import contextlib
import importlib.metadata
import io as io_lib
import pathlib
import platform
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import PIL.Image
import tensorflow as tf
from absl import logging
from google.protobuf import text_format
from tensorboard.compat.proto import summary_pb2
from tensorboard.plugins import projector
from tensorboard.plugins.histogram import metadata as histogram_metadata
from tensorboard.plugins.hparams import api as hparams_api
from tensorboard.plugins.scalar import summary_v2 as scalar_summary

import simmatch_tf
from simmatch_tf import config as config_lib
from simmatch_tf import io, tables
from simmatch_tf.algorithms import diagnostics
from simmatch_tf.data import decoding, pipeline, splits
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.flags import errors
from simmatch_tf.flags.errors import InputError
from simmatch_tf.modules import memory as memory_lib
from simmatch_tf.monitoring import diagnosis, pictures

_LISTED_IMAGES = 6  # labeled images of each class that the text names
_LISTED_CLASSES = 100  # classes that the text names
_MAX_POINTS = 2_048  # slots of the memory that the projector shows
_THUMBNAIL = 32  # side in pixels


class TensorBoardWriter:
    """Writes a run's event files.

    A file that cannot be written ends the writing, not the run.

    Attributes:
        writes: Whether anything is written.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        config: config_lib.Config,
        source: source_lib.Source,
        split: splits.Split,
        classes: diagnosis.Classes,
        *,
        writes: bool,
    ) -> None:
        """Opens a new event file.

        Args:
            folder: Folder of the event files.
            config: The run's flags, with durations in steps.
            source: Its dataset.
            split: Its labeled images.
            classes: Its classes.
            writes: With False every call does nothing.

        Raises:
            InputError: The file cannot be written.
        """
        self._folder, self._config, self.writes = folder, config, writes
        self._source, self._split, self._classes = source, split, classes
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
        """Writes at a step in the body; gives up when that fails."""
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
        """Writes scalars: TensorBoard tag → value."""
        if not self.writes:
            return
        event = summary_pb2.Summary()  # one event, which is one call
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
        """Writes the distributions of a logged step.

        Args:
            step: Steps done.
            means: Means of its diagnostics.
            classes: Share of each class in recent pseudo-labels, [L].
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
            title: Which images and weights it is of.
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

    def picture(self, step: int, shown: diagnostics.Diagnostics) -> None:
        """Writes a step's views and, with a memory, their neighbors."""
        rows = shown.rows
        shown_views = [n for n in rows if n.startswith("view/")]
        if not self.writes or not shown_views or "p_hat" not in rows:
            return
        hat = rows["p_hat"]
        truth = rows.get("truth", np.full(len(hat), -1))
        names = [n for n in ("p_w", "q_agg", "p_hat") if n in rows]
        images = [
            pictures.Unlabeled(
                views={
                    name.removeprefix("view/"): rows[name][i]
                    for name in shown_views
                },
                probabilities={name: rows[name][i] for name in names},
                truth=int(truth[i]),
                counts=bool(rows["mask"][i]) if "mask" in rows else False,
            )
            for i in range(len(hat))
        ]
        drawn = {"views": pictures.views(images, self._class_names)}
        if "neighbors" in rows:
            drawn["neighbors"] = pictures.neighbors(
                images,
                self._neighbors(rows["neighbors"], rows["cosines"]),
                self._class_names,
            )
        with self._at(step):
            for name, pixels in drawn.items():
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
                # A slot that is not written yet is similar to nothing.
                if np.isfinite(cosines[i, j])
            ]
            for i in range(len(slots))
        ]

    def _labeled(self, slots: np.ndarray) -> np.ndarray:
        """Returns labeled images as evaluation sees them, [n, H, W, C].

        Raises:
            InputError: One cannot be read.
        """
        try:
            return decoding.centre_crops(
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
        """Writes the memory's embeddings for the projector.

        Of a memory that is divided over replicas nothing is written.
        """
        if not self.writes or store.shard:
            return
        slots = shown_slots(store.filled.numpy())
        if not len(slots):
            return
        images = None
        if self._shown is None or not np.array_equal(slots, self._shown):
            images, self._shown = self._labeled(slots), slots
        names = self._names(slots)
        labels = self._source.train.labels[self._split.labeled[slots]]
        try:
            write_embeddings(
                self._folder,
                store.features.numpy()[slots],
                [self._class_names[label] for label in labels],
                names,
                images,
            )
        except OSError as error:
            self._give_up(error)

    def _names(self, slots: Sequence[int]) -> list[str]:
        """Names labeled images, or numbers them if they have no names."""
        indices = self._split.labeled[slots]
        names = self._source.train.names
        return [str(i) if names is None else names[i] for i in indices]

    # ---------------------------------------------------------------- text --
    def describe(self) -> None:
        """Writes a run's flags, data, split and versions."""
        if not self.writes:
            return
        config = self._config
        default = config_lib.Config(
            labels=10, steps=1, algorithm=config.algorithm
        )
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
            "data": tables.markdown([("", ""), *self._data()]),
            "split": tables.markdown(
                [("class", "prior", "labeled images"), *self._labels_by_class()]
            ),
            "versions": tables.markdown([("", ""), *_versions()]),
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

    def _labels_by_class(self) -> list[tuple[str, str, str]]:
        labels = self._source.train.labels[self._split.labeled]
        aligns = getattr(self._config, "align", False)
        rows = []
        for label, name in enumerate(self._class_names[:_LISTED_CLASSES]):
            slots = np.flatnonzero(labels == label)
            shown = ", ".join(self._names(slots[:_LISTED_IMAGES]))
            more = " …" if len(slots) > _LISTED_IMAGES else ""
            prior = f"{self._classes.aim[label]:.1%}" if aligns else "-"
            rows.append((name, prior, f"{len(slots)}: {shown}{more}"))
        if len(self._class_names) > _LISTED_CLASSES:
            rows.append(
                (f"{len(self._class_names) - _LISTED_CLASSES} more", "…", "…")
            )
        return rows

    def close(self) -> None:
        """Closes the event file."""
        try:
            self._writer.close()
        except tf.errors.OpError as error:
            self._give_up(error)


def _histogram(tag: str, counts: np.ndarray, end: float) -> None:
    """Writes a histogram from counts in equal parts of [0, end]."""
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
    return [
        ("simmatch_tf", simmatch_tf.__version__),
        ("Python", platform.python_version()),
        *((name, importlib.metadata.version(name)) for name in names),
        ("machine", f"{platform.system()} {platform.machine()}"),
    ]


def _code(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def shown_slots(filled: np.ndarray) -> np.ndarray:
    """Returns the slots to show: those written, evenly thinned out if many.

    Args:
        filled: bool [K], True for slots that are written.
    """
    slots = np.flatnonzero(filled)
    if len(slots) <= _MAX_POINTS:
        return slots
    return slots[np.linspace(0, len(slots) - 1, _MAX_POINTS).astype(int)]


def write_embeddings(
    folder: pathlib.Path,
    features: np.ndarray,
    classes: Sequence[str],
    names: Sequence[str],
    images: Sequence[np.ndarray] | None,
) -> None:
    """Writes the files of the projector.

    Args:
        folder: Folder of the event files.
        features: Embeddings of the slots to show, [n, D], n ≥ 1.
        classes: Class of each, n names.
        names: Name of each image, n names.
        images: uint8 [H, W, C] each; None keeps the thumbnails written before.

    Raises:
        OSError: They cannot be written.
    """
    config = projector.ProjectorConfig()
    points = config.embeddings.add()
    points.tensor_name = "memory"
    points.tensor_path = "memory.bytes"
    points.tensor_shape.extend(features.shape)
    points.metadata_path = "memory.tsv"
    points.sprite.image_path = "memory.png"
    points.sprite.single_image_dim.extend([_THUMBNAIL, _THUMBNAIL])
    rows = ["class\timage"]
    rows += [
        f"{_cell(label)}\t{_cell(name)}"
        for label, name in zip(classes, names, strict=True)
    ]
    contents = {
        "memory.bytes": features.astype("<f4").tobytes(),
        "memory.tsv": ("\n".join(rows) + "\n").encode(errors="replace"),
    }
    if images is not None:
        file = io_lib.BytesIO()
        grid = pictures.sprite(images, _THUMBNAIL)
        PIL.Image.fromarray(grid).save(file, "PNG")
        contents["memory.png"] = file.getvalue()
    text = text_format.MessageToString(config)
    contents["projector_config.pbtxt"] = text.encode()
    for name, content in contents.items():
        with io.replacing(folder / name) as temporary:
            temporary.write_bytes(content)


def _cell(text: str) -> str:
    """Writes a name as a cell of the .tsv table: one line, without tabs."""
    return " ".join(str(text).split()) or "-"
