"""Measures the parts of a training step, and the cost of the loop around it.

    python tools/benchmarks/benchmark_step.py --flagfile=configs/digits_40.cfg

Measures the whole step, the step with the guard against numbers that are not
finite, the networks' work alone, and each other part of the step alone, in
alternating rounds of one process. Prints the medians and their shares of the
whole step. Then it trains: after every 50 steps of the loop it takes 50 bare
compiled steps on batches of its own, and the difference is the cost of the
loop. It measures checkpoints, too. --noallocator measures without the settings
of `simmatch_tf/runtime.py`.
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

import competitors
import tool_flags
from absl import flags

from simmatch_tf import config as config_lib
from simmatch_tf import preflight

# Steps of a turn, of the loop and bare.
CHUNK = 50
ROUNDS = flags.DEFINE_integer(
    "rounds", 15, "Number of rounds over all parts.", 1
)
ALLOCATOR = flags.DEFINE_boolean(
    "allocator", True, "Keep freed memory, as training does."
)
OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")


def parse() -> config_lib.Config:
    """Reads the flags; returns those of the run."""
    rest = tool_flags.read(__doc__, [ROUNDS, ALLOCATOR, OUTPUT])
    tool_flags.check_file("output", OUTPUT.value, ".json")
    names = ("devices", "strategy", "tpu", "memory_placement")
    tool_flags.refuse(rest, names, "one device is measured; leave it out")
    config = tool_flags.run(rest)
    if config.algorithm != "simmatch":
        sys.exit(
            f"error: --algorithm={config.algorithm}: must be simmatch, whose "
            "parts are measured"
        )
    preflight.choose_kernels()
    return config


def build_run(config: config_lib.Config, folder: str) -> tuple:
    """Returns a run's algorithm, input, strategy, and flags in steps."""
    from simmatch_tf.distributed import strategies
    from simmatch_tf.training import inputs, state
    from simmatch_tf.training import workdir as workdir_lib

    source = inputs.make_source(config)
    split = inputs.make_split(config, source, workdir_lib.Workdir(folder))
    config = config.with_durations(len(split.unlabeled))
    strategy = strategies.make(config)
    algorithm = state.make_algorithm(
        config,
        strategy,
        image_shape=source.image_shape,
        slot_labels=source.train.labels[split.labeled],
        num_classes=source.num_classes,
        unlabeled_images=len(split.unlabeled),
        statistics=source.statistics(),
    )
    pipeline = inputs.make_pipeline(config, source, split, algorithm)
    return algorithm, pipeline, strategy, config


