"""Scores a recipe without looking at the test images.

    python tools/benchmarks/tune.py --flagfile=configs/digits_40.cfg --alpha=0.8

Sets --set_aside training images aside, trains on the others once for each of
the split seeds 100, 101 …, and scores on the images set aside. As these are
few, it also scores on the images that were trained on ("seen"), whose labels
training does not use, but for the labeled ones. For datasets that are held in
memory.
"""

import dataclasses
import statistics
import sys
import tempfile
import time

import numpy as np
import tool_flags
from absl import flags

import simmatch_tf
from simmatch_tf import preflight
from simmatch_tf.flags.errors import InputError

RUNS = flags.DEFINE_integer(
    "runs", 3, "Number of split seeds to train with.", lower_bound=1
)
FIRST = flags.DEFINE_integer("first", 100, "First split seed.", lower_bound=0)
SET_ASIDE = flags.DEFINE_integer(
    "set_aside", 200, "Number of images to score on.", lower_bound=1
)


def source(config: simmatch_tf.Config, set_aside: int) -> simmatch_tf.Source:
    """Returns the dataset with some training images as its test images."""
    from simmatch_tf.training import inputs  # after main's preflight

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
    """Trains with each split seed, and prints the scores."""
    words = tool_flags.read(__doc__, [RUNS, SET_ASIDE, FIRST])
    names = ("workdir", "overwrite", "seed", "split_seed", "split_file")
    tool_flags.refuse(words, names, "is this tool's own; leave it out")
    config = tool_flags.run(words)
    try:
        preflight.check_available(config)
        check(config)
    except InputError as error:
        sys.exit(f"error: {error}")
    preflight.choose_kernels()
    scores = {"student": [], "ema": [], "student, seen": [], "ema, seen": []}
    began = time.monotonic()
    for seed in range(FIRST.value, FIRST.value + RUNS.value):
        try:
            run_scores = train(words, seed)
        except InputError as error:
            sys.exit(f"error: {error}")
        for name, top1 in run_scores.items():
            scores[name].append(top1)
        print(
            seed,
            {name: f"{v:.2f}" for name, v in run_scores.items()},
            flush=True,
        )
    each = (time.monotonic() - began) / RUNS.value
    for name, values in scores.items():
        mean, worst = statistics.mean(values), min(values)
        print(f"{name}: mean {mean:.2f} %, worst {worst:.2f} %")
    print(f"{each:.0f} s a run")


def check(config: simmatch_tf.Config) -> None:
    """Checks --set_aside against the dataset.

    Raises:
        InputError: Too few images would be left to train on.
    """
    from simmatch_tf.training import inputs

    images = inputs.outline(config).train_images or 0
    if SET_ASIDE.value >= images:
        raise InputError(
            f"--set_aside={SET_ASIDE.value}: --dataset={config.dataset} has "
            f"{images} training images, so it must be less than that"
        )


def train(words: list[str], seed: int) -> dict[str, float]:
    """Trains with one split seed; returns top-1 in per cent."""
    scores = {}
    with tempfile.TemporaryDirectory() as workdir:
        own = [f"--workdir={workdir}", f"--seed={seed}", f"--split_seed={seed}"]
        config = tool_flags.run([*words, *own])
        images = source(config, SET_ASIDE.value)
        config = dataclasses.replace(config, dataset="custom", image_size=None)
        result = simmatch_tf.fit(config, source=images)
        for name in ("student", "ema"):
            scores[name] = 100 * getattr(result, name)["last"]["top1"]
            model = simmatch_tf.load(workdir, weights=name)
            logits = model.predict(images.train.images, verbose=0)["logits"]
            right = logits.argmax(axis=1) == images.train.labels
            scores[f"{name}, seen"] = float(100 * right.mean())
    return scores


if __name__ == "__main__":
    main()
