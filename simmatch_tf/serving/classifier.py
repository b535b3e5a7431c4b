"""A trained network as functions with signatures, which are exported."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from simmatch_tf.ops import propagation
from simmatch_tf.serving import preprocessing

SERVED = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY
# Largest number of classes in the outputs `classes` and `scores`.
LISTED = 5
# Outputs of the network that `embed` gives, as far as the network has them.
EMBED = ("features", "embeddings")
# Name of a labeled image of which neither name nor index is known.
UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class Labeled:
    """The labeled images of a memory bank, in the slots that were written.

    Attributes:
        features: Embeddings, float32 [K, D], unit rows.
        slots: Memory slots, int64 [K].
        labels: Classes, int32 [K].
        ids: Names: of a file, an index in the training images, or `UNKNOWN`.
        temperature: Temperature t of the similarities, above 0.
        alpha: Smoothing factor α, in [0, 1].
    """

    features: np.ndarray
    slots: np.ndarray
    labels: np.ndarray
    ids: Sequence[str]
    temperature: float
    alpha: float


def neighbors(
    outputs: Mapping[str, tf.Tensor | np.ndarray],
) -> list[list[dict[str, Any]]]:
    """Returns the labeled images in the outputs of `Classifier.explain`.

    Args:
        outputs: Name → values.

    Returns:
        For each image, its labeled images, the most similar first: `slot`,
        `id`, `class`, `similarity` and `weight`.
    """
    columns = (
        np.asarray(outputs[name]).tolist()
        for name in (
            "neighbor_slots",
            "neighbor_ids",
            "neighbor_classes",
            "similarities",
            "weights",
        )
    )
    return [
        [
            {
                "slot": slot,
                "id": name.decode(),
                "class": class_name.decode(),
                "similarity": similarity,
                "weight": weight,
            }
            for slot, name, class_name, similarity, weight in zip(
                *rows, strict=True
            )
        ]
        for rows in zip(*columns, strict=True)
    ]


class Classifier(tf.Module):
    """A network with its preprocessing, class names and memory bank.

    `classify`, `classify_bytes`, `embed` and, with a memory, `explain` are
    `tf.function`s of one signature each, for any number of images N ≥ 0. Images
    are [N, H, W, C], 0 to 255.

    Attributes:
        weights: The network's variables, as a SavedModel keeps them.
        class_names: L names.
        preprocessing: How encoded images become the network's input.
        input_dtype: Data type of the images.
        labeled: The labeled images that `explain` searches, or None.
        temperature: The logits are divided by it, so that confidences are
            calibrated; None: they are not.
        neighbors: Number k of labeled images that `explain` lists for each
            image; 0 without a memory.
    """

    def __init__(
        self,
        network: keras.Model,
        class_names: Sequence[str],
        preprocess: preprocessing.Preprocessing,
        *,
        labeled: Labeled | None = None,
        neighbors: int = 5,
        input_dtype: str = "uint8",
        temperature: float | None = None,
    ) -> None:
        """Creates the functions; nothing is traced yet.

        Args:
            network: A trained network, see `network.build`.
            class_names: L names.
            preprocess: How encoded images become the network's input.
            labeled: The memory bank; without it, or with an empty one, there
                is no `explain`.
            neighbors: k, at least 1; at most K are given.
            input_dtype: Data type of the images, "uint8" or "float32".
            temperature: See above.
        """
        super().__init__(name="classifier")
        self.temperature = temperature
        # Hidden from the tracking of tf.Module: a SavedModel would store copies
        # of Keras' variables, and the functions' own variables would have no
        # values when another loader than Python's restores them.
        self._get_network = lambda: network
        self.weights = [variable.value for variable in network.variables]
        self.class_names = list(class_names)
        self.preprocessing = preprocess
        self.input_dtype = input_dtype
        self.labeled, self.neighbors = labeled, 0
        if labeled is not None and not len(labeled.slots):
            self.labeled = None
        images = tf.TensorSpec(
            [None, *preprocess.image_shape], input_dtype, "images"
        )
        encoded = tf.TensorSpec([None], tf.string, "image_bytes")
        self.classify = _function(self._classify, images)
        self.classify_bytes = _function(self._classify_bytes, encoded)
        self.embed = _function(self._embed, images)
        if self.labeled is not None:
            self.neighbors = min(neighbors, len(self.labeled.slots))
            # A variable, as each use of a constant would store it again.
            self._features = tf.Variable(
                self.labeled.features, trainable=False, name="memory"
            )
            self.explain = _function(self._explain, images)

    @property
    def network(self) -> keras.Model:
        """The network, see `network.build`."""
        return self._get_network()

    def _run(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        # A server does not check requests against the signature's shape.
        shape = self.preprocessing.image_shape
        images = tf.ensure_shape(images, [None, *shape])
        # For an empty batch, oneDNN's convolutions return the shape of their
        # input, and the next layer fails. So an empty batch is given a blank
        # image, whose outputs are cut off again.
        count = tf.shape(images)[0]
        blank = tf.zeros([tf.cast(count == 0, tf.int32), *shape], images.dtype)
        images = tf.concat([images, blank], 0)
        out = self.network(images, training=False)
        return {name: value[:count] for name, value in out.items()}

    def probabilities(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns the probabilities that logits stand for, both [N, L]."""
        if self.temperature is not None:
            logits /= self.temperature
        return tf.nn.softmax(logits)

    def signatures(self) -> dict[str, tf.types.experimental.ConcreteFunction]:
        """Returns the functions by their names on a server."""
        functions = {
            SERVED: self.classify,
            "classify_bytes": self.classify_bytes,
            "embed": self.embed,
        }
        if self.labeled is not None:
            functions["explain"] = self.explain
        return {
            name: function.get_concrete_function()
            for name, function in functions.items()
        }

    def _classify(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Classifies images.

        Returns:
            `probabilities` [N, L], in the order of `class_names`; `classes`
            and `scores`, both [N, min(L, 5)]: names and probabilities of the
            most probable classes, in descending order.
        """
        logits = self._run(images)["logits"]
        return self._listed(self.probabilities(logits))

    def _listed(self, probabilities: tf.Tensor) -> dict[str, tf.Tensor]:
        count = min(LISTED, len(self.class_names))
        scores, indices = tf.math.top_k(probabilities, count)
        return {
            "probabilities": probabilities,
            "classes": tf.gather(tf.constant(self.class_names), indices),
            "scores": scores,
        }

    def _classify_bytes(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Classifies encoded images [N]; see `_classify`."""
        images = self.preprocessing.decode_batch(image_bytes)
        return self._classify(images)

    def _embed(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Computes the features of images.

        Returns:
            `features` [N, width]; `embeddings` [N, D], unit rows, if the
            network has a projection head.
        """
        out = self._run(images)
        return {
            name: tf.cast(out[name], tf.float32)
            for name in EMBED
            if name in out
        }

    def _explain(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Finds the labeled images that images are most similar to.

        Equation numbers are those of `ops.propagation`.

        Returns:
            The outputs of `classify`; of the k nearest labeled images, the
            nearest first, all [N, k]: `neighbor_slots`, `neighbor_ids`,
            `neighbor_classes`, `similarities` (cosines z·Q_f[k]) and `weights`
            (their shares q_k of Eq. 3 among all labeled images); `aggregated`
            [N, L], q^agg of Eq. 9; `propagated` [N, L], p̂ of Eq. 10.
            Probabilities are not aligned, as distribution alignment belongs to
            the unlabeled images of training. Those in `propagated` are not
            calibrated either, as in training.

        References:
            SimMatch, Zheng et al., CVPR 2022, https://arxiv.org/abs/2203.06915
        """
        out = self._run(images)
        p, z = tf.nn.softmax(out["logits"]), out["embeddings"]
        labels = tf.constant(self.labeled.labels)
        t = self.labeled.temperature
        logits, shift = propagation.similarity_logits(z, self._features, t)
        q = tf.nn.softmax(logits)  # [N, K], Eq. 3
        cosines = (logits + shift) * t  # [N, K]
        aggregated = propagation.aggregate(q, labels, len(self.class_names))
        nearest, ranks = tf.math.top_k(cosines, self.neighbors)  # [N, k]
        names = tf.gather(tf.constant(self.class_names), labels)
        return {
            **self._listed(self.probabilities(out["logits"])),
            "neighbor_slots": tf.gather(self.labeled.slots, ranks),
            "neighbor_ids": tf.gather(tf.constant(self.labeled.ids), ranks),
            "neighbor_classes": tf.gather(names, ranks),
            "similarities": nearest,
            "weights": tf.gather(q, ranks, batch_dims=1),
            "aggregated": aggregated,
            # Differs: p is not aligned, see above.
            "propagated": propagation.smooth(p, aggregated, self.labeled.alpha),
        }


def _function(
    method: Callable[[tf.Tensor], dict[str, tf.Tensor]],
    signature: tf.TensorSpec,
) -> tf.types.experimental.PolymorphicFunction:
    return tf.function(method, input_signature=[signature], autograph=False)
