import threading
import time

from simmatch_tf.labeling import guesses


def wait_for(guess, index):
    until = time.monotonic() + 30
    while guess(index) is None:
        assert time.monotonic() < until
        time.sleep(0.01)
    return guess(index)


def test_guesses_of_what_was_asked_for():
    calls, first = [], threading.Event()

    def classify(paths):
        first.wait()
        calls.extend(paths)
        for place, path in enumerate(paths):
            if path != "p3":  # cannot be read
                yield place, f"class of {path}", 0.123456

    guess = guesses.Guesses(classify, [f"p{number}" for number in range(100)])
    assert guess(99) is None
    guess.start()
    for index in (99, 3, 50, 3, 99):
        assert guess(index) is None
    first.set()
    assert wait_for(guess, 50) == {
        "class": "class of p50",
        "confidence": 0.1235,
    }
    assert guess(99)["class"] == "class of p99"
    assert guess(3) is None
    assert sorted(calls) == ["p3", "p50", "p99"]
    guess.stop()
    assert not guess._thread.is_alive()


def test_many_are_computed_in_batches():
    sizes = []

    def classify(paths):
        sizes.append(len(paths))
        return [(place, "a", 1.0) for place in range(len(paths))]

    guess = guesses.Guesses(classify, ["p"] * 100)
    for index in range(100):
        guess(index)
    guess.start()
    assert wait_for(guess, 99)
    assert sum(sizes) == 100 and max(sizes) <= 32
    guess.stop()
