r"""Labels images: their classes, and the labeled images that explain them.

python -m simmatch_tf.predict --model=runs/digits_40 --images=photos \
    --output=predictions.csv --explain --html=predictions.html
"""

import dataclasses
import importlib.util
import os
import pathlib
import sys
import types
from typing import TYPE_CHECKING, Any

from simmatch_tf import config as config_lib
from simmatch_tf import io, preflight, signals, terminal
from simmatch_tf.data import layout, selection
from simmatch_tf.flags import command, commandline
from simmatch_tf.flags.commandline import flag
from simmatch_tf.flags.errors import InputError
from simmatch_tf.reporting import pages, printed_tables
from simmatch_tf.serving import prediction_file
from simmatch_tf.training import workdir

if TYPE_CHECKING:
    from simmatch_tf.serving import prediction


@dataclasses.dataclass(frozen=True)
class PredictConfig(config_lib.ImageFolders):
    """The flags of `python -m simmatch_tf.predict`."""

    model: str | None = flag(
        None,
        "Folder of a run or an export. For an export: the folder of one "
        "version, or of several, of which the newest is used.",
        required="the folder of a run, or an export",
    )
    images: str | None = flag(
        None,
        "Images to classify: a folder (read with its subfolders), a pattern "
        "such as 'photos/**/*.jpg', one image, or a text file with one path a "
        "line, relative to that file. Default: the images without a class of "
        "a run on your own folder.",
    )
    output: str | None = flag(
        None,
        "File to write; must end in .csv, .jsonl or .parquet.",
        required="a .csv, .jsonl or .parquet file",
    )
    explain: bool = flag(
        False, "Also write the labeled images that support each prediction."
    )
    html: str | None = flag(
        None,
        "HTML page to write, with the images by class and the least certain "
        "first.",
    )
    html_images: int | None = flag(
        None,
        "Largest number of images on the page. Default: 200.",
        low=1,
        high=10000,
    )
    neighbors: int | None = flag(
        None,
        "Number of labeled images that --explain lists for each image; for "
        "runs only, an export has its own number. Default: 5.",
        low=1,
        high=1000,
    )
    weights: str | None = flag(
        None,
        "Weights of a run to predict with; baseline = the frozen baseline of a "
        "run with --init_from, which needs no checkpoint. Default: those that "
        "its result was measured with.",
        choices=workdir.WEIGHTS,
    )
    batch_size: int = flag(64, "Batch size, in images.", low=1)
    parallel_calls: int | None = flag(
        None,
        "Number of images decoded at once. Default: twice the number of cores.",
        low=1,
    )
    overwrite: bool = flag(False, "Replace an existing output file.")

    def check(self) -> None:
        """The files must have the right endings; flags need each other."""
        commandline.check_output_file(
            "output", self.output, (".csv", ".jsonl", ".parquet")
        )
        for name, needed in (("html_images", "html"), ("neighbors", "explain")):
            if getattr(self, name) is not None and not getattr(self, needed):
                raise InputError(
                    f"--{name}={getattr(self, name)}: needs --{needed}"
                )
        if self.html is not None:
            commandline.check_output_file("html", self.html, (".html", ".htm"))


def _check(flags: PredictConfig) -> selection.Selection:
    """Checks what needs no TensorFlow; finds the images."""
    kind, path = preflight.kind_of_model("model", flags.model)
    if kind == "workdir" and flags.weights == workdir.BASELINE:
        workdir.Workdir(path).with_baseline()
        if flags.explain:
            raise InputError(
                f"--explain and --weights={flags.weights}: "
                f"{workdir.NO_MEMORY}; leave one of the two out"
            )
    elif kind == "workdir":
        config = workdir.Workdir(path).trained()
        if flags.explain and not preflight.may_have_memory(config):
            raise InputError(f"--explain: {preflight.NO_MEMORY}")
    else:
        preflight.exported_flags(path)
        for name in ("weights", "neighbors", "data_dir", "tfds_dir"):
            if (value := getattr(flags, name)) is not None:
                raise InputError(
                    f"--{name}={value}: applies to a run; an export has what "
                    "it was made with"
                )
    output = io.expand(flags.output)
    if output.suffix.lower() == ".parquet" and not importlib.util.find_spec(
        "pyarrow"
    ):
        raise InputError(
            f"--output={flags.output}: pyarrow is not installed: pip install "
            "pyarrow, or name a .csv or .jsonl file"
        )
    # With a partial file beside it, the output was about to be replaced.
    replaced = flags.overwrite or prediction_file.partial_path(output).exists()
    if output.exists() and not replaced:
        raise InputError(
            f"--output={output}: exists already; name another file, or give "
            "--overwrite"
        )
    if flags.images is None:
        return _without_class(flags, path if kind == "workdir" else None)
    chosen, images = selection.find(flags.images), io.expand(flags.images)
    if output.exists() and images.exists() and output.samefile(images):
        raise InputError(
            f"--output={flags.output}: is the file that --images names; give "
            "another one"
        )
    return chosen


