"""Where the time of a training step goes, and what the loop around it costs.

    python tools/benchmark_step.py --flagfile=configs/digits_40.cfg

Measures the whole step, the same with the guard against numbers that are not
finite, the networks' work alone, and each of the step's other parts alone, in
alternating rounds of one process; prints the medians and their
shares of the whole step. Then trains, and after every 50 steps of the loop it
takes 50 bare compiled steps on batches of its own, which tells what the loop
adds; and times checkpoints. --noallocator measures without the settings of
`training/allocator.py`; --output=FILE writes JSON.
"""

import dataclasses
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

# Steps of the loop, and bare ones, in turn.
CHUNK = 50
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


def put_together(config: config_lib.Config, folder: str) -> tuple:
    """A run's algorithm, input, strategy, and flags in steps."""
    from simmatch_tf.training import assembly, inputs, strategies
    from simmatch_tf.training import workdir as workdir_lib

    source = inputs.make_source(config)
    split = inputs.make_split(config, source, workdir_lib.Workdir(folder))
    config = config.with_durations(len(split.unlabeled))
    strategy = strategies.make(config)
    algorithm = assembly.make_algorithm(
        config,
        assembly.Custom(),
        strategy,
        image_shape=source.image_shape,
        slot_labels=source.train.labels[split.labeled],
        num_classes=source.num_classes,
        statistics=source.statistics(),
    )
    pipeline = inputs.make_pipeline(config, source, split, unlabeled=True)
    return algorithm, pipeline, strategy, config


