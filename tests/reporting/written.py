"""Folders of runs as training leaves them, written without training."""

import dataclasses
import json
import pathlib
import time

from tensorboard.compat.proto import event_pb2
from tensorboard.summary.writer import record_writer
from tensorboard.util import tensor_util

from simmatch_tf import config as config_lib
from simmatch_tf.data import fingerprint
from simmatch_tf.reporting import runs
from simmatch_tf.training import results

LABELS, CLASSES = 20, ["cat", "dog"]
CURVES = {
    "loss/total": {10: 3.0, 20: 2.0, 30: 1.0},
    "pseudo_label/accuracy": {10: 0.5, 20: 0.6, 30: 0.7},
    "pseudo_label/accuracy_all": {10: 0.4, 20: 0.5, 30: 0.6},
    "test/student_top1": {15: 0.5, 30: 0.6},
    "test/ema_top1": {15: 0.4, 30: 0.7},
}


def groups(*words) -> list[runs.Group]:
    """Reads runs, as the command `report` does."""
    return runs.group(runs.read(list(map(str, words))))


def events(folder: pathlib.Path, scalars, *, began: int = 1) -> pathlib.Path:
    """An event file, begun at a second."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"events.out.tfevents.{began}.host.1.0.v2"
    with path.open("wb") as file:
        writer = record_writer.RecordWriter(file)
        writer.write(event_pb2.Event(step=0).SerializeToString())
        for tag, points in scalars.items():
            for step, value in points.items():
                event = event_pb2.Event(step=step)
                event.summary.value.add(
                    tag=tag, tensor=tensor_util.make_tensor_proto(value)
                )
                writer.write(event.SerializeToString())
    return path


def result(top1: float, config: config_lib.Config) -> results.Result:
    def figures(score):
        last = {"top1": score, "top5": 1.0, "step": config.steps}
        best = {"top1": score, "step": 15, "chosen_on": "test"}
        return {"last": last, "best": best}

    return results.Result(
        top1=top1,
        top5=1.0,
        loss=1.0,
        steps=config.steps,
        weights_of_record="ema",
        student=figures(top1 - 0.1),
        ema=figures(top1),
        algorithm=config.algorithm,
        dataset=config.dataset,
        class_names=CLASSES,
        labels=LABELS,
        validation_labels=0,
        unlabeled=1400,
        scored_on="test",
        test_images=100,
        seed=config.seed,
        split_seed=config.split_seed,
        versions={"tensorflow": "2.21.0"},
    )


def run(
    folder: pathlib.Path,
    top1: float | None = 0.7,
    curves=CURVES,
    data=None,
    split=None,
    **changes,
) -> pathlib.Path:
    """A run, finished where it has a top-1.

    `data`: name → content of each of its files; without it, as an older version
    left a run. `split`: more of its split.json.
    """
    values = {"labels": LABELS, "steps": 30, "backbone": "wrn_10_1"}
    config = config_lib.Config(**{**values, **changes})
    folder.mkdir(parents=True)
    (folder / "flags.cfg").write_text(config.to_flagfile())
    kept = {"labels": [0, 1] * 10, "unlabeled_images": 1400, **(split or {})}
    (folder / "split.json").write_text(json.dumps(kept))
    if data is not None:
        files = {
            name: (len(content), time.time_ns(), content or None)
            for name, content in data.items()
        }
        fingerprint.Fingerprint(files).write(folder / "data.json")
    if curves:
        events(folder / "tensorboard", curves)
    if top1 is not None:
        run_result = result(top1, config)
        (folder / "results.json").write_text(
            json.dumps(dataclasses.asdict(run_result))
        )
        session = {"first_step": 1, "last_step": 30, "seconds": 60.0}
        session["views_per_second"] = 1000.0
        (folder / "timing.json").write_text(json.dumps([session]))
    return folder


def evaluation(folder: pathlib.Path, confusion) -> None:
    """What `evaluate` leaves in a finished run."""
    run_result = results.read(folder / "results.json")
    record = {
        "top1": run_result.top1,
        "top5": 1.0,
        "confusion": confusion,
        "per_class": [r[i] / sum(r) for i, r in enumerate(confusion)],
        "calibration_error": 0.123,
    }
    report = {"step": run_result.steps, "class_names": run_result.class_names}
    report["test_images"] = run_result.test_images
    (folder / "evaluation.json").write_text(
        json.dumps({**report, "ema": record})
    )