class Parts:
    """The parts of a run's step, each of which can be called alone."""

    def __init__(self, config: config_lib.Config, folder: str) -> None:
        """Builds the run, and reads one batch."""
        import tensorflow as tf

        built = build_run(config, folder)
        self.algorithm, self.pipeline, self.strategy, self.config = built
        self.batches = iter(self.pipeline.dataset(0, 10**6).repeat())
        self.batch = batch = next(self.batches)
        self.b, self.u = len(batch["labels"]), len(batch["unlabeled_weak"])
        self.has_teacher = config.targets_from == "teacher"
        self.apart = config.weak_forward == "separate"
        names = ["labeled_weak", "unlabeled_strong"]
        if not (self.has_teacher or self.apart):
            names.append("unlabeled_weak")
        self.views = tf.concat([batch[name] for name in names], 0)
        self.weak_views = tf.concat(
            [batch["labeled_weak"], batch["unlabeled_weak"]], 0
        )
        out = self.algorithm.student(self.views, training=False)
        self.logits, self.z = out["logits"], out["embeddings"]
        student = self.algorithm.student
        self.weights = [w.value for w in student.trainable_variables]
        self.gradients = [tf.zeros_like(w) for w in self.weights]

    def teacher(self):
        """Computes the teacher's forward pass."""
        return self.algorithm.teacher(self.weak_views, [0, 0])

    def weak(self):
        """Computes a forward pass of the weak views alone."""
        views = self.batch["unlabeled_weak"]
        return self.algorithm.student(views, training=True)

    def student(self):
        """Computes the student's forward and backward pass on a cheap loss."""
        import tensorflow as tf

        with tf.GradientTape() as tape:
            out = self.algorithm.student(self.views, training=True)
            loss = tf.reduce_sum(out["logits"])
            loss += tf.reduce_sum(out["embeddings"])
        return tape.gradient(loss, self.weights)

    def matching(self):
        """Computes alignment, pseudo-labels, instance loss and its gradient."""
        import tensorflow as tf

        p_w = self.algorithm.align(tf.nn.softmax(self.logits[-self.u :]))
        z_s = self.z[self.b : self.b + self.u]
        with tf.GradientTape() as tape:
            tape.watch(z_s)
            _, entropies = self.algorithm.memory.match(
                self.z[-self.u :],
                z_s,
                p_w,
                temperature=self.config.temperature,
                alpha=self.config.alpha,
            )
            loss = tf.reduce_mean(entropies)
        return tape.gradient(loss, z_s)

    def losses(self):
        """Computes the losses on logits and their gradient."""
        import tensorflow as tf

        from simmatch_tf.ops import losses

        logits, b = self.logits, self.b
        p_hat = tf.nn.softmax(logits[-self.u :])
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = losses.supervised_loss(logits[:b], self.batch["labels"])
            loss += losses.unsupervised_loss(
                logits[b : b + self.u], p_hat, self.config.threshold
            )[0]
        return tape.gradient(loss, logits)

    def calls(self) -> dict[str, Callable]:
        """Returns name → a compiled call that does this part once."""
        import tensorflow as tf

        method, batch = self.algorithm, self.batch

        def step(function: Callable) -> Callable:
            return lambda: self.strategy.run(function, args=(batch,))

        functions = {
            "step": step(method.train_step),
            "step with guard": step(method.guarded_step),
            "teacher forward": self.teacher,
            "weak forward": self.weak,
            "student forward + backward": self.student,
            "matching": self.matching,
            "losses": self.losses,
            "optimizer": lambda: method.optimizer.apply(
                self.gradients, method.student.trainable_variables
            ),
            "EMA": lambda: method.teacher.update(method.student, method.step),
            "memory": lambda: method.memory.update(
                batch["slots"], self.z[: self.b]
            ),
        }
        if not self.has_teacher:
            del functions["teacher forward"]
        if not self.apart:
            del functions["weak forward"]
        compiled = {
            name: tf.function(call, autograph=False)
            for name, call in functions.items()
        }
        return compiled | {
            "input (in parallel)": functools.partial(next, self.batches)
        }


def bare(config: config_lib.Config, folder: str) -> Callable[[], object]:
    """Returns a call of one compiled step on the next batch."""
    import tensorflow as tf

    algorithm, pipeline, strategy, _ = build_run(config, folder)
    batches = iter(pipeline.dataset(0, 10**6))
    step = tf.function(
        lambda x: strategy.run(algorithm.train_step, args=(x,)),
        autograph=False,
    )
    return lambda: step(next(batches))


def loop(config: config_lib.Config, folder: str) -> dict[str, float]:
    """Returns seconds of a step in the loop and bare, and of a checkpoint."""
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
        began = time.perf_counter()  # is not part of the loop's own time

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


def print_loop(figures: dict[str, float], every: int) -> None:
    """Prints the result of `loop`, for checkpoints every `every` steps."""
    print(
        f"\nThe loop: {1000 * figures['loop']:.2f} ms a step, "
        f"{100 * (figures['ratio'] - 1):+.1f} % over "
        f"{1000 * figures['bare']:.2f} ms of the bare compiled step on its "
        f"next batch. A checkpoint: "
        f"{1000 * figures['checkpoint']:.0f} ms, "
        f"{100 * figures['checkpoint'] / (every * figures['loop']):.2f} % of "
        f"{every} steps."
    )


def main() -> None:
    """Prints the table, and the cost of the loop."""
    config = parse()
    from simmatch_tf import runtime, tables

    if ALLOCATOR.value:
        runtime.keep_memory()
    with tempfile.TemporaryDirectory() as folder:
        calls = Parts(config, folder).calls()
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
    print(tables.plain(rows))
    with tempfile.TemporaryDirectory() as folder:
        figures = loop(config, folder)
    print_loop(figures, config.checkpoint_every)
    if OUTPUT.value:
        report = {
            "median_seconds": medians,
            "seconds": seconds,
            "loop": figures,
            "rounds": ROUNDS.value,
            "flags": sys.argv[1:],
            "allocator": ALLOCATOR.value,
            **competitors.setting(None),
        }
        pathlib.Path(OUTPUT.value).write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
