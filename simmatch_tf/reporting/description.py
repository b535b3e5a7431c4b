"""What `--describe` prints: parameters, FLOPs and memory of a run's state."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence

import keras
import numpy as np
import tensorflow as tf

from simmatch_tf import config as config_lib
from simmatch_tf import tables
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.distributed import strategies
from simmatch_tf.networks import network
from simmatch_tf.training import inputs, state

_WIDTH = 80
_PREFIXES = "kMGTP"
# Sums in the table of parts → the parts in it. Not every network has the
# LayerNorm.
_SUMS = {
    "at test time: backbone, classifier": (
        "backbone",
        "feature_norm",
        "classifier",
    ),
    "all: with projection head": (
        "backbone",
        "feature_norm",
        "classifier",
        "projection_head",
    ),
}


def of_flags(config: config_lib.Config) -> str:
    """Describes the run that flags ask for, without training.

    The images of a large dataset are not read, and need not be present.

    Args:
        config: The run's flags.

    Returns:
        Several paragraphs of at most 80 columns.

    Raises:
        InputError: The flags do not go together with their dataset.
    """
    outline = inputs.outline(config)
    slots = inputs.labeled_images(config, outline)
    num_classes = len(outline.class_names)
    # Durations may depend on the number of images; none is needed here.
    config = config.with_steps(1)
    algorithm = state.make_algorithm(
        config,
        strategies.one(),
        image_shape=outline.image_shape,
        slot_labels=np.arange(slots) % num_classes,
        num_classes=num_classes,
    )
    batch = f"B = {config.batch_size:,} labeled"
    if algorithm.needs_unlabeled:
        unlabeled = config.batch_size * config.unlabeled_ratio
        batch += f" and μB = {unlabeled:,} unlabeled"
    head = (
        f"{config.algorithm} on {config.dataset}: backbone {config.backbone}, "
        f"images {'×'.join(map(str, outline.image_shape))}, {num_classes:,} "
        f"classes, {slots:,} labeled images; {batch} images a step"
    )
    return "\n\n".join(
        (
            _fill(head),
            parts(algorithm.student, outline.image_shape),
            _fill(
                "FLOPs: of one image in inference, as TensorFlow's profiler "
                "counts them; a multiply-add counts as two. A view that the "
                "student is trained on costs about three times as much."
            ),
            memory(algorithm, config.keep),
            _fill(
                "In addition, training needs room for the gradients, as large "
                "as the trainable weights, and for activations, which grow "
                "with the batch."
            ),
        )
    )


def _fill(text: str) -> str:
    return textwrap.fill(text, _WIDTH)


def rounded(number: float) -> str:
    """Writes a number with three digits and a prefix, such as "8.19 G"."""
    power = 0
    while power < len(_PREFIXES) and float(f"{number:.3g}") >= 1000:
        number, power = number / 1000, power + 1
    digits = f"{number:#.3g}".rstrip(".") if power else str(number)
    return f"{digits} {_PREFIXES[power - 1] if power else ''}".strip()


def parameters(layer: keras.Layer) -> int:
    """Returns the number of a layer's or a network's trainable parameters."""
    return sum(math.prod(v.shape) for v in layer.trainable_variables)


def flops(model: keras.Model, shape: Sequence[int] | None = None) -> int:
    """Returns the floating-point operations of a model for one example.

    TensorFlow's profiler counts them in the model's graph; it knows no Einsum,
    which attention is made of, so those are added. Work inside a tf.function
    that a layer calls is not counted, such as a convolution in groups on CPUs.

    Args:
        model: A Keras model of one input.
        shape: Shape of an example; by default, that of the model's input.
    """
    spec = tf.TensorSpec([1, *(shape or model.input_shape[1:])], tf.float32)
    function = tf.function(lambda x: model(x, training=False), autograph=False)
    graph = function.get_concrete_function(spec).graph
    options = tf.compat.v1.profiler.ProfileOptionBuilder
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")  # the profiler warns of its own calls
    try:
        counted = tf.compat.v1.profiler.profile(
            graph,
            options=options(options.float_operation())
            .with_empty_output()
            .build(),
        )
    finally:
        logger.setLevel(level)
    operations = graph.get_operations()
    return counted.total_float_ops + sum(map(_einsum_flops, operations))


def _einsum_flops(operation: tf.Operation) -> int:
    """Two for each multiply-add of an Einsum of two tensors; 0 of others."""
    if operation.type != "Einsum" or len(operation.inputs) != 2:
        return 0
    terms, result = operation.get_attr("equation").decode().split("->")
    sizes = {}
    for term, tensor in zip(terms.split(","), operation.inputs, strict=True):
        head, _, tail = term.partition("...")
        sizes.update(zip(head, tensor.shape, strict=False))
        sizes.update(zip(tail[::-1], tensor.shape[::-1], strict=False))
    summed = [size for label, size in sizes.items() if label not in result]
    return 2 * math.prod([*operation.outputs[0].shape, *summed])


def parts(model: keras.Model, image_shape: tuple[int, int, int]) -> str:
    """Writes a table of the parts of a network.

    Args:
        model: A network of `network.build`.
        image_shape: (height, width, channels).

    Returns:
        A row for the backbone, each head, and sums of them: outputs,
        parameters, and FLOPs of one image.

    Raises:
        ValueError: It is no such network.
    """
    layers = network.parts(model)
    layers.pop("normalize", None)
    shapes = {"backbone": image_shape}
    sizes = {
        name: (parameters(layer), flops(layer, shapes.get(name)))
        for name, layer in layers.items()
    }
    rows = [["part", "output", "parameters", "", "FLOPs an image"]]
    for name, layer in layers.items():
        rows.append(_row(name, str(layer.output.shape[1]), [sizes[name]]))
    for title, names in _SUMS.items():
        if sizes.keys() >= set(names) - {"feature_norm"}:
            own = [sizes[name] for name in names if name in sizes]
            rows.append(_row(title, "", own))
    return tables.plain(rows)


def _row(name: str, output: str, sizes: Sequence[tuple[int, int]]) -> list[str]:
    count, work = map(sum, zip(*sizes, strict=True))
    millions = f"({count / 1e6:.1f} M)"
    return [name, output, f"{count:,}", millions, rounded(work)]


def bytes_of(variables: Iterable[tf.Variable | keras.Variable]) -> int:
    """Returns the bytes of variables, one copy of each on all devices.

    Args:
        variables: TensorFlow's or Keras'; one that is named twice counts once.
    """
    # Keras' variables wrap TensorFlow's.
    plain = (v.value if isinstance(v, keras.Variable) else v for v in variables)
    different = {id(v): v for v in plain}.values()
    return sum(math.prod(v.shape) * v.dtype.size for v in different)


def memory(algorithm: algorithm_lib.Algorithm, keep: int) -> str:
    """Writes a table of what a run keeps between steps and in checkpoints.

    Args:
        algorithm: The run's state.
        keep: Number of checkpoints kept.
    """
    owners = {
        "weights, BatchNorm's statistics": algorithm.student,
        "EMA teacher": algorithm.teacher,
        # It refers to the weights as well, which are counted already.
        "optimizer": algorithm.optimizer,
    }
    if hasattr(algorithm, "memory"):
        owners["memory bank Q_f"] = algorithm.memory.features
    owners["rest"] = algorithm
    rows, total, counted = [["memory", "MiB"]], 0, set()
    for name, owner in owners.items():
        variables = [
            v for v in algorithm_lib.state(owner) if id(v) not in counted
        ]
        counted.update(map(id, variables))
        if isinstance(owner, tf.Variable):
            name += f" {list(owner.shape)}"
        size = bytes_of(variables)
        total += size
        rows.append([name, _mebibytes(size)])
    rows += [
        ["sum, as in a checkpoint on disk", _mebibytes(total)],
        [f"the {keep} checkpoints kept", _mebibytes(keep * total)],
    ]
    return tables.plain(rows)


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.2f}"