def _without_class(
    flags: PredictConfig, path: pathlib.Path | None
) -> selection.Selection:
    """Finds the images of a run's --data_dir that have no class.

    Args:
        flags: The flags of the command.
        path: Folder of the run; None for an export.

    Returns:
        The files; their names are those from --data_dir.

    Raises:
        InputError: It is no run on a folder, or all its images have a class.
    """
    config = None
    if path is not None:
        config = workdir.Workdir(path).read_config()
    if config is None or config.dataset != "folder":
        raise InputError(
            "--images is missing: give a folder, a pattern or a list (only "
            "the model of a run on your own folder knows images to classify)"
        )
    config = config.moved(flags.data_dir, flags.tfds_dir)
    listing = layout.of_flags(config)
    names = [
        name
        for name, part in zip(listing.paths, listing.parts, strict=True)
        if part == "unlabeled"
    ]
    if not names:
        raise InputError(
            f"--data_dir={config.data_dir}: all images of the run have a "
            "class; give --images"
        )
    return selection.Selection([f"{listing.root}/{n}" for n in names], names)


def main(flags: PredictConfig) -> int:
    """Labels the images; writes the file, the page and a table.

    Returns:
        0; 1 if no image could be read; 42 if the command was interrupted and
        can be continued.
    """
    signals.sigterm_as_ctrl_c()
    chosen = _check(flags)
    try:
        return _predict(flags, chosen)
    except KeyboardInterrupt:
        if not prediction_file.partial_path(io.expand(flags.output)).exists():
            raise
        print(
            "interrupted; the rows written so far are kept: start it again, "
            "without --overwrite, to continue",
            file=sys.stderr,
        )
        return signals.RESUME_ME


def _predict(flags: PredictConfig, chosen: selection.Selection) -> int:
    # TensorFlow is imported after all cheap checks.
    preflight.start(fast=False)
    from simmatch_tf.serving import loading, prediction, thumbnails

    terminal.say(f"loading {flags.model}")
    model = loading.open_model(
        flags.model,
        weights=flags.weights,
        neighbors=flags.neighbors,
        data_dir=flags.data_dir,
        tfds_dir=flags.tfds_dir,
    )

    def write_page(summary: prediction_file.Summary) -> None:
        slots = {
            neighbor["slot"]
            for _, row in summary.least
            for neighbor in row.get("neighbors", ())
        }
        text = pages.predictions(
            summary,
            flags.model,
            thumbnails.of_files(
                {index: chosen.paths[index] for index, _ in summary.least}
            ),
            model.thumbnails(sorted(slots)),
            model.note,
        )
        io.write_text(io.expand(flags.html), text)

    summary = prediction.predict_to_file(
        model,
        chosen,
        flags.output,
        explain=flags.explain,
        overwrite=flags.overwrite,
        batch_size=flags.batch_size,
        parallel_calls=flags.parallel_calls,
        most_shown=(flags.html_images or 200) if flags.html else 0,
        show=write_page if flags.html else None,
    )
    output = pathlib.Path(flags.output)
    print(printed_tables.predictions(summary, output, model.note))
    if flags.html is not None:
        print(f"The least certain images are shown in {flags.html}.")
    if summary.unreadable == summary.images:
        sys.exit("error: no image could be read")
    return 0


class _Callable(types.ModuleType):
    """Makes this module callable: the command's module is also a function.

    Python sets an attribute of a package to any submodule that is imported, so
    a function named `simmatch_tf.predict` would be replaced by this module.
    """

    def __call__(
        self,
        model: str | os.PathLike,
        images: Any,
        *,
        weights: str | None = None,
        batch_size: int = 64,
    ) -> "prediction.Predictions":
        """Classifies images with a run or an export.

        The model is loaded at each call, so give many images to one call.

        Args:
            model: Folder of a run or an export, as in the command's --model.
            images: Files: a folder, a pattern, a list or an image, as in the
                command's --images, or a list of paths. Or images in memory, of
                any sizes: uint8 [N, H, W, C], or a list of [H, W, C] (RGB, or
                grey with 1 channel), [H, W] (grey) or Pillow images. They are
                resized and cropped as files are.
            weights: "student" or "ema" of a run; default: the weights of
                record. "baseline" is the frozen baseline of a run with
                --init_from, which needs no checkpoint.
            batch_size: Images in a batch.

        Returns:
            Names, class names and probabilities; `print` shows them as a
            table.

        Raises:
            InputError: The model cannot be loaded; there are no images; or one
                cannot be read, or is no uint8 array.
        """
        preflight.load_tensorflow(fast=False)
        from simmatch_tf.serving import prediction

        return prediction.predict(
            model, images, weights=weights, batch_size=batch_size
        )


if __name__ == "__main__":
    command.run(main, PredictConfig)
else:
    sys.modules[__name__].__class__ = _Callable
