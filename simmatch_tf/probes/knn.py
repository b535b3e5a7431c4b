"""Weighted k-nearest neighbours in features. Imports no TensorFlow.

Each of the k training images that are nearest by the cosine of their features
votes for its class with weight exp(cosine / t) (Wu et al., 2018; DINO).
"""

import numpy as np
from sklearn import neighbors as neighbors_lib
from sklearn import preprocessing


def predict(
    train: tuple[np.ndarray, np.ndarray],
    features: np.ndarray,
    *,
    neighbors: int,
    temperature: float,
) -> np.ndarray:
    """The classes with most votes.

    Args:
        train: Features [N, width] and labels [N].
        features: [M, width].
        neighbors: k, at most N.
        temperature: t, above 0.

    Returns:
        [M]; of equals, the first class.
    """

    def weights(distances: np.ndarray) -> np.ndarray:
        # Of unit vectors; less 1, that the largest be 1 and none overflows.
        return np.exp(-(distances**2) / 2 / temperature)

    model = neighbors_lib.KNeighborsClassifier(
        neighbors, weights=weights, algorithm="brute"
    )
    model.fit(preprocessing.normalize(train[0]), train[1])
    return model.predict(preprocessing.normalize(features))
