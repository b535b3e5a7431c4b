"""PyTorch's training step, which ours is compared with, equals ours.

In float64, from the same weights on the same batches. Differences are relative:
the largest one of a tensor over the tensor's largest value.
"""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.distributed import strategies
from simmatch_tf.ops import matching, schedules
from simmatch_tf.pytorch import tensors as tensors_lib
from simmatch_tf.training import state as state_lib
from tests import runs

torch = pytest.importorskip(
    "torch", reason="PyTorch is not installed: pip install -e '.[pytorch]'"
)
import pytorch_networks  # noqa: E402 (needs PyTorch)
import pytorch_simmatch  # noqa: E402

pytestmark = [
    pytest.mark.extra,
    pytest.mark.usefixtures("one_torch_thread"),
]

TOOLS = pathlib.Path(__file__).resolve().parents[2] / "tools/benchmarks"
CLASSES, SLOTS, SIDE, STEPS, TOLERANCE = 4, 20, 8, 3, 1e-12
LABELS = np.arange(SLOTS) * 7 % CLASSES
# Rate and EMA are powers of 2: exact in float32, in which a schedule computes.
CONFIG = {
    "precision": "float64",
    "batch_size": 6,
    "da_window": 2,
    "batch_norm_momentum": 0.75,
    "ema_momentum": 0.75,
    "ema_warmup": False,
    "schedule": "constant",
    "learning_rate": 2**-4,
    "weight_decay": 0.02,
    "threshold": 0.3,
    "lambda_u": 2.0,
    "lambda_in": 3.0,
}
FORMS = {
    "teacher": {"targets_from": "teacher", "weight_decay_on": "all"},
    "ensemble": {"targets_from": "student", "weight_decay_on": "kernels"},
    "separate": {"targets_from": "student", "weak_forward": "separate"},
}


@pytest.fixture
def same_slope(monkeypatch):
    """Uses float32's 0.1 as LeakyReLU's slope, as TensorFlow does."""
    slope = float(np.float32(0.1))
    monkeypatch.setattr(
        pytorch_networks,
        "leak",
        lambda x: torch.nn.functional.leaky_relu(x, slope),
    )


def bias_variances(module):
    """Makes PyTorch's BatchNorms average biased variances, as ours do."""

    def before(part, inputs):
        part.kept = (1 - part.momentum) * part.running_var

    def after(part, inputs, output):
        if part.training:
            n = inputs[0].numel() // inputs[0].shape[1]
            added = part.running_var - part.kept
            # `data`: a batch's backward has noted, not used, the variable.
            part.running_var.data.copy_(part.kept + (n - 1) / n * added)

    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.register_forward_pre_hook(before)
            part.register_forward_hook(after)


def both(rows, **changes):
    """Makes our algorithm and PyTorch's with the same memory banks."""
    config = runs.config("none", **{**CONFIG, **changes})
    config = config.with_durations(1000)
    mean, std = [0.5] * 3, [0.25] * 3
    theirs = pytorch_simmatch.SimMatch(
        config,
        torch.from_numpy(LABELS),
        classes=CLASSES,
        mean=mean,
        std=std,
        dtype=torch.float64,
    )
    ours = state_lib.make_algorithm(
        config,
        strategies.one(),
        image_shape=(SIDE, SIDE, 3),
        slot_labels=LABELS,
        num_classes=CLASSES,
        statistics=(mean, std),
    )
    bias_variances(theirs.student)
    for seed, module, model in (
        (0, theirs.student, ours.student),
        (1, theirs.teacher, ours.teacher.model),
    ):
        pytorch_networks.randomize(module, seed)
        tensors_lib.load(model, arrays(module))
    z = np.random.default_rng(2).normal(size=[rows, config.projection_dim])
    ours.memory.update(np.arange(rows), z)
    theirs.memory.copy_(torch.from_numpy(ours.memory.features.numpy()))
    theirs.filled[:rows] = True
    return ours, theirs


