"""The flags of the commands; `train`'s are in `config`.

Those of `export_pytorch` and `import_pytorch` are in `pytorch_flags`.
"""

import dataclasses
import pathlib
from typing import ClassVar

from simmatch_tf import checks
from simmatch_tf import config as config_lib
from simmatch_tf.flags import commandline
from simmatch_tf.flags.commandline import InputError, flag


@dataclasses.dataclass(frozen=True)
class _WithImages(commandline.Flags):
    """Flags of a command that reads the images of a run."""

    data_dir: str | None = flag(
        None, "where the run's --data_dir is now; default: as it was."
    )
    tfds_dir: str | None = flag(None, "likewise its --tfds_dir.", rare=True)

    def moved(self, config: config_lib.Config) -> config_lib.Config:
        """The run's flags, with the places of its images as they are now."""
        given = {
            name: value
            for name in ("data_dir", "tfds_dir")
            if (value := getattr(self, name)) is not None
        }
        return dataclasses.replace(config, **given)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(_WithImages):
    """What `python -m simmatch_tf.evaluate` takes."""

    workdir: str | None = flag(None, "folder of the run to evaluate.")
    export: str | None = flag(
        None,
        "an export to evaluate instead: a version's folder, or the folder of "
        "versions, of which the newest is taken.",
    )
    output: str | None = flag(
        None,
        "JSON file; default: evaluation.json in the workdir or beside the "
        "export's model card.",
    )
    batch_size: int = flag(256, "images.", low=1)
    bins: int = flag(15, "of the calibration error.", low=1, high=10000)

    def check(self) -> None:
        """One of a workdir and an export is needed."""
        if (self.workdir is None) == (self.export is None):
            raise InputError(
                f"--workdir={self.workdir} and --export={self.export}: name "
                "the folder of a run, or an export"
            )


@dataclasses.dataclass(frozen=True)
class ExportConfig(_WithImages):
    """What `python -m simmatch_tf.export` takes."""

    exact: ClassVar[bool] = False

    workdir: str | None = flag(None, "folder of the run to export.")
    output: str | None = flag(
        None,
        "folder of this model's versions; the export becomes the next number "
        "in it.",
    )
    replace_model: bool = flag(
        False,
        "the folder holds another run's model: the export becomes its next "
        "version all the same.",
    )
    weights: str | None = flag(
        None,
        "default: the weights of record.",
        choices=("student", "ema"),
    )
    format: str = flag(
        "saved_model",
        "what is written; litert and onnx give probabilities only.",
        choices=("saved_model", "litert", "onnx"),
    )
    input_dtype: str = flag(
        "uint8",
        "of the images that it takes, from 0 to 255.",
        choices=("uint8", "float32"),
    )
    neighbors: int = flag(
        5, "labeled images that explain gives of each image.", low=1, high=1000
    )
    thumbnails: bool = flag(
        True,
        "keep small pictures of the labeled images in the export, for "
        "predict --html; a server does not give them away.",
    )
    images: str | None = flag(
        None,
        "folder, pattern or list of images to compare by; default: the run's "
        "dataset.",
    )

    def check(self) -> None:
        """Run and output are needed."""
        if self.workdir is None:
            raise InputError("--workdir=None: name the folder of a run")
        if not (self.output or "").strip():
            raise InputError(
                f"--output={self.output}: name the folder of versions to "
                "export to"
            )
        if self.format != "saved_model":
            for field in dataclasses.fields(self):
                value = getattr(self, field.name)
                if field.name in ("neighbors", "thumbnails") and (
                    value != field.default
                ):
                    raise InputError(
                        f"--{field.name}={value}: is for --format=saved_model, "
                        f"not {self.format}"
                    )
        if pathlib.Path(self.output).expanduser().is_file():
            raise InputError(
                f"--output={self.output}: is a file, but a folder is wanted"
            )


