"""What a model takes images for, computed in a thread while a person looks."""

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

_BATCH = 32  # images at a time, at most


class Guesses:
    """Guesses of a model for the images that somebody has asked for."""

    def __init__(
        self,
        classify: Callable[[Sequence[str]], Iterable[tuple[int, str, float]]],
        paths: Sequence[str],
    ) -> None:
        """Prepares the guesses; `start` begins to compute them.

        Args:
            classify: Paths → of those that can be read, the place in the
                paths, the likeliest class and its confidence.
            paths: N paths.
        """
        self._classify, self._paths = classify, paths
        self._guesses: dict[int, dict[str, Any] | None] = {}
        self._wanted: list[int] = []
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._compute, daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread when it is done with its batch."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def __call__(self, index: int) -> dict[str, Any] | None:
        """Returns the guess for an image, and has it computed if need be.

        Args:
            index: Of the image, in [0, N).

        Returns:
            "class" and "confidence", or None: it is not known yet, or the
            file cannot be read.
        """
        with self._changed:
            if index not in self._guesses and index not in self._wanted:
                self._wanted.append(index)
                self._changed.notify()
            return self._guesses.get(index)

    def _compute(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted or self._stopped)
                if self._stopped:
                    return
                batch = self._wanted[:_BATCH]
            guesses: dict[int, dict[str, Any] | None] = dict.fromkeys(batch)
            paths = [self._paths[index] for index in batch]
            for place, name, confidence in self._classify(paths):
                guesses[batch[place]] = {
                    "class": name,
                    "confidence": round(confidence, 4),
                }
            with self._changed:
                self._guesses.update(guesses)
                del self._wanted[: len(batch)]
