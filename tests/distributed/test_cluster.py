import json
import socket
import threading
import time

import pytest

from simmatch_tf import signals
from simmatch_tf.distributed import cluster
from simmatch_tf.flags.errors import InputError
from tests import runs

FLAGS = "--steps=3\n--nooverwrite\n"
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
        cluster.of(runs.config(tmp_path))


def test_multi_worker_wants_workers(monkeypatch, tmp_path):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    config = runs.config(tmp_path, strategy="multi_worker")
    with pytest.raises(InputError, match="TF_CONFIG must name two workers"):
        cluster.of(config)


# ---- meeting ----


@pytest.fixture
def workers():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return (f"localhost:{port}", "localhost:1", "localhost:2")


def start(workers, index, outcomes):
    def meet():
        try:
            cluster.meet(cluster.Cluster(workers, index), 20.0, FLAGS)
            outcomes.append(index)
        except BaseException as error:
            outcomes.append(error)

    thread = threading.Thread(target=meet, daemon=True)
    thread.start()
    return thread


def test_all_go_on_once_all_are_there(workers):
    outcomes = []
    threads = [start(workers, index, outcomes) for index in (1, 0)]
    time.sleep(0.6)
    assert outcomes == []
    threads.append(start(workers, 2, outcomes))
    for thread in threads:
        thread.join(10)
    assert sorted(outcomes) == [0, 1, 2]


def test_a_worker_that_died_and_came_again(workers):
    outcomes = []
    host, port = workers[0].split(":")
    threads = [start(workers, 0, outcomes)]
    time.sleep(0.3)
    with socket.create_connection((host, int(port))) as line:
        line.sendall(json.dumps({"index": 1, "flags": FLAGS}).encode())
        line.sendall(b"\n")
        time.sleep(0.3)
    threads.append(start(workers, 2, outcomes))
    time.sleep(0.6)
    assert outcomes == []  # the first is missing again
    threads.append(start(workers, 1, outcomes))
    for thread in threads:
        thread.join(10)
    assert sorted(outcomes) == [0, 1, 2]


def test_strangers_are_ignored(workers):
    outcomes = []
    pair = workers[:2]
    threads = [start(pair, 0, outcomes)]
    time.sleep(0.3)
    host, port = workers[0].split(":")
    with socket.create_connection((host, int(port))) as line:
        line.sendall(b"GET / HTTP/1.1\r\n\r\n")
    threads.append(start(pair, 1, outcomes))
    for thread in threads:
        thread.join(10)
    assert sorted(outcomes) == [0, 1]


@pytest.mark.parametrize(
    ("index", "missing"), [(0, r"worker 1 .*, worker 2"), (1, "the chief")]
)
def test_nobody_comes(workers, index, missing):
    with pytest.raises(signals.Interrupted, match=f"vain for {missing}"):
        cluster.meet(cluster.Cluster(workers, index), 0.3, FLAGS)


def test_the_chief_s_port_is_taken(workers):
    with socket.socket() as taken:
        taken.bind(("", int(workers[0].split(":")[1])))
        taken.listen()
        with pytest.raises(InputError, match="the chief cannot listen at"):
            cluster.meet(cluster.Cluster(workers, 0), 5.0, FLAGS)


def test_other_flags_end_both(workers):
    outcomes = []
    pair = workers[:2]
    chief = start(pair, 0, outcomes)
    with pytest.raises(InputError, match="--steps=4 there and --steps=3 here"):
        cluster.meet(
            cluster.Cluster(pair, 1), 20.0, "--steps=4\n--nooverwrite\n"
        )
    chief.join(10)
    assert "worker 1 and the chief: --steps=4 there" in str(outcomes[0])


def test_a_flag_that_only_one_has(workers):
    outcomes = []
    pair = workers[:2]
    chief = start(pair, 0, outcomes)
    more = FLAGS + "--seed=1\n"
    with pytest.raises(InputError, match="--seed=1 there and the default here"):
        cluster.meet(cluster.Cluster(pair, 1), 20.0, more)
    chief.join(10)
