"""The Keras networks and their training equal PyTorch's.

The other side is tools/benchmarks/pytorch_networks.py, on the same weights.
Differences are relative: the largest one of a tensor over the tensor's largest
value.

Training is compared in float64. In float32 rounding alone puts a few of a
step's millions of activations on the other side of a kink, each of which
shifts whole gradients: PyTorch in float32 is then as far from PyTorch in
float64 as we are (5 steps of ResNet-50: 1e-2 of the logits, 0.3 of what the
weights learned), and no tolerance tells an error from that. In float64 both
agree a million times better than any error would let them.
"""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.modules import optimizer
from simmatch_tf.networks import network
from simmatch_tf.pytorch import tensors as tensors_lib

torch = pytest.importorskip(
    "torch", reason="PyTorch is not installed: pip install -e '.[pytorch]'"
)
import pytorch_networks  # noqa: E402 (needs PyTorch)

pytestmark = [
    pytest.mark.extra,
    pytest.mark.usefixtures("one_torch_thread"),
]

CLASSES, DIM = 10, 16
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
BATCH = 8
# Powers of 2, so exact in float32, too, in which a schedule computes.
RATES = [2**-8, 2**-6, 2**-9, 2**-7, 2**-10]
# Far above the published ones: else it would hide in the gradients.
DECAY = 0.02
# Name → (PyTorch's backbone, ours).
BACKBONES = {
    "resnet18": (lambda: pytorch_networks.ResNet(18), {}),
    "resnet18x2": (lambda: pytorch_networks.ResNet(18, 2), {}),
    "resnet34": (lambda: pytorch_networks.ResNet(34), {}),
    "resnet50": (lambda: pytorch_networks.ResNet(50), {}),
    "resnet101": (lambda: pytorch_networks.ResNet(101), {}),
    "wrn_28_2": (lambda: pytorch_networks.WideResNet(28, 2), {}),
    "wrn_10_1": (
        lambda: pytorch_networks.WideResNet(10, 1, stem_stride=2),
        {"stem_stride": 2},
    ),
}


def both(name, height, width, dtype="float32"):
    """A random PyTorch network, and ours with its weights."""
    make, options = BACKBONES[name]
    backbone = make()
    theirs = pytorch_networks.Network(backbone, backbone.width, CLASSES, DIM)
    pytorch_networks.randomize(theirs, seed=0)
    ours = network.build(
        name,
        image_shape=(height, width, 3),
        num_classes=CLASSES,
        projection_dim=DIM,
        mean=MEAN,
        std=STD,
        options=options,
    )
    if dtype != "float32":  # a policy would leave the heads in float32
        config = json.dumps(ours.get_config()).replace("float32", dtype)
        ours = keras.Model.from_config(json.loads(config))
    tensors_lib.load(ours, arrays(theirs))
    return theirs.to(getattr(torch, dtype)), ours


def arrays(module):
    """Copies of the weights and statistics, by PyTorch's names."""
    return {
        name: value.numpy().copy()
        for name, value in module.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def difference(ours, theirs):
    ours, theirs = np.float64(ours), np.float64(theirs)
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def check(kind, ours, theirs, tolerance):
    """Holds every tensor of a dict equal to the other dict's."""
    assert ours.keys() == theirs.keys()
    differences = {k: difference(v, theirs[k]) for k, v in ours.items()}
    wrong = {k: v for k, v in differences.items() if not v < tolerance}
    assert not wrong, f"{kind}: relative differences {wrong}"


@pytest.mark.parametrize(
    ("name", "height", "width"),
    [
        ("resnet18", 64, 64),
        ("resnet18", 65, 50),
        ("resnet50", 64, 64),
        ("resnet50", 65, 50),
        ("resnet34", 40, 40),
        ("resnet101", 40, 40),
        ("resnet18x2", 40, 40),
        ("wrn_28_2", 32, 32),
        ("wrn_28_2", 33, 26),
        ("wrn_10_1", 32, 32),
        ("wrn_10_1", 33, 26),
    ],
)
def test_inference(name, height, width):
    theirs, ours = both(name, height, width)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, [4, height, width, 3]).astype(np.uint8)
    theirs.eval()
    with torch.no_grad():
        wanted = theirs(pytorch_networks.normalize(images, MEAN, STD))
    keys = ("features", "logits", "embeddings")
    wanted = {k: v.numpy() for k, v in zip(keys, wanted, strict=True)}
    check("outputs", dict(ours(images)), wanted, 1e-4)


