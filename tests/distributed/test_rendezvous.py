"""Workers meet before TensorFlow joins them."""

import json
import socket
import threading
import time

import pytest

from simmatch_tf import signals
from simmatch_tf.distributed import cluster as cluster_lib
from simmatch_tf.distributed import rendezvous
from simmatch_tf.flags.commandline import InputError

FLAGS = "--steps=3\n--nooverwrite\n"


@pytest.fixture
def workers():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return (f"localhost:{port}", "localhost:1", "localhost:2")


def start(workers, index, found):
    def meet():
        try:
            rendezvous.meet(cluster_lib.Cluster(workers, index), 20.0, FLAGS)
            found.append(index)
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=meet, daemon=True)
    thread.start()
    return thread


def test_all_go_on_once_all_are_there(workers):
    found = []
    threads = [start(workers, index, found) for index in (1, 0)]
    time.sleep(0.6)
    assert found == []
    threads.append(start(workers, 2, found))
    for thread in threads:
        thread.join(10)
    assert sorted(found) == [0, 1, 2]


def test_a_worker_that_died_and_came_again(workers):
    found = []
    host, port = workers[0].split(":")
    threads = [start(workers, 0, found)]
    time.sleep(0.3)
    with socket.create_connection((host, int(port))) as line:
        line.sendall(json.dumps({"index": 1, "flags": FLAGS}).encode())
        line.sendall(b"\n")
        time.sleep(0.3)
    threads.append(start(workers, 2, found))
    time.sleep(0.6)
    assert found == []  # the first is missing again
    threads.append(start(workers, 1, found))
    for thread in threads:
        thread.join(10)
    assert sorted(found) == [0, 1, 2]


def test_strangers_are_ignored(workers):
    found = []
    pair = workers[:2]
    threads = [start(pair, 0, found)]
    time.sleep(0.3)
    host, port = workers[0].split(":")
    with socket.create_connection((host, int(port))) as line:
        line.sendall(b"GET / HTTP/1.1\r\n\r\n")
    threads.append(start(pair, 1, found))
    for thread in threads:
        thread.join(10)
    assert sorted(found) == [0, 1]


@pytest.mark.parametrize(
    ("index", "missing"), [(0, r"worker 1 .*, worker 2"), (1, "the chief")]
)
def test_nobody_comes(workers, index, missing):
    with pytest.raises(signals.Interrupted, match=f"vain for {missing}"):
        rendezvous.meet(cluster_lib.Cluster(workers, index), 0.3, FLAGS)


def test_the_chief_s_port_is_taken(workers):
    with socket.socket() as taken:
        taken.bind(("", int(workers[0].split(":")[1])))
        taken.listen()
        with pytest.raises(InputError, match="the chief cannot listen at"):
            rendezvous.meet(cluster_lib.Cluster(workers, 0), 5.0, FLAGS)


def test_other_flags_end_both(workers):
    found = []
    pair = workers[:2]
    chief = start(pair, 0, found)
    with pytest.raises(InputError, match="--steps=4 there and --steps=3 here"):
        rendezvous.meet(
            cluster_lib.Cluster(pair, 1), 20.0, "--steps=4\n--nooverwrite\n"
        )
    chief.join(10)
    assert "worker 1 and the chief: --steps=4 there" in str(found[0])


def test_a_flag_that_only_one_has(workers):
    found = []
    pair = workers[:2]
    chief = start(pair, 0, found)
    more = FLAGS + "--seed=1\n"
    with pytest.raises(InputError, match="--seed=1 there and the default here"):
        rendezvous.meet(cluster_lib.Cluster(pair, 1), 20.0, more)
    chief.join(10)
