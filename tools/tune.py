"""Scores a recipe away from the test split.

    python tools/tune.py --flagfile=configs/digits_40.cfg --alpha=0.8

Sets training images aside (200 of digits' 1,400; --set_aside), trains on the
others, once for each of the split seeds 100, 101 …, and scores on those set
aside. The test images stay unseen. 200 are few, so those trained on are scored
as well ("seen"): their labels, but for the labeled ones, are not used. For
datasets that are held in memory.
"""

import dataclasses
import statistics
import sys
import tempfile
import time

import numpy as np
from absl import flags

import simmatch_tf
from simmatch_tf import kernels

RUNS = flags.DEFINE_integer("runs", 3, "How many split seeds to train with.")
SET_ASIDE = flags.DEFINE_integer("set_aside", 200, "Images to score on.")
FIRST = flags.DEFINE_integer("first", 100, "The first of them.")


def source(config: simmatch_tf.Config, set_aside: int) -> simmatch_tf.Source:
    """The dataset, its "test" images being some of the training images."""
    from simmatch_tf.training import inputs  # after main's `kernels.fast`

    full = inputs.make_source(config)
    order = np.random.RandomState(1).permutation(len(full.train))

    def part(indices: np.ndarray) -> simmatch_tf.Images:
        return simmatch_tf.Images(
            full.train.images[indices], full.train.labels[indices]
        )

    return simmatch_tf.Source(
        name=f"{full.name}, tuning",
        class_names=full.class_names,
        train=part(np.sort(order[set_aside:])),
        test=part(np.sort(order[:set_aside])),
        flip=full.flip,
    )


def main() -> None:
    """Trains once a split seed and prints the scores."""
    kernels.fast()
    words = ("--runs=", "--first=", "--set_aside=")
    own = [a for a in sys.argv if a.startswith(words)]
    flags.FLAGS(sys.argv[:1] + own)
    scores = {"student": [], "ema": [], "student, seen": [], "ema, seen": []}
    began = time.monotonic()
    for seed in range(FIRST.value, FIRST.value + RUNS.value):
        with tempfile.TemporaryDirectory() as workdir:
            argv = [a for a in sys.argv if a not in own]
            argv += [f"--workdir={workdir}"]
            argv += [f"--seed={seed}", f"--split_seed={seed}"]
            config = simmatch_tf.Config.from_argv(argv)
            images = source(config, SET_ASIDE.value)
            config = dataclasses.replace(
                config, dataset="custom", image_size=None
            )
            found = simmatch_tf.fit(config, source=images)
            for name in ("student", "ema"):
                top1 = getattr(found, name)["last"]["top1"]
                scores[name].append(100 * top1)
                model = simmatch_tf.load(workdir, weights=name)
                logits = model.predict(images.train.images, verbose=0)["logits"]
                right = logits.argmax(axis=1) == images.train.labels
                scores[f"{name}, seen"].append(float(100 * right.mean()))
        print(seed, {name: v[-1] for name, v in scores.items()}, flush=True)
    each = (time.monotonic() - began) / RUNS.value
    for name, values in scores.items():
        mean, worst = statistics.mean(values), min(values)
        print(f"{name}: mean {mean:.2f} %, worst {worst:.2f} %")
    print(f"{each:.0f} s a run")


if __name__ == "__main__":
    main()
