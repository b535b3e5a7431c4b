"""What became of many images: counts, and those to look at first.

Nothing here imports TensorFlow.
"""

import dataclasses
import heapq
import itertools
from collections.abc import Iterable, Sequence

from simmatch_tf.serving import outputs

BINS = 10
_REASONS = 10


@dataclasses.dataclass(frozen=True)
class Review:
    """What stands in the rows of a file of predictions.

    Attributes:
        images: How many rows.
        per_class: Class → its images, for all classes.
        confidences: Class → how many of its images have a confidence in each
            of `BINS` parts of [0, 1].
        unreadable: Images that could not be read.
        reasons: Of the first ten of those: name and reason.
        least: The least certain images, the least certain first: their places
            and rows.
    """

    images: int
    per_class: dict[str, int]
    confidences: dict[str, list[int]]
    unreadable: int
    reasons: list[tuple[str, str]]
    least: list[tuple[int, outputs.Row]]


def make(
    rows: Iterable[outputs.Row], class_names: Sequence[str], most: int
) -> Review:
    """Goes through the rows once.

    Args:
        rows: All of a file.
        class_names: L names.
        most: How many of the least certain to keep.
    """
    per_class = dict.fromkeys(class_names, 0)
    confidences = {name: [0] * BINS for name in class_names}
    unreadable, reasons = 0, []
    counter = itertools.count()

    def read() -> Iterable[tuple[int, outputs.Row]]:
        nonlocal unreadable
        for row in rows:
            place = next(counter)
            if row["error"] is not None:
                unreadable += 1
                if len(reasons) < _REASONS:
                    reasons.append((row["file"], row["error"]))
                continue
            per_class[row["class"]] += 1
            part = min(int(row["confidence"] * BINS), BINS - 1)
            confidences[row["class"]][part] += 1
            yield place, row

    # Also for none of them all rows are to be read.
    least = heapq.nsmallest(
        max(most, 1), read(), key=lambda found: found[1]["confidence"]
    )[:most]
    return Review(
        images=next(counter),
        per_class=per_class,
        confidences=confidences,
        unreadable=unreadable,
        reasons=reasons,
        least=least,
    )
