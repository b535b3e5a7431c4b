"""Batches from a data service are those of the run's own pipeline."""

import contextlib
import pathlib
import queue
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf import preflight
from simmatch_tf.data import pipeline, service
from simmatch_tf.flags.errors import InputError
from tests import runs
from tests.data import test_pipeline
from tests.training import test_loop

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def make():
    return test_pipeline.small(strong="none")


@pytest.fixture(scope="module")
def address():
    """A service of two data workers."""
    api = tf.data.experimental.service
    dispatcher = api.DispatchServer(api.DispatcherConfig(0, protocol="grpc"))
    config = api.WorkerConfig(
        dispatcher.target.removeprefix("grpc://"), protocol="grpc"
    )
    workers = [api.WorkerServer(config) for _ in range(2)]
    yield dispatcher.target
    del workers


@pytest.mark.parametrize("start", [0, 5])
def test_the_same_batches_in_the_same_order(make, address, start):
    own = make.dataset(start, 40)
    served = service.ordered(make.dataset(start, 40, numbered=True), address)
    assert served.element_spec == own.element_spec
    test_pipeline.assert_equal(
        test_pipeline.read(own), test_pipeline.read(served)
    )


def test_each_training_worker_reads_its_own(make, address):
    for worker in range(2):
        context = tf.distribute.InputContext(2, worker, 4)
        own = make.dataset(3, 8, context)
        served = make.dataset(3, 8, context, numbered=True)
        test_pipeline.assert_equal(
            test_pipeline.read(own),
            test_pipeline.read(service.ordered(served, address)),
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, {"steps_per_loop": 3}, {"views_on": "device"}]
)
def test_the_same_run(finished_run, address, tmp_path, changes, monkeypatch):
    served, ordered = [], service.ordered

    def note(dataset, *arguments, **words):
        served.append(dataset.element_spec[1])
        return ordered(dataset, *arguments, **words)

    monkeypatch.setattr(service, "ordered", note)
    runs.fit(tmp_path, data_service=address, **changes)
    (spec,) = served
    assert ("draws/labeled_weak" in spec) == ("views_on" in changes)
    test_loop.assert_same_run(finished_run[0], tmp_path, 6)


def test_a_lost_batch_ends_the_run(make, address):
    numbered = make.dataset(0, 4, numbered=True)
    # What DYNAMIC does when a data worker dies: one less.
    served = numbered.map(
        lambda place, batch: (place + tf.cast(place > 1, tf.int64), batch)
    )
    batches = iter(service.ordered(served, address, patience=5.0))
    for _ in range(2):
        assert pipeline.read_next(batches, "at step 1") is not None
    with pytest.raises(
        InputError,
        match="no batch at step 3: the data service lost a batch: 2 later .* "
        "goes on from its last checkpoint",
    ):
        pipeline.read_next(batches, "at step 3")


def test_a_lost_batch_in_a_loop_of_steps(make, address):
    served = make.dataset(0, 4, numbered=True).map(
        lambda place, batch: (place + 1, batch)
    )
    batches = iter(service.ordered(served, address, patience=5.0))
    take = tf.function(lambda it: next(it)["labels"], autograph=False)
    with pytest.raises(tf.errors.OpError, match="IteratorGetNext") as caught:
        take(batches)
    assert "lost a batch" in pipeline.unreadable("at step 1", caught.value)


def test_a_bad_image_is_named(make, address):
    def read(place, batch):
        data = tf.where(place < 1, b"1", b"x")
        number = tf.strings.to_number(data, tf.int32)
        return place, {"labels": batch["labels"] + number}

    served = make.dataset(0, 2, numbered=True).map(read)
    batches = iter(service.ordered(served, address, patience=5.0))
    with pytest.raises(InputError, match="could not be read at step 2: .*: x"):
        for _ in range(2):
            pipeline.read_next(batches, "at step 2")