@dataclasses.dataclass(frozen=True)
class PredictConfig(_WithImages):
    """What `python -m simmatch_tf.predict` takes."""

    exact: ClassVar[bool] = False

    model: str | None = flag(
        None,
        "folder of a run, or an export (a version's folder, or the folder of "
        "versions: the newest).",
    )
    images: str | None = flag(
        None,
        "folder of images (with all folders in it), pattern such as "
        "'photos/**/*.jpg', one image, or text file with one path a line, from "
        "that file's folder on.",
    )
    output: str | None = flag(None, "file to write: .csv, .jsonl or .parquet.")
    explain: bool = flag(
        False, "the labeled images that each prediction rests on, too."
    )
    html: str | None = flag(
        None, "page to write: the images by class, the least certain first."
    )
    html_images: int | None = flag(
        None, "images on the page, at most; default: 200.", low=1, high=10000
    )
    neighbors: int | None = flag(
        None,
        "labeled images that --explain gives of each image, of a run; default: "
        "5. An export has its own number.",
        low=1,
        high=1000,
    )
    weights: str | None = flag(
        None,
        "of a run; default: the weights of record.",
        choices=("student", "ema"),
    )
    batch_size: int = flag(64, "images.", low=1)
    parallel_calls: int | None = flag(
        None, "images decoded at once; default: twice the cores.", low=1
    )
    overwrite: bool = flag(
        False, "write the output anew where it is there already."
    )

    def check(self) -> None:
        """Model, images and output are needed."""
        for name, what in (
            ("model", "the folder of a run, or an export"),
            ("images", "a folder, a pattern or a list"),
            ("output", "a .csv, .jsonl or .parquet file"),
        ):
            if not (getattr(self, name) or "").strip():
                raise InputError(f"--{name}={getattr(self, name)}: name {what}")
        _check_file(self, "output", (".csv", ".jsonl", ".parquet"))
        for name, needed in (("html_images", "html"), ("neighbors", "explain")):
            if getattr(self, name) is not None and not getattr(self, needed):
                raise InputError(
                    f"--{name}={getattr(self, name)}: needs --{needed}"
                )
        if self.html is not None:
            _check_file(self, "html", (".html", ".htm"))


@dataclasses.dataclass(frozen=True)
class ReportConfig(_WithImages):
    """What `python -m simmatch_tf.report` takes."""

    positional: ClassVar[tuple[str, ...]] = ("runs",)

    runs: tuple[str, ...] = flag(
        (),
        "folder of a run, or NAME=FOLDER to call it so; many of them. May "
        "stand without its name.",
    )
    output: str | None = flag(None, "page to write: .html.")
    figures: str | None = flag(
        None, "folder for the figures as PNG files; default: none are written."
    )
    images: int = flag(
        24,
        "test images on the page that are wrong, and that are least certain; "
        "0: no image is read.",
        low=0,
        high=1000,
    )
    neighbors: int = flag(
        5, "labeled images beside each, at most.", low=1, high=100
    )
    batch_size: int = flag(256, "images.", low=1, rare=True)

    def check(self) -> None:
        """Runs and a page are needed."""
        if not self.runs:
            raise InputError("no run is named: report WORKDIR … --output=…")
        if not (self.output or "").strip():
            raise InputError(f"--output={self.output}: name an .html file")
        _check_file(self, "output", (".html", ".htm"))
        if self.figures is None:
            return
        path = pathlib.Path(self.figures).expanduser()
        if not self.figures.strip() or (path.exists() and not path.is_dir()):
            raise InputError(f"--figures={self.figures}: must be a folder")
        if not path.is_dir() and not path.absolute().parent.is_dir():
            raise InputError(
                f"--figures={self.figures}: must be in a folder that exists"
            )


def _check_file(
    values: commandline.Flags, name: str, endings: tuple[str, ...]
) -> None:
    """Checks the name of a file to write.

    Raises:
        InputError: It has another ending, is a folder, or is in none.
    """
    value = getattr(values, name)
    path = pathlib.Path(value).expanduser()
    if path.suffix.lower() not in endings:
        raise InputError(
            f"--{name}={value}: must end in {' or '.join(endings)}"
        )
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(
            f"--{name}={value}: must be a file in a folder that exists"
        )


