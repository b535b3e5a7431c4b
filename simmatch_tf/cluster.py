"""The workers of a run on several machines: TF_CONFIG.

    {"cluster": {"worker": ["host0:12345", "host1:12345"]},
     "task": {"type": "worker", "index": 0}}

Nothing here imports TensorFlow.
"""

from __future__ import annotations

import dataclasses
import json
import os
import typing
from typing import Any

from simmatch_tf.commandline import InputError

if typing.TYPE_CHECKING:
    from simmatch_tf import config as config_lib

_WANTED = (
    '{"cluster": {"worker": ["host0:12345", "host1:12345"]}, '
    '"task": {"type": "worker", "index": 0}}'
)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers, and which of them this process is.

    Attributes:
        workers: host:port of each; the first is the chief, which writes.
        index: This process's place among them.
    """

    workers: tuple[str, ...]
    index: int

    @property
    def chief(self) -> bool:
        """Whether this process writes what a run leaves behind."""
        return self.index == 0


def read() -> Cluster | None:
    """What TF_CONFIG says; None if it is not set or names one worker.

    Raises:
        InputError: It is not right.
    """
    text = os.environ.get("TF_CONFIG", "").strip()
    if not text:
        return None
    try:
        content = json.loads(text)
        jobs = content.get("cluster") or {}
        task = content.get("task") or {}
        others = set(jobs) - {"chief", "worker"}
        chiefs, workers = jobs.get("chief", []), jobs.get("worker", [])
        kind, index = task.get("type"), task.get("index")
    except (ValueError, AttributeError, TypeError) as error:
        raise _wrong(f"is not JSON of the form wanted ({error})") from None
    if others:
        raise _wrong(f"has a job {sorted(others)[0]!r}: only workers train")
    everyone = [*chiefs, *workers]
    if len(everyone) < 2:
        return None
    _check_task(jobs, kind, index)
    offset = len(chiefs) if kind == "worker" else 0
    return Cluster(tuple(everyone), offset + index)


def _check_task(jobs: dict[str, Any], kind: Any, index: Any) -> None:
    if kind not in jobs:
        raise _wrong(f"has the task type {kind!r}, which is not in its cluster")
    if type(index) is not int or not 0 <= index < len(jobs[kind]):
        raise _wrong(
            f"has the task index {index!r}: must be in "
            f"[0, {len(jobs[kind]) - 1}]"
        )


def of(config: config_lib.Config) -> Cluster | None:
    """The workers that a run's flags mean; None if it is this process alone."""
    if config.strategy in ("multi_worker", "auto") and config.tpu is None:
        return read()
    return None


def chief(config: config_lib.Config) -> bool:
    """Whether this process is the one that writes: alone, or the first."""
    found = of(config)
    return found is None or found.chief


def _wrong(what: str) -> InputError:
    return InputError(f"TF_CONFIG {what}; such as {_WANTED}")
