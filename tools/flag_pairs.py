"""Draws pairs and triples of training flags, and looks for one that fails.

    python tools/flag_pairs.py --draws=200

Each draw is a command line of `simmatch_tf.train`: a run of six steps on small
digits with two or three documented flags. Each flag has a value that it allows,
such as both ends of its range if a run can be that large. `evaluate` follows. A
draw has trained, if `evaluate` measures the accuracies of results.json; or it
is refused with an error message; or it failed: a traceback, TensorFlow's own
text, no end within --patience seconds, or other accuracies. Ends with status 1
if one failed. The same --seed draws the same flags; --only=N repeats draw N
alone.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import random
import re
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np
import PIL.Image

from simmatch_tf import config as config_lib
from simmatch_tf import preflight
from simmatch_tf.flags import command as command_lib

BASE = (
    "--dataset=digits --image_size=8 --labels=20 --backbone=wrn_10_1 "
    "--projection_dim=16 --batch_norm_momentum=0.9 --ema_momentum=0.9 "
    "--ema_warmup --batch_size=8 --unlabeled_ratio=2 --threshold=0.5 "
    "--da_window=4 --steps=6 --eval_every=3 --checkpoint_every=2 --log_every=2"
).split()
# Values of the flags that are neither choices nor booleans, with the ends of
# their ranges where a run of some seconds allows them.
VALUES = {
    "dataset": ("digits", "folder --data_dir={folder}"),
    "tfds_dir": ("{tmp}",),
    "tfds_manual_dir": ("{tmp}",),
    "labels": (1, 10, 30, 1400),
    "label_fraction": (0, 0.01, 0.5, 1),
    "labeled_list": ("{tmp}/list.txt",),
    "split_file": ("{tmp}/base/split.json",),
    "split_seed": (0, 7),
    "validation_fraction": (0, 0.01, 0.5, 0.9),
    "image_size": (8, 9, 16),
    "crop_area": (0.01, 0.5, 1),
    "randaugment_operations": (0, 1, 14),
    "randaugment_probability": (0, 1),
    "randaugment_low": (0, 1),
    "randaugment_high": (0, 1),
    "randaugment_levels": (0, 1, 2),
    "cutout": (0, 0.1, 1),
    "eval_resize": (8, 12, 64),
    "backbone": ("wrn_10_1", "wrn_10_2", "wrn_16_1", "resnet18"),
    "init_from": ("{tmp}/base",),
    "stem_stride": (1, 2, 4),
    "backbone_rate_factor": (0, 0.1, 100),
    "labels_alone": (0, 0.1, 0.9),
    "projection_dim": (1, 7),
    "batch_norm_momentum": (0, 0.99999),
    "alpha": (0, 1),
    "temperature": (0.005, 10),
    "threshold": (0, 1),
    "lambda_u": (0, 1e6),
    "lambda_in": (0, 1e6),
    "memory_momentum": (0, 0.99999),
    "ema_momentum": (0, 1),
    "da_window": (1, 3),
    "matching_start_steps": (0, 3, 100),
    "batch_size": (1, 3, 20, 40),
    "unlabeled_ratio": (1, 5),
    "steps": (1, 2, 7),
    "epochs": (0, 0.001, 0.1),
    "warmup_steps": (0, 3, 6),
    "warmup_epochs": (0, 0.01, 1),
    "learning_rate": (0, 1, 100),
    "momentum": (0, 0.99999),
    "weight_decay": (0, 1),
    "seed": (0, 2**31 - 1),
    "devices": (1, 2, 3),
    "worker_timeout": (1,),
    "eval_every": (1, 4, 100),
    "checkpoint_every": (1, 4, 100),
    "log_every": (1, 4, 100),
    "picture_every": (1, 4, 100),
    "profile": ("0:1", "2:3", "5:9"),
    "keep": (1, 100),
    "eval_batch_size": (1, 7, 1000),
    "parallel_calls": (1, 7),
    "steps_per_loop": (1, 4, 7),
}
# Flag → why it is not drawn.
LEFT_OUT = {
    "workdir": "is set by this tool",
    "data_dir": "comes with --dataset=folder",
    "labels_csv": "is for --dataset=folder, with a table",
    "labels_from": "is for --dataset=folder, with a table",
    "describe": "trains nothing",
    "tpu": "looks for one in the network",
    "data_service": "needs its processes",
    "plugin": "needs a file of the user's",
}
# Choices that are not drawn.
_LEFT_OUT_CHOICES = {"strategy": ("tpu",)}
# Text that a user with allowed flags must not see.
_INTERNAL = re.compile(
    r"Traceback \(most|\{\{|__wrapped__|\[Op:|Iterator::|ValueError|TypeError"
)
_SHOWN = 12  # last lines of a failed log


@dataclasses.dataclass
class Draw:
    """One command line, and its outcome.

    Attributes:
        number: Number of the draw, from 0.
        words: The flags drawn.
        outcome: "trained", "refused" or "failed".
        reason: Reason of a refusal or a failure.
        seconds: Its duration.
    """

    number: int
    words: list[str]
    outcome: str = ""
    reason: str = ""
    seconds: float = 0.0


def values() -> dict[str, list[str]]:
    """Returns flag → the words of the command line for each of its values."""
    words = {}
    for name, each in config_lib.Config.declared().items():
        if name in LEFT_OUT:
            continue
        choices = each.choices
        if name in VALUES:
            words[name] = [f"--{name}={value}" for value in VALUES[name]]
        elif choices:
            left_out = _LEFT_OUT_CHOICES.get(name, ())
            words[name] = [
                f"--{name}={value}"
                for value in choices
                if value not in left_out
            ]
        else:
            words[name] = [f"--{name}", f"--no{name}"]
    return words


def draw(rng: random.Random, places: dict[str, str]) -> list[str]:
    """Draws two or three flags, each with one of its values."""
    known = values()
    names = rng.sample(sorted(known), rng.choice((2, 3)))
    words = [rng.choice(known[name]).format(**places) for name in names]
    return [part for word in words for part in word.split(" ")]


def prepare(tmp: pathlib.Path) -> dict[str, str]:
    """Creates what the values name: a folder of images, a list, a run."""
    rng = np.random.default_rng(0)
    folder = tmp / "images"
    for part in ("labeled/a", "labeled/b", "unlabeled", "test/a", "test/b"):
        (folder / part).mkdir(parents=True)
        for number in range(40 if part == "unlabeled" else 12):
            pixels = rng.integers(0, 256, [10, 12, 3]).astype(np.uint8)
            path = folder / part / f"{number}.png"
            PIL.Image.fromarray(pixels).save(path)
    (tmp / "list.txt").write_text("\n".join(map(str, range(0, 300, 3))))
    (tmp / "base.cfg").write_text("\n".join(BASE))
    places = {"tmp": str(tmp), "folder": str(folder)}
    first = run(Draw(-1, []), tmp / "base", tmp / "base.cfg", 600)
    if first.outcome != "trained":
        sys.exit(f"error: the run without drawn flags fails: {first.reason}")
    return places


def command(
    main: Callable,
    kind: type,
    words: Sequence[str],
    log: pathlib.Path,
    patience,
) -> int | None:
    """Runs a command in a fork of this process, which has TensorFlow loaded.

    Returns:
        Its exit status; None if it did not end in time and was killed.
    """
    sys.stdout.flush()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setsid()
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, 1)
            os.dup2(file, 2)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            sys.argv = ["simmatch_tf", *words]
            command_lib.run(main, kind)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int | None) else 1
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException:
            import traceback

            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 0)
    until = time.monotonic() + patience
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def run(
    drawn: Draw, workdir: pathlib.Path, base: pathlib.Path, patience: float
) -> Draw:
    """Trains and evaluates a draw; returns it with its outcome."""
    from simmatch_tf import evaluate, train

    began, log = time.monotonic(), workdir.with_suffix(".log")
    log.write_text("")
    words = [f"--flagfile={base}", *drawn.words, f"--workdir={workdir}"]
    status = command(train.main, config_lib.Config, words, log, patience)
    if status == 0:
        status = command(
            evaluate.main,
            evaluate.EvaluateConfig,
            [f"--workdir={workdir}"],
            log,
            patience,
        )
    text = log.read_text(errors="replace")
    lines = text.strip().splitlines()
    refusals = [line for line in lines if line.startswith("error: ")]
    if status is None:
        drawn.outcome, drawn.reason = "failed", f"no end in {patience:.0f} s"
    elif _INTERNAL.search(text) or (status and not refusals) or status < 0:
        drawn.outcome = "failed"
        drawn.reason = f"status {status}:\n" + "\n".join(lines[-_SHOWN:])
    elif status:
        drawn.outcome, drawn.reason = "refused", refusals[-1]
    else:
        drawn.reason = different(workdir)
        drawn.outcome = "failed" if drawn.reason else "trained"
    drawn.seconds = round(time.monotonic() - began, 1)
    return drawn


def different(workdir: pathlib.Path) -> str:
    """Says how evaluate differs from results.json; "" if it does not.

    Several devices sum in another order than the device that evaluates, so one
    image may be classified differently.
    """
    result = json.loads((workdir / "results.json").read_text("utf-8"))
    report = json.loads((workdir / "evaluation.json").read_text("utf-8"))
    several = "--devices=" in (workdir / "flags.cfg").read_text("utf-8")
    allowed = 1.01 / report["test_images"] if several else 0.0
    differences = []
    for name in ("student", "ema"):
        for key in ("top1", "top5"):
            one, other = result[name]["last"][key], report[name][key]
            if not abs(one - other) <= allowed:
                differences.append(
                    f"{name} {key} is {one} in results.json and {other} "
                    "by evaluate"
                )
    return "; ".join(differences)


def main() -> int:
    """Prints each draw and the counts; returns 1 if one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="repeat this draw")
    parser.add_argument("--patience", type=float, default=300.0)
    parser.add_argument("--output", help="JSON file to write")
    given = parser.parse_args()
    preflight.load_tensorflow()  # once for all draws
    import simmatch_tf.serving.scoring
    import simmatch_tf.training.loop  # noqa: F401 — imported for all draws

    draws = []
    with tempfile.TemporaryDirectory() as temporary:
        tmp = pathlib.Path(temporary)
        places = prepare(tmp)
        for number in range(given.draws):
            rng = random.Random(f"{given.seed} {number}")
            drawn = Draw(number, draw(rng, places))
            if given.only not in (None, number):
                continue
            run(drawn, tmp / f"run{number}", tmp / "base.cfg", given.patience)
            draws.append(drawn)
            shown = shlex.join(w.replace(str(tmp), "TMP") for w in drawn.words)
            print(
                f"{number}: {drawn.outcome} in {drawn.seconds} s: {shown}"
                + (f"\n    {drawn.reason}" if drawn.reason else ""),
                flush=True,
            )
    counts = collections.Counter(drawn.outcome for drawn in draws)
    print(
        f"{len(draws)} draws: {counts['trained']} trained and evaluated "
        f"equally, {counts['refused']} refused with a message, "
        f"{counts['failed']} failed"
    )
    if given.output:
        report = [dataclasses.asdict(drawn) for drawn in draws]
        pathlib.Path(given.output).write_text(json.dumps(report, indent=2))
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
