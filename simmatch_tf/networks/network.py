"""The whole network: normalisation, backbone and heads in one Keras model."""

import functools
from collections.abc import Callable, Sequence

import keras

from simmatch_tf.networks import heads, wide_resnet

# (image_shape) → a Keras model from normalised images to features [N, width].
Backbone = Callable[[tuple[int, int, int]], keras.Model]


def backbone(
    name: str,
    *,
    batch_norm_momentum: float | None = None,
    stem_stride: int = 1,
    synchronized: bool = False,
) -> Backbone:
    """Finds a backbone by its name.

    Args:
        name: "wrn_DEPTH_WIDTH".
        batch_norm_momentum: Default: the published one.
        stem_stride: Of the first convolution.
        synchronized: BatchNorm over all replicas.

    Raises:
        ValueError: There is no such backbone.
    """
    parts = name.split("_")
    if len(parts) != 3 or parts[0] != "wrn":
        raise ValueError(f"backbone {name!r} is unknown; known: wrn_28_2 …")
    return functools.partial(
        wide_resnet.wide_resnet,
        int(parts[1]),
        int(parts[2]),
        batch_norm_momentum=batch_norm_momentum,
        stem_stride=stem_stride,
        synchronized=synchronized,
    )


def build(
    make_backbone: Backbone,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    projection_dim: int | None,
    mean: Sequence[float],
    std: Sequence[float],
    initializer: str = "glorot_normal",
) -> keras.Model:
    """Builds images → {"features", "logits", "embeddings"}.

    Args:
        make_backbone: From the image shape to a model of features.
        image_shape: (height, width, channels).
        num_classes: L.
        projection_dim: D; None leaves the projection head out.
        mean: Of each channel, in units of 1 (white).
        std: Likewise.
        initializer: Of the heads' kernels.

    Returns:
        A Keras model from images [N, H, W, C], uint8 or float from 0 to 255,
        to a dict: `features` [N, width]; `logits` [N, L], float32;
        `embeddings` [N, D], float32 unit rows, if there is a projection head.

    Raises:
        ValueError: The backbone does not return [N, width].
    """
    images = keras.Input(image_shape, name="images")
    trunk = make_backbone(image_shape)
    features = trunk(heads.Normalize(list(mean), list(std))(images))
    if len(features.shape) != 2 or features.shape[1] is None:
        raise ValueError(
            f"the backbone returns shape {features.shape}, but [N, width] is "
            "wanted: end it with a global pool"
        )
    width = features.shape[1]
    outputs = {
        "features": features,
        "logits": heads.classifier(width, num_classes, initializer)(features),
    }
    if projection_dim is not None:
        head = heads.projection_head(width, projection_dim, initializer)
        outputs["embeddings"] = head(features)
    return keras.Model(images, outputs, name="network")
