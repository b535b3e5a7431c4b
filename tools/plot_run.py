"""Draws runs from their TensorBoard files: accuracy, and the first's losses.

python tools/plot_run.py --output=run.png SimMatch=DIR supervised=DIR
"""

import pathlib
import sys

import matplotlib
from absl import flags

matplotlib.use("agg")
from matplotlib import pyplot  # noqa: E402

from simmatch_tf.reporting import scalars  # noqa: E402

OUTPUT = flags.DEFINE_string("output", "run.png", "PNG file.")
COLOURS = ("#1f6fb4", "#c44e52", "#55a868", "#8172b3")
LOSSES = (
    ("loss/s", "#c44e52", "labels, L_s"),
    ("loss/u", "#1f6fb4", "pseudo-labels, L_u"),
    ("loss/in", "#55a868", "instances, L_in"),
)


def main() -> None:
    """Draws all runs named on the command line."""
    words = flags.FLAGS(sys.argv)[1:]
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(9, 3.2), dpi=150, constrained_layout=True
    )
    for word, colour in zip(words, COLOURS, strict=False):
        name, workdir = word.split("=", 1)
        found = scalars.read(pathlib.Path(workdir) / "tensorboard")
        for network, style in (("ema", "-"), ("student", ":")):
            points = found[f"test/{network}_top1"]
            left.plot(
                list(points),
                [100 * v for v in points.values()],
                style,
                color=colour,
                label=f"{name}, {'EMA' if network == 'ema' else network}",
            )
        if right.lines:
            continue
        for tag, shade, text in LOSSES:
            points = found.get(tag, {})
            right.plot(
                list(points), list(points.values()), color=shade, label=text
            )
        right.set_title(name, fontsize=9)
    left.set(xlabel="step", ylabel="test top-1, %", ylim=(60, 100))
    right.set(xlabel="step", ylabel="loss, unweighted", ylim=(0, None))
    left.legend(frameon=False, fontsize=8, loc="lower right")
    right.legend(frameon=False, fontsize=8, loc="upper right")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(OUTPUT.value)


if __name__ == "__main__":
    main()
