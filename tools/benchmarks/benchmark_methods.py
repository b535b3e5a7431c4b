"""Measures a step of every method, and the share that its networks do not take.

    python tools/benchmarks/benchmark_methods.py

Each method is built by its recipe, configs/digits_40_METHOD.cfg, where there is
one, else by configs/digits_40.cfg with --algorithm=METHOD. Of each, two
compiled steps take turns with those of all others in one process: the method's
own, and one that has the same forward passes on images of the same shapes, a
loss that costs nothing, the same backward passes, optimizer and EMA. What the
first takes longer is the method's own work. Prints medians: milliseconds a
step, as a multiple of FixMatch's, and the share of a step that is its own.
"""

import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

import benchmark_step
import competitors
import tool_flags
from absl import flags

from simmatch_tf import config as config_lib
from simmatch_tf import preflight, registry

METHODS = flags.DEFINE_list("methods", None, "Methods; all by default.")
REFERENCE = "fixmatch"
_CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def flags_of(method: str) -> config_lib.Config:
    """Returns the flags of a method's recipe."""
    recipe = _CONFIGS / f"digits_40_{method}.cfg"
    words = [f"--flagfile={recipe}"]
    if not recipe.exists():
        words = [
            f"--flagfile={_CONFIGS / 'digits_40.cfg'}",
            f"--algorithm={method}",
        ]
    return config_lib.Config.from_argv(["train", *words])


class Passes:
    """The forward passes of a method's step.

    Attributes:
        calls: Of each, the network, the images, the mode of BatchNorm, and
            whether it has a backward pass.
    """

    def __init__(self, algorithm, batch) -> None:
        """Records those of a step on `batch`."""
        import tensorflow as tf

        self.calls, depth = [], 0
        call, tape = algorithm.call, tf.GradientTape

        class Tape(tape):
            def __enter__(self):
                nonlocal depth
                depth += 1
                return super().__enter__()

            def __exit__(self, *arguments):
                nonlocal depth
                depth -= 1
                return super().__exit__(*arguments)

        def recorded(network, images, batch_norm="train"):
            # Variables, so that nothing of them is computed beforehand.
            like = tf.Variable(
                tf.cast(
                    tf.random.stateless_uniform(images.shape, [0, 1]) * 255,
                    images.dtype,
                ),
                trainable=False,
            )
            self.calls.append((network, like, batch_norm, depth > 0))
            return call(network, images, batch_norm)

        algorithm.call, tf.GradientTape = recorded, Tape
        try:
            algorithm.train_step(batch)
        finally:
            del algorithm.call
            tf.GradientTape = tape

    def step(self, algorithm) -> Callable:
        """Returns a step of these passes alone, optimizer and EMA included."""
        import tensorflow as tf

        def sums(wanted: bool) -> list:
            return [
                tf.add_n([tf.reduce_sum(x) for x in outputs.values()])
                for network, images, mode, backward in self.calls
                if backward == wanted
                for outputs in [algorithm.call(network, images, mode)]
            ]

        def step(batch):
            del batch
            outside = sums(False)
            with tf.GradientTape() as tape:
                # Small, so that the weights stay where they are.
                loss = 1e-9 * tf.add_n(sums(True))
            algorithm.minimize(tape, loss)
            return outside, loss

        return step


def calls_of(method: str, folder: str) -> tuple[Callable, Callable]:
    """Returns calls of a method's compiled step, and of its passes alone."""
    import tensorflow as tf

    compiled = []
    for bare in (False, True):
        config = flags_of(method)
        algorithm, pipeline, strategy, _ = benchmark_step.build_run(
            config, f"{folder}/{method}_{bare}"
        )
        batch = next(iter(pipeline.dataset(0, 1)))
        step = algorithm.train_step
        if bare:
            step = Passes(algorithm, batch).step(algorithm)
        function = tf.function(
            lambda step=step, batch=batch, strategy=strategy: strategy.run(
                step, args=(batch,)
            ),
            autograph=False,
        )
        function()  # traces
        function()
        compiled.append(function)
    return tuple(compiled)


def main() -> None:
    """Prints the table."""
    tool_flags.nothing_else(
        tool_flags.read(
            __doc__, [benchmark_step.ROUNDS, METHODS, benchmark_step.OUTPUT]
        )
    )
    tool_flags.check_file("output", benchmark_step.OUTPUT.value, ".json")
    preflight.choose_kernels()
    from simmatch_tf import runtime, tables

    runtime.keep_memory()
    methods = METHODS.value or [e.pattern for e in registry.algorithms]
    if REFERENCE not in methods:
        methods = [REFERENCE, *methods]
    with tempfile.TemporaryDirectory() as folder:
        calls = {method: calls_of(method, folder) for method in methods}
    seconds = {method: ([], []) for method in methods}
    for _ in range(benchmark_step.ROUNDS.value):
        for method, pair in calls.items():
            for call, times in zip(pair, seconds[method], strict=True):
                began = time.perf_counter()
                call()
                times.append(time.perf_counter() - began)
    rows = [["method", "ms a step", f"of {REFERENCE}'s", "its own"]]
    for method, (whole, bare) in seconds.items():
        ratio = statistics.median(
            one / other
            for one, other in zip(whole, seconds[REFERENCE][0], strict=True)
        )
        own = statistics.median(
            1 - other / one for one, other in zip(whole, bare, strict=True)
        )
        rows.append(
            [
                method,
                f"{1000 * statistics.median(whole):.1f}",
                f"{ratio:.2f}",
                f"{100 * own:.1f} %",
            ]
        )
    print(tables.plain(rows))
    if benchmark_step.OUTPUT.value:
        report = {"seconds": seconds, **competitors.setting(None)}
        pathlib.Path(benchmark_step.OUTPUT.value).write_text(
            json.dumps(report, indent=2)
        )


if __name__ == "__main__":
    main()
