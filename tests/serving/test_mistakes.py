import numpy as np
import pytest

from simmatch_tf.serving import mistakes

# Confidences 0.9, 0.6, 0.8, 0.5, 0.7; the second, third and fifth are wrong.
P = np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.5, 0.5], [0.3, 0.7]])
LABELS = np.array([0, 0, 1, 0, 0])


def test_which_are_chosen():
    found = mistakes.choose(np.log(P) + 7, LABELS, 2)
    assert found.errors == 3
    assert found.wrong.tolist() == [2, 4]  # 0.8, 0.7
    assert found.uncertain.tolist() == [3, 1]  # 0.5, 0.6
    found = mistakes.choose(np.log(P), LABELS, 9)
    assert found.wrong.tolist() == [2, 4, 1]
    assert found.uncertain.tolist() == [3, 1, 4, 2, 0]
    found = mistakes.choose(np.log(P), LABELS, 0)
    assert len(found.wrong) == len(found.uncertain) == 0 and found.errors == 3


def test_softmax():
    found = mistakes.softmax(np.array([[1000.0, 1000.0], [0.0, np.log(3)]]))
    assert found == pytest.approx(np.array([[0.5, 0.5], [0.25, 0.75]]))
