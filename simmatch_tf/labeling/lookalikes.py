"""Images that look alike, by small thumbnails, without any network.

Nothing here imports TensorFlow.
"""

import threading

import numpy as np

from simmatch_tf.data import viewing

_SIDE = 8  # of the thumbnails that are compared, in pixels
_MEAN_SHARE = 0.5  # weight of the mean colour beside the pattern


def feature(path: str) -> np.ndarray:
    """Returns what an image looks like, float32 [192].

    It is a thumbnail of 8×8 pixels, whose pattern and mean colour have a
    length of about 1 together.

    Raises:
        ValueError: The file cannot be used; the message says why.
    """
    image = viewing.picture(path, 8 * _SIDE).resize((_SIDE, _SIDE))
    pixels = np.asarray(image, np.float32) / 255
    mean = pixels.mean(axis=(0, 1))
    pattern = pixels - mean
    pattern /= max(float(np.linalg.norm(pattern)), 0.1)
    return (pattern + _MEAN_SHARE * (mean - 0.5) / _SIDE).ravel()


class LookAlikes:
    """Features of all images, computed in a thread while a person looks."""

    def __init__(self, paths: list[str], order: list[int]) -> None:
        """Prepares the features of N images; `start` computes them.

        Args:
            paths: N paths.
            order: Their indices, those that are needed first in front.
        """
        self._paths, self._order = paths, order
        self._features = np.zeros([len(paths), 3 * _SIDE**2], np.float32)
        self._known = np.zeros(len(paths), bool)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._compute, daemon=True)
        self._started = False
        self._lock = threading.Lock()

    def start(self) -> None:
        """Starts the thread, unless it was started before."""
        with self._lock:
            if not self._started:
                self._started = True
                self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        with self._lock:
            self._stop.set()
        if self._started:
            self._thread.join()

    def progress(self) -> tuple[int, int]:
        """Returns how many images have been looked at, and N."""
        return int(self._known.sum()), len(self._paths)

    def like(self, index: int) -> list[int]:
        """Returns the images seen so far, those most like one of them first.

        Args:
            index: Of the image, which is first.

        Raises:
            ValueError: Its file cannot be used; the message says why.
        """
        if not self._known[index]:
            self._enter(index)
        known = np.flatnonzero(self._known)
        differences = self._features[known] - self._features[index]
        distances = np.square(differences).sum(axis=1)
        distances[known == index] = -1
        return known[np.argsort(distances, kind="stable")].tolist()

    def _enter(self, index: int) -> None:
        self._features[index] = feature(self._paths[index])
        self._known[index] = True

    def _compute(self) -> None:
        for index in self._order:
            if self._stop.is_set():
                return
            if not self._known[index]:
                try:
                    self._enter(index)
                except ValueError:
                    continue  # it is named when its turn comes
