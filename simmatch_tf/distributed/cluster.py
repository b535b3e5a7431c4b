"""The workers of a run on several machines: TF_CONFIG.

    {"cluster": {"worker": ["host0:12345", "host1:12345"]},
     "task": {"type": "worker", "index": 0}}

Nothing here imports TensorFlow.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import typing
from collections.abc import Iterator
from typing import Any

from simmatch_tf.flags.commandline import InputError

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
        jobs = {name: list(_hosts(name, jobs[name])) for name in jobs}
        kind, index = task.get("type"), task.get("index")
    except (ValueError, AttributeError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise _wrong(f"is not JSON of the form wanted ({error})") from None
    others = set(jobs) - {"chief", "worker"}
    if others:
        raise _wrong(f"has a job {sorted(others)[0]!r}: only workers train")
    chiefs = jobs.get("chief", [])
    everyone = [*chiefs, *jobs.get("worker", [])]
    if len(chiefs) > 1:
        raise _wrong(f"has {len(chiefs)} chiefs: must be at most one")
    if len(set(everyone)) < len(everyone):
        raise _wrong(f"names an address twice: {', '.join(everyone)}")
    if len(everyone) < 2:
        return None
    if not isinstance(kind, str) or kind not in jobs:
        raise _wrong(f"has the task type {kind!r}, which is not in its cluster")
    if type(index) is not int or not 0 <= index < len(jobs[kind]):
        raise _wrong(
            f"has the task index {index!r}: must be in "
            f"[0, {len(jobs[kind]) - 1}]"
        )
    offset = len(chiefs) if kind == "worker" else 0
    return Cluster(tuple(everyone), offset + index)


def _hosts(name: str, found: Any) -> Iterator[str]:
    """The addresses of a job."""
    if not isinstance(found, list):
        raise _wrong(f"has a {name} that is no list: {found!r}")
    for host in found:
        if address(str(host)) is None:
            raise _wrong(f"has the address {host!r}: must be host:port")
        yield host


def address(text: str) -> tuple[str, int] | None:
    """Host and port of HOST:PORT; None if it is not that."""
    found = re.fullmatch(r"([\w.-]+|\[[0-9A-Fa-f:]+\]):([0-9]{1,5})", text)
    if not found or not 0 < int(found[2]) < 2**16:
        return None
    return found[1].strip("[]"), int(found[2])


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
