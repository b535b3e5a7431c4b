"""The labels alone: a short run before a run, to compare its result with.

It is a whole run of --algorithm=supervised in labels_alone/ of the run's
folder, with the other flags of the run, for a share of its length
(--labels_alone). So it is killed, resumed and predicted with as any other.
Nothing here imports TensorFlow.
"""

import contextlib
import dataclasses
from collections.abc import Iterator

from simmatch_tf import config as config_lib
from simmatch_tf import registry
from simmatch_tf.distributed import cluster
from simmatch_tf.flags.errors import InputError
from simmatch_tf.training import workdir

# Least --minutes that a run can have.
_LEAST_MINUTES = 0.1


def left_out(config: config_lib.Config, scored: int) -> str | None:
    """Says why the labels alone are not trained, or returns None.

    Args:
        config: The flags of a run with --labels_alone.
        scored: Number of images that its result is measured on.
    """
    entry, _ = registry.algorithms.find(config.algorithm)
    if not entry.value.unlabeled_views:
        return f"--algorithm={config.algorithm} is that already"
    if not scored:
        return "there are no images to measure their result on"
    if cluster.of(config) is not None or config.strategy == "tpu" or config.tpu:
        return "the devices of several machines and of a TPU train one run"
    return None


def folder(run: workdir.Workdir) -> workdir.Workdir:
    """Returns the folder of the run on the labels alone.

    Args:
        run: The folder of the run; that of an extension has the one of the run
            that it extends.
    """
    return workdir.Workdir((run.extends or run).path / workdir.LABELS_ALONE)


def flags(
    config: config_lib.Config, place: workdir.Workdir
) -> config_lib.Config:
    """Returns the flags of the run on the labels alone.

    Args:
        config: The flags of the run, of any length.
        place: See `folder`.
    """
    share, length = config.labels_alone, {}
    if config.minutes is not None:
        length["minutes"] = max(share * config.minutes, _LEAST_MINUTES)
    elif config.epochs is not None:
        length["epochs"] = share * config.epochs
    else:
        length["steps"] = max(1, round(share * config.steps))
    unknown = dict.fromkeys(
        (
            "steps",
            "epochs",
            "minutes",
            "measured_steps",
            "extended_steps",
            "extend_minutes",
            "extend_steps",
            "eval_every",
            "checkpoint_every",
            "warmup_steps",
            "warmup_epochs",
            "picture_every",
            "profile",
        )
    )
    return dataclasses.replace(
        config,
        **{**unknown, **length},
        algorithm="supervised",
        workdir=str(place.path),
        labels_alone=0.0,
        baselines=False,
        summaries=False,
        overwrite=False,
        progress=False,
    )


@contextlib.contextmanager
def claim(
    config: config_lib.Config, *, anew: bool
) -> Iterator[workdir.Workdir]:
    """Locks the folder of the run on the labels alone.

    Args:
        config: Its flags.
        anew: The run that it belongs to starts from its beginning, so that one
            of other flags or images may be replaced.
    """
    overwrite = False
    if anew:
        try:
            with workdir.claim(config):
                pass
        except InputError:
            overwrite = True
    with workdir.claim(
        dataclasses.replace(config, overwrite=overwrite)
    ) as place:
        yield place
