r"""Measures which images to label: accuracy and classes by method and budget.

python tools/benchmarks/picks.py --dataset=digits
python tools/benchmarks/picks.py --dataset=folder --data_dir=photos \
    --features=runs/other_classes --classes=cat,dog

Each seed draws a pool from the training images. Each method picks images from
it, a logistic regression learns from their features and true classes, and is
scored on the test images. Prints a table in Markdown.
"""

import argparse
import types

import numpy as np
import scipy.stats
import sklearn.decomposition
import sklearn.linear_model
import tensorflow as tf

from simmatch_tf import preflight
from simmatch_tf.data import picking
from simmatch_tf.evaluation import baselines, evaluator
from simmatch_tf.probes import encoders, features, tasks

POOL = 5000
BUDGETS = (10, 20, 40)
PREFIX = "typical, first of 40"
WIDTH = 64


def main() -> None:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dataset", required=True, help="As in transfer.")
    parser.add_argument("--data_dir", help="Of the dataset `folder`.")
    parser.add_argument("--tfds_dir", help="Folder of TFDS datasets.")
    parser.add_argument(
        "--features",
        default="handmade",
        help="thumbnails or handmade (both followed by PCA), or a run, an "
        "export or LIBRARY:NAME.",
    )
    parser.add_argument("--classes", help="Names of those that are used.")
    parser.add_argument("--seeds", type=int, default=10)
    words = parser.parse_args()
    preflight.load_tensorflow(fast=False)
    task = tasks.load(words.dataset, _flags(words))
    train, test = (_features(words, task, name) for name in ("train", "test"))
    if words.features in ("thumbnails", "handmade"):
        train, test = reduced(train, test)
    train, test = picking.normalized(train), picking.normalized(test)
    labels = np.asarray(task.train.labels), np.asarray(task.test.labels)
    if words.classes:
        kept = [task.class_names.index(n) for n in words.classes.split(",")]
        chosen = [np.isin(values, kept) for values in labels]
        train, test = train[chosen[0]], test[chosen[1]]
        labels = labels[0][chosen[0]], labels[1][chosen[1]]
    print(f"{words.dataset}, features: {words.features}\n")
    print(table(train, labels[0], test, labels[1], words.seeds))


def _flags(words: argparse.Namespace) -> types.SimpleNamespace:
    return types.SimpleNamespace(
        data_dir=words.data_dir,
        labels_csv=None,
        labels_from=None,
        on_bad_image="error",
        tfds_dir=words.tfds_dir,
        tfds_manual_dir=None,
        image_size=None,
        weights=None,
        random_backbone=False,
        seed=0,
        named_models=lambda: [named(words.features)],
    )


def named(model: str) -> types.SimpleNamespace:
    """Returns a model as the flags of `transfer` name it."""
    library = model.split(":")[0] if ":" in model else None
    return types.SimpleNamespace(name=model, model=model, library=library)


def _features(
    words: argparse.Namespace, task: tasks.Task, subset: str
) -> np.ndarray:
    """Returns the features of a set of images, float32 [N, D]."""
    if words.features not in ("thumbnails", "handmade"):
        (encoder,) = encoders.load(_flags(words))
        return features.extract(encoder, task, subset, batch_size=256)
    images = getattr(task, subset)
    side = baselines.SIDE
    pixels = np.concatenate(
        list(
            evaluator.outputs(
                tf.identity,
                images,
                np.arange(len(images)),
                batch_size=500,
                side=side,
                resize=side,
                kernel=features.KERNEL,
            )
        )
    )
    if words.features == "handmade":
        return baselines.handmade(pixels)
    return pixels.reshape(len(pixels), -1).astype(np.float32) / 255


def reduced(
    train: np.ndarray, test: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Reduces features to their first principal components."""
    width = min(WIDTH, *train.shape)
    pca = sklearn.decomposition.PCA(width, random_state=0).fit(train)
    return pca.transform(train), pca.transform(test)


def table(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    seeds: int,
) -> str:
    """Measures all methods, and returns a table in Markdown.

    Args:
        train: Features, float32 [N, D].
        train_labels: int [N].
        test: float32 [n, D].
        test_labels: int [n].
        seeds: Number of seeds.
    """
    classes = len(np.unique(train_labels))
    scores: dict[tuple[int, str], list[float]] = {}
    covered: dict[tuple[int, str], list[int]] = {}
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        size = min(POOL, int(0.8 * len(train)))
        pool = random.choice(len(train), size, replace=False)
        x, y = train[pool], train_labels[pool]
        for (budget, method), order in picks(x, y, seed).items():
            score = accuracy(x[order], y[order], test, test_labels)
            scores.setdefault((budget, method), []).append(score)
            covered.setdefault((budget, method), []).append(
                len(np.unique(y[order]))
            )
    lines = [
        "| labels | method | accuracy, mean ± std | worst | to random "
        "(95 % interval) | classes, mean (fewest) |",
        "|---|---|---|---|---|---|",
    ]
    for (budget, method), values in sorted(
        scores.items(), key=lambda item: item[0][0]
    ):
        gaps = np.subtract(values, scores[budget, "random"])
        counts = covered[budget, method]
        lines.append(
            f"| {budget} | {method} | {np.mean(values):.1f} ± "
            f"{np.std(values, ddof=1):.1f} | {min(values):.1f} | "
            f"{interval(gaps) if method != 'random' else ''} | "
            f"{np.mean(counts):.1f} ({min(counts)}) of {classes} |"
        )
    return "\n".join(lines)


def picks(
    x: np.ndarray, y: np.ndarray, seed: int
) -> dict[tuple[int, str], np.ndarray]:
    """Returns (budget, method) → indices of the images that are picked."""
    orders = {}
    methods = ("random", "stratified", "kmeans", "typical", "maxherding")
    for budget in BUDGETS:
        for method in methods:
            classes = y if method == "stratified" else None
            orders[budget, method] = picking.pick(
                x, budget, method=method, seed=seed, classes=classes
            ).order
    for budget in BUDGETS[:-1]:
        orders[budget, PREFIX] = orders[BUDGETS[-1], "typical"][:budget]
    return orders


def accuracy(
    x: np.ndarray, y: np.ndarray, test: np.ndarray, test_labels: np.ndarray
) -> float:
    """Returns the accuracy of a logistic regression, in percent."""
    if len(np.unique(y)) < 2:
        return 100 * float(np.mean(test_labels == y[0]))
    model = sklearn.linear_model.LogisticRegression(C=10, max_iter=1000)
    return 100 * float(model.fit(x, y).score(test, test_labels))


def interval(gaps: np.ndarray) -> str:
    """Returns the mean of paired differences and its 95 % interval."""
    mean, error = np.mean(gaps), scipy.stats.sem(gaps)
    half = scipy.stats.t.ppf(0.975, len(gaps) - 1) * error
    return f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"


if __name__ == "__main__":
    main()