def parts(config: config_lib.Config, folder: str) -> dict[str, Callable]:
    """Name → a call that does that part of the step once."""
    import tensorflow as tf

    from simmatch_tf.ops import losses

    algorithm, pipeline, strategy, config = put_together(config, folder)
    batches = iter(pipeline.dataset(0, 10**6).repeat())
    batch = next(batches)
    b, u = len(batch["labels"]), len(batch["unlabeled_weak"])
    teacher_form = config.memory == "teacher"
    apart = config.weak_forward == "separate"
    names = ["labeled_weak", "unlabeled_strong"]
    names += [] if teacher_form or apart else ["unlabeled_weak"]
    student_images = tf.concat([batch[name] for name in names], 0)
    teacher_images = tf.concat(
        [batch["labeled_weak"], batch["unlabeled_weak"]], 0
    )
    out = algorithm.student(student_images, training=False)
    logits, z = out["logits"], out["embeddings"]
    weights = [w.value for w in algorithm.student.trainable_variables]
    gradients = [tf.zeros_like(w) for w in weights]
    compiled = functools.partial(tf.function, autograph=False)

    def teacher():
        """The teacher's forward."""
        return algorithm.teacher(teacher_images, tf.constant([0, 0]))

    def weak():
        """A forward of weak views alone."""
        return algorithm.student(batch["unlabeled_weak"], training=True)

    def network():
        """The student's forward and backward, with a loss of no cost."""
        with tf.GradientTape() as tape:
            out = algorithm.student(student_images, training=True)
            loss = tf.reduce_sum(out["logits"]) + tf.reduce_sum(
                out["embeddings"]
            )
        return tape.gradient(loss, weights)

    def matching():
        """Alignment, pseudo-labels, the instance loss and its gradient."""
        p_w = algorithm.align(tf.nn.softmax(logits[-u:]))
        z_s = z[b : b + u]
        with tf.GradientTape() as tape:
            tape.watch(z_s)
            _, entropies = algorithm.memory.match(
                z[-u:],
                z_s,
                p_w,
                temperature=config.temperature,
                alpha=config.alpha,
            )
            loss = tf.reduce_mean(entropies)
        return tape.gradient(loss, z_s)

    def both_losses():
        """The losses on logits and their gradient."""
        p_hat = tf.nn.softmax(logits[-u:])
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = losses.supervised_loss(logits[:b], batch["labels"])
            loss += losses.unsupervised_loss(
                logits[b : b + u], p_hat, config.threshold
            )[0]
        return tape.gradient(loss, logits)

    return {
        "step": functools.partial(
            compiled(lambda x: strategy.run(algorithm.train_step, args=(x,))),
            batch,
        ),
        "step with guard": functools.partial(
            compiled(lambda x: strategy.run(algorithm.guarded_step, args=(x,))),
            batch,
        ),
        **({"teacher forward": compiled(teacher)} if teacher_form else {}),
        **({"weak forward": compiled(weak)} if apart else {}),
        "student forward + backward": compiled(network),
        "matching": compiled(matching),
        "losses": compiled(both_losses),
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


def bare(config: config_lib.Config, folder: str) -> Callable[[], object]:
    """One compiled step on its next batch, and nothing else."""
    import tensorflow as tf

    algorithm, pipeline, strategy, _ = put_together(config, folder)
    batches = iter(pipeline.dataset(0, 10**6))
    step = tf.function(
        lambda x: strategy.run(algorithm.train_step, args=(x,)),
        autograph=False,
    )
    return lambda: step(next(batches))


def loop(config: config_lib.Config, folder: str) -> dict[str, float]:
    """Seconds a step of the loop and bare, their ratio; of a checkpoint."""
    import simmatch_tf
    from simmatch_tf.training import checkpoints, progress

    step = bare(config, folder)
    step()
    rounds: dict[str, list[float]] = {"loop": [], "bare": [], "checkpoint": []}
    began = 0.0
    advance, save = progress.Progress.advance, checkpoints.Checkpoints.save

    def hook(self, number, metrics):
        nonlocal began
        advance(self, number, metrics)
        if number % CHUNK:
            return
        if began:
            rounds["loop"].append((time.perf_counter() - began) / CHUNK)
            middle = time.perf_counter()
            for _ in range(CHUNK):
                step()
            rounds["bare"].append((time.perf_counter() - middle) / CHUNK)
        began = time.perf_counter()

    def timed(self, number):
        nonlocal began
        middle = time.perf_counter()
        save(self, number)
        rounds["checkpoint"].append(time.perf_counter() - middle)
        began = time.perf_counter()  # the loop's own time is without it

    steps = CHUNK * (ROUNDS.value + 1)
    progress.Progress.advance, checkpoints.Checkpoints.save = hook, timed
    try:
        simmatch_tf.fit(
            dataclasses.replace(
                config,
                steps=steps,
                epochs=None,
                workdir=f"{folder}/run",
                eval_every=steps,
                checkpoint_every=2 * CHUNK,
            )
        )
    finally:
        progress.Progress.advance, checkpoints.Checkpoints.save = advance, save
    pairs = zip(rounds["loop"], rounds["bare"], strict=True)
    return {
        **{name: statistics.median(each) for name, each in rounds.items()},
        "ratio": statistics.median([one / other for one, other in pairs]),
    }


def say_loop(found: dict[str, float], every: int) -> None:
    """Prints what `loop` found, with checkpoints at their default interval."""
    print(
        f"\nThe loop: {1000 * found['loop']:.2f} ms a step, "
        f"{100 * (found['ratio'] - 1):+.1f} % over "
        f"{1000 * found['bare']:.2f} ms of the bare compiled step on its next "
        f"batch. A checkpoint: "
        f"{1000 * found['checkpoint']:.0f} ms, "
        f"{100 * found['checkpoint'] / (every * found['loop']):.2f} % of "
        f"{every} steps."
    )


def main() -> None:
    """Prints the table, and what the loop costs."""
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
    method = sum(medians[n] for n in ("matching", "losses", "EMA", "memory"))
    rows.append(
        [
            "matching, losses, EMA, memory",
            f"{1000 * method:.2f}",
            f"{100 * method / step:.1f} %",
        ]
    )
    print(tables.table(rows))
    with tempfile.TemporaryDirectory() as folder:
        found = loop(config, folder)
    say_loop(found, config.checkpoint_every)
    if OUTPUT.value:
        report = {
            "median_seconds": medians,
            "loop": found,
            "rounds": ROUNDS.value,
        }
        pathlib.Path(OUTPUT.value).write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
