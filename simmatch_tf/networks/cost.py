"""What a network costs: parameters, FLOPs and bytes, layer by layer."""

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from simmatch_tf.networks import network

# Our residual networks name a block's layers so: layer1_0_conv2, group2_1_bn1.
_BLOCK = re.compile(r"((?:layer|group)\d+_\d+)_")
# Operations like those that are counted. One that has no rule is reported.
_LIKE_THEM = re.compile(
    r"Conv(?!ert)|MatMul|Einsum|RNN|LSTM|GRU|Attention|XlaCall|XlaDot"
)

# Sizes of a tensor, None for one that is unknown; None: not even their number.
_Shape = tuple[int | None, ...] | None
# FLOPs, and the types of operations whose FLOPs are unknown.
_Work = tuple[int, frozenset[str]]
_NOTHING: _Work = (0, frozenset())


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: Of the layer, or of the block.
        output_shape: Without the batch; None for a size that is unknown.
        parameters: Trainable ones.
        flops: Of one image in inference; see `rows`.
        part: "backbone", "classifier" or "projection_head".
        uncounted: Types of its operations whose work could not be told and is
            not in `flops`.
    """

    name: str
    output_shape: tuple[int, ...]
    parameters: int
    flops: int
    part: str = "backbone"
    uncounted: tuple[str, ...] = ()


@dataclasses.dataclass(eq=False)
class _Call:
    """A call of a layer.

    Attributes:
        layer: The layer.
        path: Names of the models around it.
        inputs: Tensors.
        outputs: Tensors.
        flops: Its own, without those of the layers inside.
        uncounted: Likewise.
    """

    layer: keras.Operation
    path: tuple[str, ...]
    inputs: list[tf.Tensor]
    outputs: list[tf.Tensor]
    flops: int = 0
    uncounted: frozenset[str] = frozenset()

    def output_shape(self) -> tuple[int, ...]:
        """Of the first output, without the batch."""
        for output in self.outputs:
            if output.shape.rank is not None:
                return tuple(output.shape[1:])
        return ()

    def resizes(self) -> bool:
        """Whether the output has another size than all inputs."""
        shapes = [tuple(x.shape) for x in self.inputs + self.outputs[:1]]
        return bool(self.outputs) and shapes[-1] not in shapes[:-1]


def parameters(layer: keras.Layer) -> int:
    """The number of a layer's or a network's trainable parameters."""
    return sum(math.prod(v.shape) for v in layer.trainable_variables)


def bytes_of(variables: Iterable[tf.Variable | keras.Variable]) -> int:
    """The memory that variables take: one copy of each, whatever the devices.

    Args:
        variables: TensorFlow's or Keras'; one that is named twice counts once.
    """
    # Keras' variables stand for TensorFlow's.
    own = (v.value if isinstance(v, keras.Variable) else v for v in variables)
    different = {id(v): v for v in own}.values()
    return sum(math.prod(v.shape) * v.dtype.size for v in different)


def rows(model: keras.Model) -> list[Row]:
    """Tells what the layers of a network cost, in the order of their work.

    FLOPs are those of convolutions and matrix products (Dense, attention), a
    multiply-add counting as two. Elementwise work, BatchNorm and pools are not
    counted: by TensorFlow's profiler, 0.4 % of a ResNet-50. The profiler
    itself would not do: it knows no Einsum, which attention is made of.

    Args:
        model: Of `network.build`.

    Returns:
        A row for each block of our residual networks; else for each layer that
        has weights, counted work or an output of another size than its inputs
        (but for zero padding), in models inside the backbone, too. A BatchNorm
        is in the row of the layer before it, if that has weights. The heads
        have a row each. The rows' parameters sum to the network's.

    Raises:
        ValueError: It is no such network.
    """
    parts = network.parts(model)
    heads = [parts[n] for n in ("classifier", "projection_head") if n in parts]
    drafts = _Drafts()
    for call in _calls(model, [*_flat(parts["backbone"]), *heads]):
        drafts.add(call, is_part=call.layer in heads)
    return drafts.finished()


class _Drafts:
    """Rows in the making."""

    def __init__(self) -> None:
        self._rows: dict[Any, Row] = {}
        self._paths: dict[Any, str] = {}
        self._counted: set[int] = set()  # ids of variables
        # Which row a tensor is the output of. Calls keep their tensors alive,
        # so that an id stays one tensor's.
        self._makers: dict[int, Any] = {}

    def add(self, call: _Call, is_part: bool) -> None:
        """Takes a call into its row, or makes one, or leaves it out."""
        layer = call.layer
        is_model = isinstance(layer, keras.Model)
        variables = getattr(layer, "trainable_variables", [])
        new = [v for v in variables if id(v) not in self._counted]
        self._counted.update(map(id, new))
        size = sum(math.prod(v.shape) for v in new)
        key, name = id(layer), layer.name
        if isinstance(layer, keras.layers.BatchNormalization) and call.inputs:
            key = self._makers.get(id(call.inputs[0]), key)
        block = None if is_model else _BLOCK.match(name)
        if block:
            key, name = (call.path, block[1]), block[1]
        worth = size or call.flops or call.uncounted or block
        if not worth and not is_model:
            worth = getattr(layer, "weights", None) or call.resizes()
            worth = worth and "ZeroPadding" not in type(layer).__name__
        if not worth:
            return
        row = self._rows.get(key)
        if row is None:
            row = Row(name, (), 0, 0, name if is_part else "backbone")
            self._paths[key] = "/".join((*call.path, name))
        self._rows[key] = dataclasses.replace(
            row,
            output_shape=call.output_shape(),
            parameters=row.parameters + size,
            flops=row.flops + call.flops,
            uncounted=tuple(sorted({*row.uncounted, *call.uncounted})),
        )
        if getattr(layer, "weights", None):
            self._makers.update((id(x), key) for x in call.outputs)

    def finished(self) -> list[Row]:
        """The rows; those that would have one name have their paths."""
        names = [row.name for row in self._rows.values()]
        return [
            dataclasses.replace(row, name=self._paths[key])
            if names.count(row.name) > 1
            else row
            for key, row in self._rows.items()
        ]


def _flat(layer: keras.Operation) -> list[keras.Operation]:
    """Itself; if it is a model, all in it, but not what its layers are of."""
    found = [layer]
    if isinstance(layer, keras.Model):
        # A functional model has operations that are no layers, too.
        for inner in getattr(layer, "operations", None) or layer.layers:
            if not isinstance(inner, keras.layers.InputLayer):
                found += _flat(inner)
    return found


def _calls(
    model: keras.Model, layers: Sequence[keras.Operation]
) -> list[_Call]:
    """Runs `model` in a graph, one image, and notes the calls of `layers`."""
    calls: list[_Call] = []
    owners: dict[str, _Call] = {}

    def run(images: tf.Tensor) -> Any:
        calls.clear()
        owners.clear()
        with _watched(layers, calls, owners):
            return model(images, training=False)

    image = tf.TensorSpec([1, *model.input_shape[1:]], tf.float32)
    concrete = tf.function(run, autograph=False).get_concrete_function(image)
    graph_def = concrete.graph.as_graph_def(add_shapes=True)
    work = _Counter(graph_def).work(graph_def.node, {})
    for name, (flops, uncounted) in work.items():
        if name in owners:
            owners[name].flops += flops
            owners[name].uncounted |= uncounted
    return calls


@contextlib.contextmanager
def _watched(
    layers: Sequence[keras.Operation],
    calls: list[_Call],
    owners: dict[str, _Call],
) -> Iterator[None]:
    """Notes calls as they end, and whose each operation of the graph is.

    Keras has no hook for that, so each layer's `call` is replaced for a while.
    Names of scopes would not do: conv2d's second is conv2d_1's first.
    """
    root = tf.compat.v1.get_default_graph()
    around: list[str] = []

    def watch(layer: keras.Operation, call: Callable) -> Callable:
        def watched(*args: Any, **kwargs: Any) -> Any:
            if tf.compat.v1.get_default_graph() is not root:
                return call(*args, **kwargs)  # inside a tf.function
            begin = len(root.get_operations())
            path = tuple(around)
            around.append(layer.name)
            outputs = call(*args, **kwargs)
            around.pop()
            found = _Call(layer, path, _tensors((args, kwargs)), [])
            found.outputs = _tensors(outputs)
            calls.append(found)
            # Layers inside this one ended before it.
            for operation in root.get_operations()[begin:]:
                owners.setdefault(operation.name, found)
            return outputs

        return watched

    with contextlib.ExitStack() as stack:
        for layer in {id(x): x for x in layers}.values():
            own = vars(layer).get("call")
            call = layer.call
            layer.call = watch(layer, call)
            if own is None:
                stack.callback(delattr, layer, "call")
            else:
                stack.callback(setattr, layer, "call", own)
        yield


def _tensors(tree: Any) -> list[tf.Tensor]:
    return [x for x in keras.tree.flatten(tree) if isinstance(x, tf.Tensor)]


class _Counter:
    """Counts the work of a graph and of the functions that it calls."""

    def __init__(self, graph_def: tf.compat.v1.GraphDef) -> None:
        self._functions = {
            f.signature.name: f for f in graph_def.library.function
        }

    def work(
        self, nodes: Sequence[tf.compat.v1.NodeDef], shapes: dict[str, list]
    ) -> dict[str, _Work]:
        """Tells the work of each operation that has some.

        Args:
            nodes: The operations, of the graph or of one of its functions.
            shapes: Those of the function's arguments; the operations' are
                added.

        Returns:
            Its name → its work.
        """
        for node in nodes:
            found = node.attr["_output_shapes"].list.shape
            shapes[node.name] = [_shape(each) for each in found]
        work = {node.name: self._node(node, shapes) for node in nodes}
        return {name: each for name, each in work.items() if each != _NOTHING}

    def _function(self, name: str) -> _Work:
        function = self._functions[name]
        arguments = zip(
            function.signature.input_arg,
            function.attr["_input_shapes"].list.shape,
            strict=False,  # there may be no shapes
        )
        shapes = {a.name: [_shape(shape)] for a, shape in arguments}
        work = self.work(function.node_def, shapes).values()
        return (
            sum(flops for flops, _ in work),
            frozenset().union(*(uncounted for _, uncounted in work)),
        )

    def _node(
        self, node: tf.compat.v1.NodeDef, shapes: dict[str, list]
    ) -> _Work:
        called = [value.func.name for value in node.attr.values()]
        called += [f.name for f in node.attr["branches"].list.func]
        called = [f for f in (node.op, *called) if f in self._functions]
        if called:
            # Of a condition's branches one is run, a loop's body who knows how
            # often.
            work = [self._function(name) for name in called]
            flops = max(flops for flops, _ in work)
            uncounted = frozenset().union(*(each for _, each in work))
            if node.op.endswith("While") and flops:
                return 0, uncounted | {node.op}
            return flops, uncounted
        if node.op not in _RULES:
            found = _LIKE_THEM.search(node.op)
            return (0, frozenset([node.op])) if found else _NOTHING
        inputs = [_input(r, shapes) for r in node.input if r[0] != "^"]
        output = shapes[node.name][0] if shapes[node.name] else None
        if output is not None and None not in inputs:
            sizes = _RULES[node.op](node, inputs, output)
            if None not in sizes:
                return 2 * math.prod(sizes), frozenset()
        return 0, frozenset([node.op])


def _shape(shape: Any) -> _Shape:
    """A shape out of a graph's description."""
    if shape.unknown_rank:
        return None
    return tuple(None if d.size < 0 else d.size for d in shape.dim)


