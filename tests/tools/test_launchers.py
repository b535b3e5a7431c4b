"""The Kubernetes manifest and the Slurm script name each worker correctly."""

import json
import os
import pathlib
import re
import subprocess
import textwrap

import pytest

from simmatch_tf.distributed import cluster

TOOLS = pathlib.Path(__file__).resolve().parents[2] / "tools"


def program(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def run(folder, words, **variables):
    """Runs a command with stand-ins for programs that are not installed."""
    return subprocess.run(
        words,
        env={
            **os.environ,
            "PATH": f"{folder}:{os.environ['PATH']}",
            **variables,
        },
        capture_output=True,
        text=True,
        check=False,
    )


def test_kubernetes(tmp_path, monkeypatch):
    text = (TOOLS / "kubernetes.yaml").read_text()
    match = re.search(r"- \|\n((?: {14}.*\n)+)", text)
    script = textwrap.dedent(match[1])
    program(tmp_path, "python", 'echo "$TF_CONFIG"; echo "$@" >&2')
    for index in (0, 1):
        answer = run(
            tmp_path,
            ["bash", "-c", script],
            WORKERS="2",
            JOB_COMPLETION_INDEX=str(index),
        )
        assert answer.returncode == 0, answer.stderr
        monkeypatch.setenv("TF_CONFIG", answer.stdout)
        assert cluster.read() == cluster.Cluster(
            ("simmatch-0.simmatch:12345", "simmatch-1.simmatch:12345"), index
        )
        assert answer.stderr.split()[:2] == ["-m", "simmatch_tf.train"]
    # All numbers of workers are the same.
    numbers = re.findall(r"(?:parallelism|completions): (\d+)", text)
    numbers += re.findall(r'value: "(\d+)"', text)
    assert numbers == ["2"] * 3


def slurm(folder, status):
    program(
        folder,
        "scontrol",
        'if [ "$1" = show ]; then printf "n1\\nn2\\n"; '
        f'else echo "$@" >> {folder}/requeued; fi',
    )
    # As srun does: the same command for each task.
    program(
        folder,
        "srun",
        'shift; SLURM_PROCID=0 "$@"; SLURM_PROCID=1 "$@"; exit $?',
    )
    program(
        folder,
        "python",
        f'echo "$TF_CONFIG" > {folder}/task$SLURM_PROCID; '
        f'echo "$@" > {folder}/words; exit {status}',
    )
    return run(
        folder,
        [str(TOOLS / "slurm.sh"), "--steps=3", "--workdir=a b"],
        SLURM_JOB_ID="7",
        SLURM_JOB_NODELIST="n[1-2]",
    )


def test_slurm(tmp_path, monkeypatch):
    answer = slurm(tmp_path, 0)
    assert answer.returncode == 0, answer.stderr
    for index in (0, 1):
        text = (tmp_path / f"task{index}").read_text()
        assert json.loads(text)
        monkeypatch.setenv("TF_CONFIG", text)
        assert cluster.read() == cluster.Cluster(
            ("n1:12007", "n2:12007"), index
        )
    assert (tmp_path / "words").read_text().split() == [
        "-m", "simmatch_tf.train", "--steps=3", "--workdir=a", "b",
    ]  # fmt: skip
    assert not (tmp_path / "requeued").exists()


@pytest.mark.parametrize(
    ("status", "again"), [(42, True), (137, True), (1, False)]
)
def test_slurm_requeues_what_can_resume(status, again, tmp_path):
    assert slurm(tmp_path, status).returncode == status
    assert (tmp_path / "requeued").exists() == again
    if again:
        assert (tmp_path / "requeued").read_text() == "requeue 7\n"