@dataclasses.dataclass(frozen=True)
class ServeDataConfig(commandline.Flags):
    """What `python -m simmatch_tf.serve_data` takes."""

    exact: ClassVar[bool] = False

    role: str | None = flag(
        None,
        "one dispatcher hands out the work, any number of workers do it.",
        choices=("dispatcher", "worker"),
    )
    dispatcher: str | None = flag(
        None, "of a worker: the dispatcher's address, HOST:PORT."
    )
    host: str = flag(
        "localhost",
        "name of this machine by which the others reach it.",
    )
    port: int | None = flag(
        None,
        "to listen at; 0: any that is free. Default: 5050 for a dispatcher, 0 "
        "for a worker.",
        low=0,
        high=65535,
    )

    def check(self) -> None:
        """A role is needed, and to a worker its dispatcher."""
        if self.role is None:
            raise InputError("--role=None: must be dispatcher or worker")
        if (self.role == "worker") != (self.dispatcher is not None):
            raise InputError(
                f"--role={self.role} and --dispatcher={self.dispatcher}: a "
                "worker, and only that, needs --dispatcher=HOST:PORT"
            )
        if self.dispatcher is not None:
            checks.split_address("dispatcher", self.dispatcher)
        if self.port is None:
            port = 5050 if self.role == "dispatcher" else 0
            object.__setattr__(self, "port", port)
        checks.split_address("host", self.host, f"{self.host}:1")


@dataclasses.dataclass(frozen=True)
class ExperimentConfig(commandline.Flags):
    """What `python -m simmatch_tf.experiment` takes."""

    positional: ClassVar[tuple[str, ...]] = ("plan",)

    plan: str | None = flag(
        None, "the plan's .cfg file; may stand without its name."
    )
    workdir: str | None = flag(
        None,
        "for table.md, table.csv, runs.csv, table.png and the runs' folders; "
        "default: runs/<name of the plan>.",
    )
    results: str | None = flag(
        None,
        "folder of finished runs, a small file each; what is there is not run "
        "again. Default: finished/ in the workdir.",
    )
    seeds: str | None = flag(
        None,
        "those of the plan's to run now, such as 0,1,2; default: all. The "
        "table has what is finished.",
    )
    jobs: int = flag(1, "runs at once.", low=1, high=1024)
    gpus: str | None = flag(
        None,
        "their numbers, such as 0,1,2,3, divided over the --jobs; default: "
        "each run sees all.",
    )
    page: str | None = flag(
        None,
        "a Markdown file: the table goes between <!-- PLAN --> and "
        "<!-- /PLAN -->.",
    )
    dry_run: bool = flag(
        False, "say what is left to run and how long it takes; run nothing."
    )
    only_tables: bool = flag(
        False, "write the table of what is finished; run nothing."
    )
    progress: bool = flag(True, "a progress bar.")

    def check(self) -> None:
        """A plan is needed; lists of numbers are such."""
        if self.plan is None:
            raise InputError("no plan is named: experiment PLAN.cfg …")
        for name in ("workdir", "results"):
            path = getattr(self, name)
            if path is not None and (
                not path.strip() or pathlib.Path(path).expanduser().is_file()
            ):
                raise InputError(f"--{name}={path}: must be a folder")
        self.chosen_seeds()
        if len(self.chosen_gpus()) % self.jobs:
            raise InputError(
                f"--gpus={self.gpus} and --jobs={self.jobs}: each run needs "
                "GPUs of its own, and all as many"
            )
        if self.only_tables and self.dry_run:
            raise InputError("--only_tables and --dry_run: one of them")

    def chosen_seeds(self) -> tuple[int, ...]:
        """Those of --seeds."""
        return (
            () if self.seeds is None else checks.numbers("--seeds", self.seeds)
        )

    def chosen_gpus(self) -> tuple[int, ...]:
        """Those of --gpus."""
        return () if self.gpus is None else checks.numbers("--gpus", self.gpus)