def _input(reference: str, shapes: dict[str, list]) -> _Shape:
    """The shape of "node", "node:1" or, in a function, "node:name:1"."""
    name, *place = reference.split(":")
    index = int(place[-1]) if place else 0
    found = shapes.get(name, [])
    return found[index] if index < len(found) else None


# Rules: sizes whose product is the number of multiply-adds.


def _convolution(node: Any, inputs: list, output: tuple) -> tuple:
    kernel, images = inputs[1], output
    if "Backprop" in node.op:
        images = inputs[2]  # a transposed one: each pixel of its input
    # The size before the last is that of one group's channels.
    used = kernel[:2] if "Depthwise" in node.op else kernel[:-1]
    # Inside a tf.function the batch may be unknown: it is one image.
    return (images[0] or 1, *images[1:], *used)


def _product(node: Any, inputs: list, output: tuple) -> tuple:
    flipped = node.attr["transpose_a"].b or node.attr["adj_x"].b
    return (*output, inputs[0][-2 if flipped else -1])


def _einsum(node: Any, inputs: list, output: tuple) -> tuple:
    terms = node.attr["equation"].s.decode().split("->")[0].split(",")
    if len(terms) == 1:
        return (0,)
    sizes: dict[str, int | None] = {}
    for term, shape in zip(terms, inputs, strict=True):
        head, _, tail = term.partition("...")
        between = range(len(shape) - len(head) - len(tail), 0, -1)
        labels = [*head, *(f"...{i}" for i in between), *tail]
        for label, size in zip(labels, shape, strict=True):
            if sizes.get(label, 1) in (1, None):  # 1 is stretched
                sizes[label] = size
    return tuple(sizes.values())


_RULES = {
    "Conv2D": _convolution,
    "Conv3D": _convolution,
    "DepthwiseConv2dNative": _convolution,
    "Conv2DBackpropInput": _convolution,
    "Conv3DBackpropInputV2": _convolution,
    "MatMul": _product,
    "BatchMatMul": _product,
    "BatchMatMulV2": _product,
    "BatchMatMulV3": _product,
    "Einsum": _einsum,
}
