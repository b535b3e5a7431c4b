"""What an algorithm may declare, each by a small algorithm of its own."""

import dataclasses
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import simmatch_tf
from simmatch_tf import registry
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.flags import commandline, errors
from simmatch_tf.modules import replica
from simmatch_tf.ops import losses, rotations, sampling
from tests import runs
from tests.algorithms import test_simmatch as small
from tests.training import test_loop


def fit(workdir, algorithm, **changes):
    changes = {"steps": 2, "eval_every": 2, "unlabeled_ratio": 1, **changes}
    return runs.fit(workdir, algorithm=algorithm, **changes)


def saved(workdir):
    """The last checkpoint: name → array."""
    tensors = test_loop.tensors(workdir, 2)
    return {
        name.removeprefix("algorithm/").removesuffix(
            "/.ATTRIBUTES/VARIABLE_VALUE"
        ): value
        for name, value in tensors.items()
    }


@registry.algorithms.register("rotation_test")
class Rotation(simmatch_tf.Algorithm):
    """Four rotations of every image, and a head that tells which."""

    unlabeled_views = ("weak",)
    evaluated_weights = "student"

    def heads(self):
        return {"rotation": lambda features: keras.layers.Dense(4)(features)}

    def train_step(self, batch):
        x_l, turns_l = rotations.four_rotations(batch["labeled_weak"])
        x_u, turns_u = rotations.four_rotations(batch["unlabeled_weak"])
        with tf.GradientTape() as tape:
            out = self.call(self.student, tf.concat([x_l, x_u], 0))
            classes = tf.tile(batch["labels"], [4])
            count = x_l.shape[0]
            loss_s = losses.supervised_loss(out["logits"][:count], classes)
            turns = tf.concat([turns_l, turns_u], 0)
            loss_r = losses.supervised_loss(out["rotation"], turns)
            loss = loss_s + loss_r
        self.minimize(tape, loss)
        return {"loss/total": loss, "loss/rotation": loss_r}


def test_rotated_copies_and_a_head(tmp_path):
    result = fit(tmp_path, "rotation_test")
    assert result.weights_of_record == "student"
    outputs = simmatch_tf.load(tmp_path)(np.zeros([3, 8, 8, 1], np.uint8))
    assert outputs["rotation"].shape == (3, 4)
    heads = [name for name in saved(tmp_path) if "optimizer" not in name]
    assert any(name.startswith("student/") for name in heads)
    student, teacher = (
        network.get_layer("rotation").get_weights()[0]
        for network in small.make(Rotation).networks().values()
    )
    assert student.shape == (6, 4)
    np.testing.assert_array_equal(student, teacher)


@registry.algorithms.register("unlabeled_test")
class NoLabels(simmatch_tf.Algorithm):
    """No labeled images, and a second projection with a BatchNorm."""

    labeled_views = ()
    unlabeled_views = ("weak", "weak_2")

    def heads(self):
        def project(features):
            x = keras.layers.Dense(8, use_bias=False)(features)
            x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
            return keras.layers.Dense(4)(x)

        return {"projection_2": project}

    def train_step(self, batch):
        assert not {"labels", "slots", "labeled_weak"} & batch.keys()
        x = tf.concat([batch["unlabeled_weak"], batch["unlabeled_weak_2"]], 0)
        with tf.GradientTape() as tape:
            z = self.call(self.student, x)["projection_2"]
            one, other = tf.split(z, 2)
            loss = tf.reduce_mean(tf.square(one - other))
        self.minimize(tape, loss)
        return {"loss/total": loss}


