"""What TF_CONFIG may say."""

import json

import pytest

from simmatch_tf.distributed import cluster
from simmatch_tf.flags.commandline import InputError
from tests import runs

TWO = {"worker": ["a:1", "b:2"]}


def say(monkeypatch, content):
    text = content if isinstance(content, str) else json.dumps(content)
    monkeypatch.setenv("TF_CONFIG", text)


def test_two_workers(monkeypatch, tmp_path):
    say(monkeypatch, {"cluster": TWO, "task": {"type": "worker", "index": 1}})
    assert cluster.read() == cluster.Cluster(("a:1", "b:2"), 1)
    assert not cluster.chief(runs.config(tmp_path))
    assert cluster.chief(runs.config(tmp_path, strategy="one"))
    say(monkeypatch, {"cluster": TWO, "task": {"type": "worker", "index": 0}})
    assert cluster.read().chief


def test_a_chief_of_its_own(monkeypatch):
    jobs = {"chief": ["c:3"], **TWO}
    say(monkeypatch, {"cluster": jobs, "task": {"type": "worker", "index": 0}})
    assert cluster.read() == cluster.Cluster(("c:3", "a:1", "b:2"), 1)
    say(monkeypatch, {"cluster": jobs, "task": {"type": "chief", "index": 0}})
    assert cluster.read().chief


@pytest.mark.parametrize(
    "content", ["", "{}", {"cluster": {"worker": ["a:1"]}}]
)
def test_alone(monkeypatch, content, tmp_path):
    say(monkeypatch, content)
    assert cluster.read() is None
    assert cluster.chief(runs.config(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not JSON of the form"),
        ({"cluster": {"ps": ["a:1"], **TWO}}, "has a job 'ps'"),
        ({"cluster": TWO}, "the task type None"),
        ({"cluster": {"worker": "a:1"}}, "has a worker that is no list"),
        ({"cluster": {"worker": None}}, "has a worker that is no list"),
        ({"cluster": {"worker": ["a:1", "b"]}}, "the address 'b': must be"),
        ({"cluster": {"worker": ["a:1", "::1:2"]}}, "the address '::1:2'"),
        ({"cluster": {"worker": ["a:1", "b:65536"]}}, "the address 'b:65536'"),
        ({"cluster": {"worker": [1, 2]}}, "the address 1: must be"),
        ({"cluster": {"worker": ["a:1", "a:1"]}}, "an address twice: a:1, a:1"),
        ({"cluster": {"chief": ["a:1", "b:1"]}}, "has 2 chiefs"),
        ({"cluster": TWO, "task": {"type": ["worker"]}}, "the task type"),
        (
            {"cluster": TWO, "task": {"type": "worker", "index": 2}},
            r"index 2: must be in \[0, 1\]",
        ),
        (
            {"cluster": TWO, "task": {"type": "worker", "index": "0"}},
            "index '0'",
        ),
    ],
)
def test_what_is_not_right(monkeypatch, content, message, tmp_path):
    say(monkeypatch, content)
    with pytest.raises(InputError, match=f"TF_CONFIG .*{message}"):
        cluster.read()
    with pytest.raises(InputError, match="TF_CONFIG"):
        runs.config(tmp_path).check_available()


def test_multi_worker_wants_workers(monkeypatch, tmp_path):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    config = runs.config(tmp_path, strategy="multi_worker")
    with pytest.raises(InputError, match="TF_CONFIG must name two workers"):
        config.check_available()
