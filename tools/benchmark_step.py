"""Where the time of a training step goes.

    python tools/benchmark_step.py --flagfile=configs/digits_40.cfg

Measures the whole step, the network's forward and backward alone, and each of
the step's other parts alone, in alternating rounds of one process; prints the
medians and their shares of the whole step. --noallocator measures without the
allocator's settings of `training/allocator.py`; --output=FILE writes JSON.
"""

import functools
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

from absl import flags

from simmatch_tf import config as config_lib

ROUNDS = flags.DEFINE_integer("rounds", 15, "Rounds over all parts.")
ALLOCATOR = flags.DEFINE_boolean("allocator", True, "As in training.")
OUTPUT = flags.DEFINE_string("output", None, "JSON file.")


def parse() -> config_lib.Config:
    """Reads this tool's flags; the others are a run's."""
    own = ("rounds=", "allocator", "noallocator", "output=")
    words = [w for w in sys.argv[1:] if w.lstrip("-").startswith(own)]
    flags.FLAGS([sys.argv[0], *words])
    rest = [w for w in sys.argv if w not in words]
    return config_lib.Config.from_argv(rest)


def parts(config: config_lib.Config, folder: str) -> dict[str, Callable]:
    """Name → a call that does that part of the step once."""
    import tensorflow as tf

    from simmatch_tf.ops import losses
    from simmatch_tf.training import assembly, inputs, strategies
    from simmatch_tf.training import workdir as workdir_lib

    custom = assembly.Custom()
    source = inputs.make_source(config)
    split = inputs.make_split(config, source, workdir_lib.Workdir(folder))
    config = config.with_durations(len(split.unlabeled))
    strategy = strategies.make(config)
    algorithm = assembly.make_algorithm(
        config,
        custom,
        strategy,
        image_shape=source.image_shape,
        slot_labels=source.train.labels[split.labeled],
        num_classes=source.num_classes,
        statistics=source.statistics(),
    )
    pipeline = inputs.make_pipeline(config, source, split, unlabeled=True)
    batches = iter(pipeline.dataset(0, 10**6).repeat())
    batch = next(batches)
    b, u = len(batch["labels"]), len(batch["unlabeled_weak"])
    teacher_form = config.memory == "teacher"
    names = ["labeled_weak", "unlabeled_strong"]
    names += [] if teacher_form else ["unlabeled_weak"]
    student_images = tf.concat([batch[name] for name in names], 0)
    teacher_images = tf.concat(
        [batch["labeled_weak"], batch["unlabeled_weak"]], 0
    )
    out = algorithm.student(student_images, training=False)
    logits, z = out["logits"], out["embeddings"]
    weights = [w.value for w in algorithm.student.trainable_variables]
    gradients = [tf.zeros_like(w) for w in weights]
    compiled = functools.partial(tf.function, autograph=False)

    def network():
        """The same forwards and backward, with a loss that costs nothing."""
        if teacher_form:
            algorithm.teacher.model(teacher_images, training=False)
        with tf.GradientTape() as tape:
            out = algorithm.student(student_images, training=True)
            loss = tf.reduce_sum(out["logits"]) + tf.reduce_sum(
                out["embeddings"]
            )
        return tape.gradient(loss, weights)

    def matching():
        """Pseudo-labels, the three losses and their gradients."""
        p_w = tf.nn.softmax(logits[-u:])
        p_hat, q_hat = algorithm.propagate(p_w, z[-u:], tf.constant(True))
        with tf.GradientTape() as tape:
            tape.watch([logits, z])
            loss = losses.supervised_loss(logits[:b], batch["labels"])
            loss += losses.unsupervised_loss(
                logits[b : b + u], p_hat, config.threshold
            )[0]
            loss += losses.instance_loss(
                z[b : b + u],
                algorithm.memory.features,
                q_hat,
                config.temperature,
            )
        return tape.gradient(loss, [logits, z])

    return {
        "step": functools.partial(
            compiled(lambda x: strategy.run(algorithm.train_step, args=(x,))),
            batch,
        ),
        "network": compiled(network),
        "matching and losses": compiled(matching),
        "optimizer": compiled(
            lambda: algorithm.optimizer.apply(
                gradients, algorithm.student.trainable_variables
            )
        ),
        "EMA": compiled(
            lambda: algorithm.teacher.update(algorithm.student, algorithm.step)
        ),
        "memory": compiled(
            lambda: algorithm.memory.update(batch["slots"], z[:b])
        ),
        "input (in parallel)": functools.partial(next, batches),
    }


def main() -> None:
    """Prints the table."""
    config = parse()
    from simmatch_tf.reporting import tables
    from simmatch_tf.training import allocator

    if ALLOCATOR.value:
        allocator.keep_memory()
    with tempfile.TemporaryDirectory() as folder:
        calls = parts(config, folder)
    for call in calls.values():  # traces
        call()
        call()
    seconds = {name: [] for name in calls}
    for _ in range(ROUNDS.value):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(s) for name, s in seconds.items()}
    step = medians["step"]
    rows = [["part", "ms", "of the step"]]
    rows += [
        [name, f"{1000 * value:.2f}", f"{100 * value / step:.1f} %"]
        for name, value in medians.items()
    ]
    method = sum(medians[n] for n in ("matching and losses", "EMA", "memory"))
    rows.append(
        [
            "matching, losses, EMA, memory",
            f"{1000 * method:.2f}",
            f"{100 * method / step:.1f} %",
        ]
    )
    print(tables.table(rows))
    if OUTPUT.value:
        report = {"median_seconds": medians, "rounds": ROUNDS.value}
        pathlib.Path(OUTPUT.value).write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