@pytest.mark.slow
def test_no_labeled_views_and_a_batch_norm_in_a_head(tmp_path):
    assert fit(tmp_path, "unlabeled_test").loss > 0
    head = simmatch_tf.load(tmp_path, weights="student")
    head = head.get_layer("projection_2")
    norms = [
        layer
        for layer in head.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    assert np.abs(norms[0].moving_mean.numpy()).max() > 0


@registry.algorithms.register("index_test")
class Index(simmatch_tf.Algorithm):
    """Counts how often it saw each unlabeled image."""

    unlabeled_views = ("weak",)
    needs_index = True

    def build_state(self):
        zeros = np.zeros(self.unlabeled_images, np.int32)
        self.counts = replica.variable(zeros, "counts", tf.int32)

    def train_step(self, batch):
        with tf.GradientTape() as tape:
            out = self.call(self.student, batch["labeled_weak"])
            loss = losses.supervised_loss(out["logits"], batch["labels"])
        self.minimize(tape, loss)
        index = replica.all_gather(batch["unlabeled_index"])
        ones = tf.ones_like(index, tf.int32)
        self.counts.assign(
            tf.tensor_scatter_nd_add(self.counts, index[:, None], ones)
        )
        return {"loss/total": loss}


def test_state_of_each_unlabeled_image(tmp_path):
    fit(tmp_path, "index_test", steps=2, unlabeled_ratio=3)
    counts = saved(tmp_path)["counts"]
    assert counts.sum() == 2 * 3 * runs.SMALL["batch_size"]
    assert counts.max() == 1  # no image comes twice in an epoch


@registry.algorithms.register("crops_test")
class Crops(simmatch_tf.Algorithm):
    """Five strong views of different sizes, and work between steps."""

    unlabeled_views = (
        "weak",
        *(
            algorithm_lib.View(
                f"crop_{side}",
                "strong",
                crop="resized_crop",
                side=side,
                crop_area=(0.1, side / 16),
            )
            for side in (12, 10, 8, 6, 4)
        ),
    )
    between_steps_every = 1
    calls = ()

    def between_steps(self, step):
        Crops.calls += (step,)

    def train_step(self, batch):
        targets = self.call(self.student, batch["unlabeled_weak"], "inference")
        p_w = tf.nn.softmax(targets["logits"])
        with tf.GradientTape() as tape:
            loss = 0.0
            for side in (12, 10, 8, 6, 4):
                x = batch[f"unlabeled_crop_{side}"]
                assert x.shape[1:] == (side, side, 1)
                out = self.call(self.student, x)
                loss += losses.unsupervised_loss(out["logits"], p_w, 0.0)[0]
        self.minimize(tape, loss)
        return {"loss/total": loss}


@pytest.mark.slow
def test_five_views_of_different_sizes(tmp_path):
    result = fit(tmp_path, "crops_test")
    assert result.loss > 0 and Crops.calls == (1, 2)
    logits = simmatch_tf.load(tmp_path)(np.zeros([3, 8, 8, 1], np.uint8))
    assert logits["logits"].shape == (3, 10)


def test_a_view_is_as_large_as_a_share_of_the_images():
    view = algorithm_lib.View("x", "weak", scale=96 / 224)
    assert view.side_of(224) == 96 and view.side_of(16) == 7
    assert algorithm_lib.View("x", "weak", side=5).side_of(16) == 5
    assert algorithm_lib.View("x", "weak").side_of(16) == 16
    with pytest.raises(ValueError, match="side=5 and scale=0.5: give one"):
        algorithm_lib.View("x", "weak", side=5, scale=0.5)


def statistics(algorithm):
    return [
        variable.numpy()
        for variable in algorithm.student.non_trainable_variables
        if "moving" in variable.path
    ]


@pytest.mark.parametrize("batch_norm", ["synchronized", "local"])
@pytest.mark.parametrize("replicas", [1, 2])
def test_batch_statistics_without_an_update(replicas, batch_norm, two_replicas):
    strategy = tf.distribute.get_strategy()
    if replicas == 2:
        strategy = two_replicas
    x = small.batch()["unlabeled_weak"]
    shares = strategy.experimental_distribute_values_from_function(
        lambda context: tf.split(x, replicas)[context.replica_id_in_sync_group]
    )
    outputs, averages = {}, {}
    for mode in ("train", "batch", "inference"):
        with strategy.scope():
            algorithm = small.make(NoLabels, batch_norm=batch_norm)
        run = tf.function(
            lambda x, a=algorithm, m=mode: strategy.run(
                a.call, args=(a.student, x, m)
            ),
            autograph=False,
        )
        before = statistics(algorithm)
        values = run(shares)["projection_2"]
        outputs[mode] = np.concatenate(
            strategy.experimental_local_results(values)
        )
        pairs = zip(before, statistics(algorithm), strict=True)
        averages[mode] = [(one == other).all() for one, other in pairs]
    assert len(averages["batch"]) == 4  # of the backbone and of the head
    assert all(averages["batch"]) and all(averages["inference"])
    assert not any(averages["train"])
    np.testing.assert_array_equal(outputs["batch"], outputs["train"])
    assert (outputs["batch"] != outputs["inference"]).any()


def test_what_is_no_mode_and_no_view():
    algorithm = small.make(NoLabels)
    with pytest.raises(ValueError, match="batch_norm='eval': must be train"):
        algorithm.call(algorithm.student, None, "eval")
    with pytest.raises(ValueError, match="view 'crop_9': must be weak, strong"):
        algorithm_lib.View.parse("crop_9")
    with pytest.raises(ValueError, match="augmentation='blur': must be one of"):
        algorithm_lib.View("x", "blur")
    with pytest.raises(ValueError, match="crop_area=.* is for crop='resized_"):
        algorithm_lib.View("x", "weak", crop_area=(0.1, 1.0))


class Faulty(simmatch_tf.Algorithm):
    """One step of each fault."""

    unlabeled_views = ()
    fault = ""

    def train_step(self, batch):
        with tf.GradientTape() as tape:
            x = batch["labeled_weak"]
            if self.fault == "key":
                x = batch["weak"]
            logits = self.call(self.student, x)["logits"]
            if self.fault == "random":
                logits += tf.random.normal(logits.shape)
            if self.fault == "nested":
                logits += tf.cond(
                    self.step > 0,
                    lambda: tf.random.uniform(logits.shape),
                    lambda: tf.zeros_like(logits),
                )
            if self.fault == "":
                logits += tf.random.stateless_normal(
                    logits.shape, self.seed("noise")
                )
            loss = losses.supervised_loss(logits, batch["labels"])
        for _ in range({"never": 0, "twice": 2}.get(self.fault, 1)):
            self.minimize(tape, loss)
        if self.fault == "none":
            return None
        return {"loss" if self.fault == "total" else "loss/total": loss}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "key",
            r"batch\['weak'\]: there is no such key; it has labeled_weak, ",
        ),
        ("random", "train_step uses tf.random.normal, which is not reprod"),
        ("nested", "train_step uses tf.random.uniform, which is not reprod"),
        ("never", "train_step never calls minimize: must call it once"),
        ("twice", "train_step calls minimize twice: must call it once"),
        ("total", "train_step returns loss: must return a dict with"),
        ("none", "train_step returns None: must return a dict with"),
    ],
)
def test_a_faulty_step_is_refused(fault, message):
    algorithm = small.make(Faulty)
    algorithm.fault = fault
    step = tf.function(algorithm.guarded_step, autograph=False)
    place = re.escape(__file__) + r", line \d+: "
    with pytest.raises(errors.InputError, match=place + message):
        step(small.batch())