def in_order(arrivals, count, **changes):
    arrivals = iter(arrivals)

    def arrive(seconds):
        assert seconds > 0
        arrival = next(arrivals, queue.Empty())
        if isinstance(arrival, queue.Empty):
            raise arrival
        return arrival

    values = {"held": 10, "patience": 1.0, **changes}
    return list(service.in_order(arrive, count, **values))


def test_elements_are_put_in_order():
    assert in_order([(2, "c"), (0, "a"), (1, "b"), None], 3) == ["a", "b", "c"]
    assert in_order([None], 0) == []


@pytest.mark.parametrize(
    ("arrivals", "changes", "message"),
    [
        ([(0, "a"), (2, "c"), None], {}, "lost a batch: 1 later ones"),
        ([(0, "a"), (2, "c")], {}, "lost a batch: 1 later ones"),
        ([(0, "a"), None], {}, "sent no batch for 1 s: does it run"),
        ([(0, "a")], {}, "sent no batch for 1 s: does it run"),
        ([(n, "") for n in range(2, 9)], {"held": 3}, "lost a batch: 3 later"),
    ],
)
def test_missing_elements(arrivals, changes, message):
    with pytest.raises(service._Failed, match=message):
        in_order(arrivals, 3, **changes)


def test_no_service_at_the_address(make):
    with socket.socket() as bound:  # and does not listen
        bound.bind(("localhost", 0))
        address = f"grpc://localhost:{bound.getsockname()[1]}"
        message = f"--data_service={address}: cannot be reached"
        with pytest.raises(InputError, match=message):
            service.ordered(make.dataset(0, 2, numbered=True), address)
        with pytest.raises(InputError, match=message):
            preflight.check_available(runs.config("x", data_service=address))


def test_another_program_at_the_address(make, monkeypatch):
    monkeypatch.setattr(service, "PATIENCE", 0.5)
    with socket.create_server(("localhost", 0)) as other:
        address = f"grpc://localhost:{other.getsockname()[1]}"
        with pytest.raises(InputError, match="no answer within 0.5 s"):
            service.ordered(make.dataset(0, 2, numbered=True), address)


def test_images_too_large_for_a_message(make, address):
    numbered = make.dataset(0, 2, numbered=True)
    with pytest.raises(InputError, match="must stay below 2 GiB; leave it out"):
        service.ordered(numbered, address, held_bytes=2**31)


def test_a_port_in_use():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"--port={port}: cannot be liste"):
            preflight.check_port("port", port)


def start(*words):
    process = subprocess.Popen(
        [sys.executable, "-m", "simmatch_tf.serve_data", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    return process, process.stdout.readline().strip()


@pytest.mark.slow
def test_the_command(make):
    with contextlib.ExitStack() as stack:
        processes = []

        def serve(*words):
            process, line = start(*words)
            stack.callback(process.communicate)
            stack.callback(process.kill)
            processes.append(process)
            return line

        line = serve("--role=dispatcher", "--port=0")
        address = line.removeprefix("dispatcher listens at ")
        assert address.startswith("grpc://localhost:"), processes[0].stderr
        where = address.removeprefix("grpc://")
        line = serve("--role=worker", f"--dispatcher={where}")
        assert line.startswith("worker listens at grpc://localhost:")
        test_pipeline.assert_equal(
            test_pipeline.read(make.dataset(0, 9)),
            test_pipeline.read(
                service.ordered(make.dataset(0, 9, numbered=True), address)
            ),
        )
        # A data worker that dies: an error, although TensorFlow waits on.
        served = make.dataset(0, 10_000, numbered=True)
        batches = iter(service.ordered(served, address, patience=3.0))
        next(batches)
        processes[1].kill()
        with pytest.raises(InputError, match="the data service (lost|sent no)"):
            while True:
                pipeline.read_next(batches, "at step 1")
        processes[0].send_signal(signal.SIGTERM)
        errors = processes[0].stderr.read()
        assert processes[0].wait() == 0 and "Traceback" not in errors


def test_numbers_are_places(make):
    places = [int(place) for place, _ in make.dataset(5, 9, numbered=True)]
    np.testing.assert_array_equal(places, range(4))
