"""Compares a served model with its bare network.

    python tools/benchmarks/benchmark_serving.py --workdir=runs/digits_40

Exports the run into a temporary folder, and measures in one process, by turns:
`serving_default` at 1 and 64 images against the Keras network in a tf.function;
`classify_bytes` against decoding and that forward pass written by hand; and
`predict` on PNG files, random ones or those of --images, against a bare
pipeline of reading, decoding and forward pass. Prints medians and ratios (above
1: faster than the reference), and the peak memory of the process during
predict.
"""

import argparse
import pathlib
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from simmatch_tf.data import selection
from simmatch_tf.serving import exporting, loading, prediction


def compare(
    title: str,
    reference: Callable[[], object],
    ours: Callable[[], object],
    *,
    rounds: int,
    repeats: int,
) -> None:
    """Measures two functions by turns, and prints a line."""
    for function in (reference, ours):
        for _ in range(3):
            function()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for function, durations in zip((reference, ours), times, strict=True):
            start = time.perf_counter()
            for _ in range(repeats):
                function()
            durations.append((time.perf_counter() - start) / repeats)
    one, other = (1000 * statistics.median(durations) for durations in times)
    print(
        f"{title:34} {one:10.3f} {other:10.3f} {one / other:7.2f}", flush=True
    )


def decoded(encoded: tf.Tensor, shape: tuple[int, int, int]) -> tf.Tensor:
    """Decodes a PNG or JPEG as one would by hand."""
    image = tf.io.decode_image(encoded, shape[2], expand_animations=False)
    image = tf.image.resize(image, shape[:2], antialias=True)
    return tf.cast(tf.round(image), tf.uint8)


def photograph(rng: np.random.Generator) -> bytes:
    """Returns a JPEG of 500×375 pixels with structure at many scales."""
    small = rng.integers(0, 256, [25, 20, 3]).astype(np.float32)
    large = tf.image.resize(small, [375, 500], "bicubic")
    return tf.io.encode_jpeg(tf.cast(tf.clip_by_value(large, 0, 255), tf.uint8))


def serving(export: loading.Export, network: keras.Model, rounds: int) -> None:
    """Measures the signatures."""
    shape = export.preprocessing.image_shape
    spec = tf.TensorSpec([None, *shape], tf.uint8)
    forward = tf.function(
        lambda images: tf.nn.softmax(network(images, training=False)["logits"]),
        input_signature=[spec],
        autograph=False,
    )
    by_hand = tf.function(
        lambda encoded: forward(
            tf.map_fn(
                lambda data: decoded(data, shape),
                encoded,
                fn_output_signature=tf.TensorSpec(shape, tf.uint8),
            )
        ),
        input_signature=[tf.TensorSpec([None], tf.string)],
        autograph=False,
    )
    classify = export.signatures["serving_default"]
    classify_bytes = export.signatures["classify_bytes"]
    rng = np.random.default_rng(0)

    def bytes_of(title: str, images: list[bytes], repeats: int) -> None:
        encoded = tf.constant(images)
        compare(
            f"classify_bytes, {title}",
            lambda: by_hand(encoded).numpy(),
            lambda: classify_bytes(image_bytes=encoded)[
                "probabilities"
            ].numpy(),
            rounds=rounds,
            repeats=repeats,
        )

    for count, repeats in ((1, 200), (64, 20)):
        pixels = rng.integers(0, 256, [count, *shape]).astype(np.uint8)
        images = tf.constant(pixels)
        compare(
            f"serving_default, {count}",
            lambda images=images: forward(images).numpy(),
            lambda images=images: classify(images=images)[
                "probabilities"
            ].numpy(),
            rounds=rounds,
            repeats=repeats,
        )
        files = [tf.io.encode_png(image).numpy() for image in pixels]
        bytes_of(f"{count}", files, repeats)
    files = [photograph(rng).numpy() for _ in range(64)]
    bytes_of("1 photograph", files[:1], repeats=50)
    bytes_of("64 photographs", files, repeats=3)


def write_images(
    folder: pathlib.Path, shape: tuple[int, int, int], count: int
) -> pathlib.Path:
    """Writes PNG files of random pixels into the subfolder images/."""
    images = folder / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 256, shape).astype(np.uint8)
        data = tf.io.encode_png(pixels).numpy()
        (images / f"{number:05}.png").write_bytes(data)
    return images


def predicting(
    workdir: str,
    network: keras.Model,
    images: pathlib.Path,
    folder: pathlib.Path,
) -> None:
    """Measures `predict` on files."""
    shape = network.input_shape[1:]
    model = loading.open_model(workdir)
    chosen = selection.find(str(images))
    forward = tf.function(
        lambda x: tf.nn.softmax(network(x, training=False)["logits"]),
        input_signature=[tf.TensorSpec([None, *shape], tf.uint8)],
        autograph=False,
    )

    def bare() -> None:
        dataset = tf.data.Dataset.from_tensor_slices(list(chosen.paths))
        dataset = dataset.map(
            lambda path: decoded(tf.io.read_file(path), shape),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        for batch in dataset.batch(64).prefetch(2):
            forward(batch).numpy()

    highest = []

    def ours() -> None:
        prediction.predict_to_file(
            model, chosen, folder / "labels.csv", overwrite=True
        )
        # Peak of the process in KiB.
        highest.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    compare(
        f"predict, {len(chosen.paths)} files", bare, ours, rounds=5, repeats=1
    )
    first, last = (number / 1024 for number in (highest[0], highest[-1]))
    print(
        f"highest memory: {first:.0f} MiB after the first of {len(highest)} "
        f"predictions, {last:.0f} MiB after the last"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", required=True, help="folder of a run")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--files",
        type=int,
        default=10_000,
        help="number of random PNG files; 0 skips predict",
    )
    parser.add_argument("--images", help="folder of PNG files to use instead")
    arguments = parser.parse_args()
    network = loading.run(arguments.workdir).classifier.network
    print(f"{'ms':34} {'reference':>10} {'ours':>10} {'ratio':>7}")
    with tempfile.TemporaryDirectory() as folder:
        written = exporting.write(arguments.workdir, f"{folder}/export")
        serving(loading.export(written.path), network, arguments.rounds)
        folder = pathlib.Path(folder)
        if arguments.images:
            images = pathlib.Path(arguments.images)
        elif arguments.files:
            images = write_images(
                folder, network.input_shape[1:], arguments.files
            )
        else:
            return
        predicting(arguments.workdir, network, images, folder)


if __name__ == "__main__":
    sys.exit(main())
