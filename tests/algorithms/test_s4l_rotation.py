"""S4L-Rotation's whole step against its equations, and what surrounds it."""

import json

import numpy as np
import pytest

import simmatch_tf
from simmatch_tf import evaluate, report
from simmatch_tf.algorithms import diagnostics
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.flags import errors
from simmatch_tf.lazy import tf
from simmatch_tf.training import inputs
from tests import reference, runs
from tests.algorithms import whole_step


def turned(images, turns):
    """Turned counterclockwise: pixel [y, x] was [x, S - 1 - y] before."""
    for _ in range(turns):
        images = np.swapaxes(images, 1, 2)[:, ::-1]
    return images


def s4l_rotation(s):
    """mean CE(x, y) + λ ½ (mean CE₄ of x + mean CE₄ of w)."""
    x, w = s.batch["labeled_weak"], s.batch["unlabeled_weak"]
    images = [turned(x, k) for k in range(4)] + [turned(w, k) for k in range(4)]
    out = s.student(np.concatenate(images))
    losses = {"loss/s": [], "rotation of x": [], "rotation of w": []}
    right, start = [], 0
    for number, batch in enumerate(images):
        k, rows = number % 4, slice(start, start + len(batch))
        start += len(batch)
        kind = "x" if number < 4 else "w"
        rotation, turns = out["rotation"][rows], np.full(len(batch), k)
        losses[f"rotation of {kind}"].append(
            reference.supervised_loss(rotation, turns)
        )
        if kind == "x":
            losses["loss/s"].append(
                reference.supervised_loss(
                    out["logits"][rows], s.batch["labels"]
                )
            )
        else:
            right.append(np.mean(rotation.argmax(axis=1) == k))
    losses = {name: np.mean(values) for name, values in losses.items()}
    loss_rot = (losses["rotation of x"] + losses["rotation of w"]) / 2
    weighted = s.algorithm.hyper.lambda_rot * loss_rot
    return {
        "loss/total": losses["loss/s"] + weighted,
        "loss/s": losses["loss/s"],
        "loss/rotation": loss_rot,
        "loss/weighted_rotation": weighted,
        "rotation/accuracy": np.mean(right),
    }, {}


@pytest.mark.parametrize("changes", [{}, {"s4l_rotation.lambda_rot": 0.25}])
def test_step(changes):
    algorithm = whole_step.make("s4l_rotation", **changes)
    # More unlabeled images than labeled ones, which weigh the same.
    batch = whole_step.batch(views=("weak",), unlabeled=6)
    assert len(batch["labels"]) == 4
    (first,) = whole_step.check(algorithm, s4l_rotation, [batch])
    assert first["loss/rotation"] > 0.1
    heads = [
        network.get_layer("rotation").get_weights()[0]
        for network in algorithm.networks().values()
    ]
    assert heads[0].shape == (whole_step.WIDTH, 4)


def test_defaults_are_the_published_ones():
    config = simmatch_tf.Config(algorithm="s4l_rotation", labels=10, steps=9)
    assert (config.hyper.lambda_rot, config.unlabeled_ratio) == (1, 1)
    algorithm = whole_step.make("s4l_rotation")
    assert algorithm.evaluated_weights == "student"


def test_diagnostics_are_of_images_that_are_not_turned():
    algorithm = whole_step.make("s4l_rotation")
    x = whole_step.batch(views=("weak",))
    x[diagnostics.LOGGED] = tf.constant(True)
    network = whole_step.Network(algorithm.student)
    images = [
        turned(x[f"{kind}_weak"].numpy(), k)
        for kind in ("labeled", "unlabeled")
        for k in range(4)
    ]
    p = reference.softmax(network(np.concatenate(images))["logits"])
    shown = tf.function(algorithm.guarded_step, autograph=False)(x)
    shown = shown[diagnostics.DIAGNOSTICS]
    np.testing.assert_allclose(shown.rows["p_w"], p[16:22], rtol=1e-5)


@pytest.mark.parametrize("algorithm", ["s4l_rotation", "remixmatch"])
def test_images_that_are_not_square_are_refused(algorithm):
    rng = np.random.default_rng(0)

    def images(count):
        return source_lib.Images(
            rng.integers(0, 256, [count, 8, 12, 1]).astype(np.uint8),
            np.arange(count) % 2,
        )

    wide = source_lib.Source(
        name="wide",
        class_names=["a", "b"],
        train=images(8),
        test=images(4),
        flip=False,
    )

    def load(algorithm):
        config = simmatch_tf.Config(
            algorithm=algorithm,
            dataset="custom",
            labels=2,
            steps=1,
            backbone="wrn_10_1",
        )
        return inputs.make_source(config, wide)

    message = f"8×12: --algorithm={algorithm}, which rotates them, needs sq"
    with pytest.raises(errors.InputError, match=message):
        load(algorithm)
    assert load("simmatch") is wide


@pytest.mark.slow
def test_evaluate_also_averages_over_rotations(tmp_path, capsys):
    """Each network's; the result is that of images that are not turned."""
    result = runs.fit(tmp_path / "run", algorithm="s4l_rotation", steps=4)
    assert result.weights_of_record == "student"
    config = evaluate.EvaluateConfig(
        workdir=str(tmp_path / "run"), batch_size=99
    )
    evaluate.main(config)
    assert "top-1, mean of four rotations" in capsys.readouterr().out
    figures = json.loads((tmp_path / "run/evaluation.json").read_text())
    test = inputs.make_source(runs.config(tmp_path / "run")).test
    for name in ("student", "ema"):
        model = simmatch_tf.load(tmp_path / "run", weights=name)
        logits = [model(turned(test.images, k))["logits"] for k in range(4)]
        for chosen, top1 in (
            (logits[0], figures[name]["top1"]),
            (
                sum(logits) / 4,
                figures[name]["averaged"]["four rotations"]["top1"],
            ),
        ):
            right = np.argmax(chosen, axis=1) == test.labels
            assert top1 == pytest.approx(right.mean(), abs=1e-9)
    page = tmp_path / "report.html"
    report.main(
        report.ReportConfig(runs=(str(tmp_path / "run"),), output=str(page))
    )
    assert "Means of copies" in page.read_text("utf-8")
