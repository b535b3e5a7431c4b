"""Small training runs for tests: 8×8 digits, seconds each."""

import json
import pathlib

import simmatch_tf
from simmatch_tf import registry

SMALL = {
    "dataset": "digits",
    "image_size": 8,
    "strong": "none",  # an operation is a second of tracing
    "labels": 20,
    "backbone": "wrn_10_1",
    "projection_dim": 16,
    "batch_norm_momentum": 0.9,
    "ema_momentum": 0.9,
    "ema_warmup": True,
    "batch_size": 8,
    "unlabeled_ratio": 2,
    "threshold": 0.5,
    "steps": 6,
    "da_window": 4,
    "eval_every": 3,
    "checkpoint_every": 2,
    "log_every": 2,
    "baselines": False,  # a process of seconds
}


# Those of SMALL that are for methods with pseudo-labels.
_OF_PSEUDO_LABELS = ("threshold", "da_window")


def _values(changes: dict) -> dict:
    values = dict(SMALL)
    method = changes.get("algorithm", "simmatch")
    known = registry.algorithms.find(method)[0].flags.declared()
    for name in _OF_PSEUDO_LABELS:
        if name not in known:
            del values[name]
    return {**values, **changes}


def config(workdir: pathlib.Path, **changes) -> simmatch_tf.Config:
    return simmatch_tf.Config(**_values({"workdir": str(workdir), **changes}))


def argv(workdir: pathlib.Path, **changes) -> list[str]:
    """The same as a command line."""
    words = []
    for name, value in _values({"workdir": workdir, **changes}).items():
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no'}{name}")
        elif value is not None:
            words.append(f"--{name}={value}")
    return words


def began_after(workdir: pathlib.Path) -> int:
    """The step that a run's last session went on from; 0, if it began anew.

    A run that begins anew ends with the same weights as one that goes on.
    """
    sessions = json.loads((workdir / "timing.json").read_text("utf-8"))
    return sessions[-1]["first_step"] - 1


def fit(workdir: pathlib.Path, **changes) -> simmatch_tf.Result:
    return simmatch_tf.fit(config(workdir, **changes))