def arrays(module):
    """Copies weights and statistics, by PyTorch's names."""
    return {
        name: value.detach().numpy().copy()
        for name, value in module.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def draw(rng):
    """Makes a batch in which one slot occurs twice.

    Black and white are exact in the float32 in which images are normalised.
    """

    def images(count):
        x = 255 * rng.integers(0, 2, [count, SIDE // 2, SIDE // 2, 3])
        return x.repeat(2, axis=1).repeat(2, axis=2).astype(np.uint8)

    slots = rng.choice(SLOTS, CONFIG["batch_size"], replace=False)
    slots[1] = slots[0]
    return {
        "labeled_weak": images(len(slots)),
        "labels": LABELS[slots],
        "slots": slots,
        "unlabeled_weak": images(2 * len(slots)),
        "unlabeled_strong": images(2 * len(slots)),
    }


def our_state(algorithm):
    velocities = {
        variable.path: algorithm.optimizer.velocity(variable).numpy()
        for variable in algorithm.student.trainable_variables
    }
    tensors = tensors_lib.tensors(algorithm.student)
    return {
        "student": tensors_lib.export(algorithm.student),
        "EMA": tensors_lib.export(algorithm.teacher.model),
        "velocities": {
            name: tensor.to_torch(velocities[tensor.variable.path])
            for name, tensor in tensors.items()
            if tensor.variable.trainable
        },
        "memory": {"": algorithm.memory.features.numpy()},
        "alignment": {"": algorithm.align.window.numpy()},
    }


def their_state(method):
    return {
        "student": arrays(method.student),
        "EMA": arrays(method.teacher),
        "velocities": {
            name: method.sgd.state[weight]["momentum_buffer"].numpy()
            for name, weight in method.student.named_parameters()
        },
        "memory": {"": method.memory.numpy()},
        "alignment": {"": method.window.numpy()},
    }


def difference(ours, theirs):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    return np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-300)


def largest(ours, theirs):
    """Returns the largest difference of two dicts of tensors."""
    assert ours.keys() == theirs.keys()
    return max(difference(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("rows", [SLOTS, SLOTS - 1])
@pytest.mark.parametrize("form", FORMS)
def test_three_steps(form, rows, same_slope):
    """With a full memory bank, and with one that is not, without matching."""
    ours, theirs = both(rows, **FORMS[form])
    before = our_state(ours)
    step = tf.function(ours.guarded_step, autograph=False)
    rng = np.random.default_rng(3)
    gaps, masks = {}, []
    full = rows == SLOTS
    for number in range(STEPS):
        batch = draw(rng)
        batch["slots"] %= rows  # the last one is never written
        batch["labels"] = LABELS[batch["slots"]]
        wanted = theirs.step({k: torch.from_numpy(v) for k, v in batch.items()})
        values = step({k: tf.constant(v) for k, v in batch.items()})
        assert 0 < values.pop("memory/norm") <= 1 + TOLERANCE  # ours alone
        gaps[f"losses {number}"] = largest(values, wanted)
        masks.append(float(values["pseudo_label/mask_rate"]))
        assert (float(values["loss/in"]) > 0) == full
    state = our_state(ours)
    for part, wanted in their_state(theirs).items():
        gaps[part] = largest(state[part], wanted)
        if full:  # all of it has moved: there was something to compare
            for name, value in state[part].items():
                assert (value != before[part][name]).any(), name
    assert {part: gap for part, gap in gaps.items() if gap > TOLERANCE} == {}
    assert any(0 < mask < 1 for mask in masks)


def test_matching():
    rng = np.random.default_rng(4)
    z_w, z_s, memory = (rng.normal(size=[n, 16]) for n in (5, 5, SLOTS))
    z_w, z_s, memory = (
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in (z_w, z_s, memory)
    )
    p_w = rng.dirichlet(np.ones(CLASSES), size=5)
    wanted = pytorch_simmatch.matching(
        *(torch.from_numpy(x) for x in (z_w, z_s, p_w, memory, LABELS)),
        temperature=0.1,
        alpha=0.9,
    )
    z_s = tf.constant(z_s)
    with tf.GradientTape() as tape:
        tape.watch(z_s)
        p_hat, entropies = matching.match(
            z_w,
            z_s,
            p_w,
            memory,
            LABELS,
            num_classes=CLASSES,
            temperature=0.1,
            alpha=0.9,
        )
        loss = tf.reduce_mean(entropies)
    ours = p_hat, loss, tape.gradient(loss, z_s)
    for one, other in zip(ours, wanted, strict=True):
        assert difference(one, other) < 1e-12


@pytest.mark.parametrize("schedule", ["cosine_7_16", "half_cosine", "constant"])
def test_rates(schedule):
    config = runs.config("none", schedule=schedule, steps=50, warmup_steps=5)
    for step in (0, 3, 4, 5, 20, 49):
        wanted = schedules.learning_rate(
            tf.constant(step),
            peak=config.learning_rate,
            steps=50,
            warmup_steps=5,
            shape=schedule,
        )
        rate = pytorch_simmatch.learning_rate(config, step)
        np.testing.assert_allclose(rate, wanted, rtol=1e-4)


@pytest.mark.slow
def test_benchmark(tmp_path):
    output = tmp_path / "x.json"
    names = ["network", "pytorch_bfloat16", "pytorch_channels_last"]
    process = subprocess.run(
        [
            sys.executable,
            TOOLS / "benchmark_pytorch.py",
            *runs.argv(tmp_path / "run", targets_from="teacher"),
            f"--competitors={','.join(names)}",
            "--rounds=2",
            f"--output={output}",
        ],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    figures = json.loads(output.read_text())["competitors"]
    assert list(figures) == names
    for each in figures.values():
        assert len(each["seconds"]) == 2 and min(each["seconds"]) > 0
        assert each["peak_bytes"] > 2**20
    assert figures["pytorch_channels_last"]["ratio"] == 1
    assert all(name in process.stdout for name in names)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_benchmark_matching(tmp_path):
    output = tmp_path / "x.json"
    process = subprocess.run(
        [
            sys.executable,
            TOOLS / "benchmark_matching.py",
            "--rounds=1",
            "--largest=13000",
            f"--output={output}",
        ],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    figures = json.loads(output.read_text())["slots"]["13000"]
    everybody = ["match", "tensorflow", "pytorch", "pytorch_as_it_comes"]
    assert list(figures) == everybody
    for each in figures.values():
        assert each["of_the_machine_s_rate"] > 0
        assert each["bytes_above_inputs"] > 0
    assert figures["match"]["times_ours"] == 1