def draw(rng, side):
    """Images of black and white squares in each channel, and labels.

    0 and 1 are exact in the float32 in which we normalise.
    """
    small = rng.integers(0, 2, [BATCH, side // 4, side // 4, 3])
    images = (255 * small).repeat(4, axis=1).repeat(4, axis=2)
    return images.astype(np.uint8), rng.integers(0, CLASSES, BATCH)


class TheirTraining:
    """PyTorch's side: one call is one SGD step."""

    def __init__(self, module, decay_on, direction):
        self.module, self.dtype = module.train(), module.fc.weight.dtype
        self.direction = torch.tensor(direction)
        kernels = [p for p in module.parameters() if p.ndim > 1]
        vectors = [p for p in module.parameters() if p.ndim == 1]
        self.sgd = torch.optim.SGD(
            [
                {"params": kernels, "weight_decay": DECAY},
                {
                    "params": vectors,
                    "weight_decay": DECAY if decay_on == "all" else 0.0,
                },
            ],
            lr=RATES[0],
            momentum=0.9,
            nesterov=True,
        )

    def __call__(self, images, labels, step):
        x = pytorch_networks.normalize(images, MEAN, STD).to(self.dtype)
        _, logits, embeddings = self.module(x)
        loss = torch.nn.functional.cross_entropy(
            logits, torch.from_numpy(labels)
        )
        loss = loss + (embeddings @ self.direction).square().mean()
        self.sgd.zero_grad()
        loss.backward()
        for group in self.sgd.param_groups:
            group["lr"] = RATES[step]
        self.sgd.step()
        return {
            "logits": logits.detach().numpy(),
            "embeddings": embeddings.detach().numpy(),
        }

    def velocities(self):
        return {
            name: self.sgd.state[parameter]["momentum_buffer"].numpy()
            for name, parameter in self.module.named_parameters()
        }


class OurTraining:
    """The same on TensorFlow."""

    def __init__(self, model, decay_on, direction):
        self.model, self.direction = model, tf.constant(direction)
        self.sgd = optimizer.Sgd(
            optimizer.Schedule(lambda step: tf.gather(RATES, step)),
            decay=DECAY,
            decay_on=decay_on,
        )
        self.sgd.build(model.trainable_variables)
        self._step = tf.function(self._traced)

    def _traced(self, images, labels):
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            out = self.model(images, training=True)
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(
                    labels, out["logits"]
                )
            )
            projection = tf.linalg.matvec(out["embeddings"], self.direction)
            loss += tf.reduce_mean(projection**2)
        gradients = tape.gradient(loss, [v.value for v in variables])
        self.sgd.apply(gradients, variables)
        return {k: out[k] for k in ("logits", "embeddings")}

    def __call__(self, images, labels):
        return self._step(tf.constant(images), tf.constant(labels))

    def velocities(self):
        """By PyTorch's names; leaves them in the model as its weights."""
        for variable, velocity in zip(
            self.model.trainable_variables, self.sgd.velocities, strict=True
        ):
            variable.assign(velocity)
        trained = {"weight", "bias"}
        return {
            name: value
            for name, value in tensors_lib.export(self.model).items()
            if name.split(".")[-1] in trained
        }


def unbiased(statistics, initial, model, steps):
    """Our running variances as PyTorch would have counted them.

    PyTorch adds a batch's variance times n/(n-1) for n values a channel, we
    without the factor; the share of the initial value has no factor.
    """
    result = dict(statistics)
    for layer in network.parts(model)["backbone"].layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            name = f"backbone.{layer.name.replace('_', '.')}.running_var"
            n = BATCH * np.prod(layer.output.shape[1:3])
            kept = layer.momentum**steps * np.float64(initial[name])
            result[name] = kept + n / (n - 1) * (statistics[name] - kept)
    return result


def train(name, side, decay_on, dtype, tolerance):
    """Trains both, and compares what can be seen of them."""
    module, model = both(name, side, side, dtype)
    initial = arrays(module)
    rng = np.random.default_rng(2)
    direction = rng.normal(size=DIM).astype(dtype)
    theirs = TheirTraining(module, decay_on, direction)
    ours = OurTraining(model, decay_on, direction)
    for step in range(len(RATES)):
        images, labels = draw(rng, side)
        wanted = theirs(images, labels, step)
        check(f"step {step}", ours(images, labels), wanted, tolerance)
    trained, wanted = tensors_lib.export(model), arrays(module)
    trained = unbiased(trained, initial, model, len(RATES))
    check("weights and statistics", trained, wanted, tolerance)
    # What was learned, however little it is.
    check(
        "changes",
        {k: v - initial[k] for k, v in trained.items()},
        {k: v - initial[k] for k, v in wanted.items()},
        tolerance,
    )
    check("velocities", ours.velocities(), theirs.velocities(), tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side", "decay_on"),
    [
        pytest.param("resnet18", 40, "all", marks=pytest.mark.slow),
        pytest.param("resnet50", 40, "all", marks=pytest.mark.variant),
        ("wrn_28_2", 16, "all"),
        ("wrn_28_2", 16, "kernels"),
    ],
)
def test_training(name, side, decay_on):
    """Five steps of Nesterov SGD with L2 under a changing rate."""
    train(name, side, decay_on, "float64", 1e-6)


@pytest.mark.parametrize("decay_on", ["kernels", "all"])
def test_training_in_float32(decay_on):
    """So small that rounding meets no kink; see above."""
    train("wrn_10_1", 16, decay_on, "float32", 1e-3)


@pytest.mark.parametrize(
    ("name", "side"), [("resnet18", 64), ("resnet50", 64), ("wrn_28_2", 32)]
)
def test_batch_statistics_in_float32(name, side):
    """One forward in training mode."""
    module, model = both(name, side, side)
    initial = arrays(module)
    images, _ = draw(np.random.default_rng(3), side)
    with torch.no_grad():
        wanted = module.train()(pytorch_networks.normalize(images, MEAN, STD))
    keys = ("features", "logits", "embeddings")
    wanted = {k: v.numpy() for k, v in zip(keys, wanted, strict=True)}
    check("outputs", dict(model(images, training=True)), wanted, 1e-3)
    updated = unbiased(tensors_lib.export(model), initial, model, steps=1)
    check("statistics", updated, arrays(module), 1e-3)
