"""A trained network as functions with signatures: what is exported."""

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from simmatch_tf.ops import propagation
from simmatch_tf.serving import preprocessing

SERVED = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY
# Classes that `classes` and `scores` list, at most.
LISTED = 5
# Whose images have no name or index that is known.
UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class Labeled:
    """The labeled images that a memory holds: its slots that were written.

    Attributes:
        features: Their embeddings, float32 [K, D], unit rows.
        slots: Their memory slots, int64 [K].
        labels: Their classes, int32 [K].
        ids: What each is called: a file's name, an index in the training
            images, or `UNKNOWN`.
        temperature: t of the run.
        alpha: α of the run.
    """

    features: np.ndarray
    slots: np.ndarray
    labels: np.ndarray
    ids: Sequence[str]
    temperature: float
    alpha: float


class Classifier(tf.Module):
    """A network with its preprocessing, its class names and its memory.

    Every function is a `tf.function` of one signature, with any number of
    images N ≥ 0. Images are [N, H, W, C], 0 to 255.

    Attributes:
        weights: The network's variables, as a SavedModel keeps them.
        class_names: L names.
        preprocessing: How encoded images become its input.
        input_dtype: Of the images.
        labeled: What `explain` looks among, or None.
        neighbors: How many of them it gives of each image, k; 0 without.
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
    ) -> None:
        """Makes the functions; nothing is traced yet.

        Args:
            network: Trained.
            class_names: L names.
            preprocess: How encoded images become its input.
            labeled: For `explain`; None or an empty one: without.
            neighbors: k, at least 1.
            input_dtype: Of the images, "uint8" or "float32".
        """
        super().__init__(name="classifier")
        # Hidden from the tracking of a SavedModel: Keras' variables would be
        # saved as copies, and the functions' own be left without values where
        # another loader than Python's restores them.
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
            # A variable: a constant would stand in the graph once more.
            self._features = tf.Variable(
                self.labeled.features, trainable=False, name="memory"
            )
            self.explain = _function(self._explain, images)

    @property
    def network(self) -> keras.Model:
        """See `networks.network.build`."""
        return self._get_network()

    def _run(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        # A server does not hold requests to the signature's shape.
        shape = self.preprocessing.image_shape
        images = tf.ensure_shape(images, [None, *shape])
        # Of an empty batch oneDNN's convolutions give the shape of their
        # input, and the next one fails: it is run with a blank image, which
        # is cut off again.
        count = tf.shape(images)[0]
        blank = tf.zeros([tf.cast(count == 0, tf.int32), *shape], images.dtype)
        images = tf.concat([images, blank], 0)
        out = self.network(images, training=False)
        return {name: value[:count] for name, value in out.items()}

    def signatures(self) -> dict[str, tf.types.experimental.ConcreteFunction]:
        """The functions by the names that a server knows them by."""
        found = {
            SERVED: self.classify,
            "classify_bytes": self.classify_bytes,
            "embed": self.embed,
        }
        if self.labeled is not None:
            found["explain"] = self.explain
        return {
            name: function.get_concrete_function()
            for name, function in found.items()
        }

    def _classify(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Images → `probabilities`, `classes`, `scores`.

        Returns:
            `probabilities` [N, L], in the order of `class_names`; `classes`
            and `scores`, both [N, min(L, 5)]: the names of the likeliest
            classes and their probabilities, the likeliest first.
        """
        probabilities = tf.nn.softmax(self._run(images)["logits"])
        return self._listed(probabilities)

    def _listed(self, probabilities: tf.Tensor) -> dict[str, tf.Tensor]:
        count = min(LISTED, len(self.class_names))
        scores, places = tf.math.top_k(probabilities, count)
        return {
            "probabilities": probabilities,
            "classes": tf.gather(tf.constant(self.class_names), places),
            "scores": scores,
        }

    def _classify_bytes(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Encoded images [N] → as from `classify`."""
        images = self.preprocessing.decode_batch(image_bytes)
        return self._classify(images)

    def _embed(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Images → `features` [N, width]; `embeddings` [N, D], unit rows.

        A network without a projection head has no embeddings.
        """
        out = self._run(images)
        names = ("features", "embeddings")
        return {
            name: tf.cast(out[name], tf.float32)
            for name in names
            if name in out
        }

    def _explain(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Images → the labeled images that they resemble most.

        Returns:
            What `classify` gives, and, of the k nearest labeled images, the
            nearest first, all [N, k]: `neighbor_slots`, `neighbor_ids`,
            `neighbor_classes`, `similarities` (cosines, z·Q_f[k]), `weights`
            (their share q_k of Eq. 3 among all labeled images). Then
            `aggregated` [N, L], q^agg of Eq. 9, and `propagated` [N, L], p̂ of
            Eq. 10. Probabilities are not aligned: alignment belongs to the
            unlabeled images of training.
        """
        out = self._run(images)
        p, z = tf.nn.softmax(out["logits"]), out["embeddings"]
        labels = tf.constant(self.labeled.labels)
        t = self.labeled.temperature
        logits, shift = propagation.similarity_logits(z, self._features, t)
        q = tf.nn.softmax(logits)  # [N, K], Eq. 3
        cosines = (logits + shift) * t  # [N, K]
        aggregated = propagation.aggregate(q, labels, len(self.class_names))
        nearest, places = tf.math.top_k(cosines, self.neighbors)  # [N, k]
        names = tf.gather(tf.constant(self.class_names), labels)
        return {
            **self._listed(p),
            "neighbor_slots": tf.gather(self.labeled.slots, places),
            "neighbor_ids": tf.gather(tf.constant(self.labeled.ids), places),
            "neighbor_classes": tf.gather(names, places),
            "similarities": nearest,
            "weights": tf.gather(q, places, batch_dims=1),
            "aggregated": aggregated,
            # Differs: p is not aligned; see above.
            "propagated": propagation.smooth(p, aggregated, self.labeled.alpha),
        }


def _function(method, signature: tf.TensorSpec):
    return tf.function(method, input_signature=[signature], autograph=False)