def test_a_step_without_faults_has_random_numbers_of_its_own():
    algorithm = small.make(Faulty)
    step = tf.function(algorithm.guarded_step, autograph=False)
    step(small.batch())
    one = algorithm.seed("noise").numpy()
    step(small.batch())
    seeds = [one, algorithm.seed("noise"), algorithm.seed("other")]
    seeds.append(small.make(Faulty, seed=0).seed("noise"))
    assert len({tuple(np.array(seed)) for seed in seeds}) == 4
    algorithm.step.assign(1)
    np.testing.assert_array_equal(algorithm.seed("noise"), one)


def test_seeds_of_replicas(two_replicas):
    with two_replicas.scope():
        algorithm = small.make(Faulty)

    def draw():
        shared = algorithm.seed("mix", shared=True)
        whole = sampling.permutation(shared, 8)
        return algorithm.seed("mix"), shared, whole, replica.share(whole)

    seeds, shared, whole, parts = (
        two_replicas.experimental_local_results(value)
        for value in tf.function(lambda: two_replicas.run(draw))()
    )
    assert (seeds[0].numpy() != seeds[1].numpy()).any()
    np.testing.assert_array_equal(*shared)
    np.testing.assert_array_equal(*whole)
    np.testing.assert_array_equal(np.concatenate(parts), whole[0])


def test_two_replicas_count_minimize_each(two_replicas):
    with two_replicas.scope():
        algorithm = small.make(Faulty)
    small.on_two(two_replicas, algorithm, small.batch(), 1, guarded=True)
    assert algorithm.step.numpy() == 1


def test_declarations_are_checked_with_the_class():
    def declare(**values):
        type("Mine", (simmatch_tf.Algorithm,), values)

    with pytest.raises(ValueError, match="view 'wek': must be weak, strong"):
        declare(unlabeled_views=("wek",))
    with pytest.raises(
        ValueError, match=r"must be a tuple, such as \('weak',\)"
    ):
        declare(unlabeled_views="weak")

    @dataclasses.dataclass(frozen=True)
    class Flags(commandline.HyperParameters):
        defaults = {"unlabeled_ration": 1}

    with pytest.raises(ValueError, match="did you mean unlabeled_ratio"):
        declare(HyperParameters=Flags)
